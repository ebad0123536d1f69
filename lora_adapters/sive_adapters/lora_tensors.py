"""The tensors of an adapter: their names, shapes and types, against its configuration and its base."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sive.errors import LocalModelError
from sive.local.safetensors import DTYPES, Tensor, read_header

from sive_adapters.base_model import NO_LINEAR, BaseModel
from sive_adapters.findings import Findings
from sive_adapters.lora_config import LoraConfig, shown
from sive_adapters.progress import Told
from sive_adapters.tensor_values import largest_magnitudes

MAX_HEADER_BYTES = 8_000_000
"""Fifty thousand tensors; a 14B model's adapter has 672."""

MAX_FLOAT16 = 65504.0
MAX_NAME = 256

LORA_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(slots=True)
class Layer:
    """The two halves of an adapted module: A is (rank, in), B is (out, rank)."""

    module: str
    halves: dict[str, tuple[str, Tensor]] = field(default_factory=dict)


def check_tensors(
    file: Path, config: LoraConfig | None, base: BaseModel | None, findings: Findings, *, told: Told
) -> None:
    """Check an adapter's file of weights."""
    if file.stat().st_size == 0:
        findings.add("weights_empty", f"{file} is empty: copy or download it again")
        return
    try:
        tensors = read_header(file, MAX_HEADER_BYTES)
        if not tensors:
            findings.add("weights_empty", f"{file} holds no tensors: save the adapter again")
            return
        layers = _layers(tensors, findings)
        _check_layers(layers, config, base, findings)
        _check_dtypes(tensors, findings)
        readable = {name: tensor for name, tensor in tensors.items() if tensor.dtype in DTYPES}
        largest = largest_magnitudes(file, readable, findings, told=told)
    except LocalModelError as exc:
        findings.add("weights_unreadable", str(exc))
        return
    if config is not None:
        _check_scaled(layers, config, largest, findings)
    _check_trained(layers, largest, findings)


def _layers(tensors: Mapping[str, Tensor], findings: Findings) -> dict[str, Layer]:
    """Pair the halves by module; whatever is no half is reported."""
    layers: dict[str, Layer] = {}
    for name, tensor in tensors.items():
        found = LORA_NAME.fullmatch(name) if len(name) <= MAX_NAME else None
        if found is None:
            _refuse_tensor(name, findings)
            continue
        layer = layers.setdefault(found["module"], Layer(found["module"]))
        if found["half"] in layer.halves:
            findings.add(
                "unknown_tensor", f"tensor {shown(name)} is there with and without base_model.model."
            )
        layer.halves[found["half"]] = name, tensor
    return layers


def _refuse_tensor(name: str, findings: Findings) -> None:
    tensor = f"tensor {shown(name)}"
    if "lora_magnitude_vector" in name:
        findings.add("dora", f"{tensor} is DoRA's, which vLLM does not serve: train without it, or merge it")
    elif "lora_embedding_" in name or ".base_layer." in name:
        findings.add("embedding", f"{tensor} adapts an embedding, which sive does not serve: train without")
    elif name.endswith(".bias"):
        findings.add("bias", f"{tensor} is a bias, which vLLM does not serve: train with bias none")
    elif name.endswith(".weight") and ".lora_" not in name:
        findings.add(
            "modules_to_save", f"{tensor} is a whole layer, vLLM serves only low-rank ones: train without"
        )
    else:
        findings.add(
            "unknown_tensor",
            f"{tensor} is no lora_A.weight or lora_B.weight of a module: save with PEFT's save_pretrained",
        )


def _check_layers(
    layers: Mapping[str, Layer], config: LoraConfig | None, base: BaseModel | None, findings: Findings
) -> None:
    of_any_layer = {NUMBER.sub("*", module) for module in base.modules} if base is not None else set()
    for layer in layers.values():
        is_known = base is not None and layer.module in base.modules
        if base is not None and not is_known:
            _refuse_module(layer.module, base, of_any_layer, findings)
        elif layer.module.rsplit(".", 1)[-1] in NO_LINEAR:
            findings.add(
                "embedding", f"module {shown(layer.module)} is an embedding, which sive does not serve"
            )
        _check_shapes(layer, config, base if is_known else None, findings)
    if config is not None and base is not None:
        _check_targets(config, set(layers), base, findings)


def _refuse_module(module: str, base: BaseModel, of_any_layer: set[str], findings: Findings) -> None:
    if module.rsplit(".", 1)[-1] in NO_LINEAR:
        findings.add("embedding", f"module {shown(module)} is an embedding, which sive does not serve")
    elif NUMBER.sub("*", module) in of_any_layer:
        findings.add(
            "unknown_layer", f"module {shown(module)} is of a layer that {base.name} has not: another base?"
        )
    elif f"model.{module}" in base.modules:
        findings.add(
            "unknown_module",
            f"module {shown(module)} lacks 'model.': it was trained on the model without its head, and vLLM "
            "would ignore it: train on AutoModelForCausalLM, or rename the tensors",
        )
    else:
        findings.add(
            "unknown_module", f"{base.name} has no linear module {shown(module)}: another base model?"
        )


def _check_shapes(
    layer: Layer, config: LoraConfig | None, base: BaseModel | None, findings: Findings
) -> None:
    ranks = {}
    for half, name_and_tensor in layer.halves.items():
        name, tensor = name_and_tensor
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            findings.add(
                "shape", f"tensor {shown(name)} has the shape {shown(list(tensor.shape))}, no matrix's"
            )
            return
        rank_at = 0 if half == "A" else 1
        ranks[half] = tensor.shape[rank_at]
        if config is not None and ranks[half] != (rank := config.rank(layer.module)):
            findings.add(
                "rank_mismatch",
                f"tensor {shown(name)} has rank {ranks[half]}, adapter_config.json says {rank}: it would be "
                "scaled wrongly: correct r or rank_pattern",
            )
        if base is not None:
            has, wants = tensor.shape[1 - rank_at], base.modules[layer.module][rank_at]
            if has != wants:
                what = "inputs" if half == "A" else "outputs"
                findings.add(
                    "shape",
                    f"tensor {shown(name)} has {has} {what}, {base.name} has {wants}: another base model?",
                )
    if len(layer.halves) != 2:
        (name, _), missing = next(iter(layer.halves.values())), "B" if "A" in layer.halves else "A"
        findings.add(
            "half_missing", f"tensor {shown(name)} has no lora_{missing} beside it: save the adapter again"
        )
    elif config is None and ranks["A"] != ranks["B"]:
        findings.add(
            "rank_mismatch", f"the halves of {shown(layer.module)} have ranks {ranks['A']} and {ranks['B']}"
        )


def _check_targets(config: LoraConfig, modules: set[str], base: BaseModel, findings: Findings) -> None:
    """What is trained and what is there; where they differ, PEFT and vLLM may compute different things."""
    targets = config.target_modules
    if not targets:
        return
    targeted = {module for module in base.modules if _ends_with(module, targets)}
    if others := sorted((modules & set(base.modules)) - targeted):
        findings.add(
            "not_targeted",
            f"module {shown(others[0])} is adapted, though target_modules does not name it: vLLM applies it",
            is_fatal=False,
        )
    missing = sorted(targeted - modules)
    if missing and not config.is_partial:
        findings.add(
            "incomplete",
            f"{len(missing)} of {len(targeted)} target modules have no tensors, first {shown(missing[0])}",
            is_fatal=False,
        )


def _ends_with(module: str, targets: frozenset[str]) -> bool:
    parts = module.split(".")
    return any(".".join(parts[at:]) in targets for at in range(len(parts)))


def _check_dtypes(tensors: Mapping[str, Tensor], findings: Findings) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            findings.add(
                "dtype",
                f"tensor {shown(name)} is {shown(tensor.dtype)}: save the adapter in {', '.join(DTYPES)}",
            )


def _check_scaled(
    layers: Mapping[str, Layer], config: LoraConfig, largest: Mapping[str, float], findings: Findings
) -> None:
    """No trained weight is near what float16 holds; in an engine of float16 it would become Inf."""
    for layer in layers.values():
        for half, (name, _) in layer.halves.items():
            value = largest.get(name, 0.0) * (config.scaling(layer.module) if half == "B" else 1.0)
            if math.isfinite(value) and value > MAX_FLOAT16:
                findings.add(
                    "overflow",
                    f"tensor {shown(name)} reaches {value:.3g} when scaled, Inf in float16: train again",
                )


def _check_trained(layers: Mapping[str, Layer], largest: Mapping[str, float], findings: Findings) -> None:
    def is_silent(layer: Layer) -> bool:
        return any(largest.get(name) == 0 for name, _ in layer.halves.values())

    if layers and all(map(is_silent, layers.values())):
        findings.add(
            "untrained",
            "every module has a half of zeros, as before a training: it would answer as its base does",
            is_fatal=False,
        )
