"""Whether an adapter can be loaded and will do what it was trained to, looked at before any engine does."""

import re
import stat
from pathlib import Path

from sive.errors import AdapterError

from sive_adapters.base_model import BaseModel
from sive_adapters.findings import Finding, Findings
from sive_adapters.lora_config import LoraConfig, lora_config, lora_rank, read_json, shown
from sive_adapters.progress import Told, nobody
from sive_adapters.registry import HUB_ID
from sive_adapters.store import CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE

__all__ = ["Finding", "check", "lora_rank"]

PICKLES = (PICKLE_FILE, "adapter_model.pt")

QUANTIZED = re.compile(
    r"(?:-unsloth)?-(?:bnb-)?(?:[48]bit|awq|gptq|fp8|int[48]|gguf|w[48]a(?:8|16)|dynamic)(?:-\w+)?$", re.I
)
"""What is appended to a model's name for another form of the same weights."""


def check(
    folder: Path,
    base: BaseModel | None,
    *,
    max_lora_rank: int | None = None,
    base_model: str | None = None,
    told: Told = nobody,
) -> tuple[Finding, ...]:
    """Return everything that is wrong with an adapter's folder, what is fatal first; nothing is executed.

    ``base``: without it shapes and names cannot be compared, which is a finding. ``base_model``: what the
    list says it was trained on. ``max_lora_rank``: what the engine allows.
    """
    findings = Findings()
    if not folder.is_dir():
        findings.add("folder_missing", f"there is no folder {folder}: correct its source")
        return findings.found()
    config = _config(folder, findings)
    if config is not None:
        _check_rank(config, max_lora_rank, findings)
        _check_base_model(config, base_model or (base.name if base else None), findings)
    if base is None:
        findings.add(
            "shapes_not_checked",
            "its layers were not compared with the base model's, which is not on this machine",
            is_fatal=False,
        )
    weights = _weights(folder, findings)
    if weights is not None:
        from sive_adapters.lora_tensors import check_tensors

        check_tensors(weights, config, base, findings, told=told)
    return findings.found()


def _config(folder: Path, findings: Findings) -> LoraConfig | None:
    file = folder / CONFIG_FILE
    if not _is_own_file(file, folder, findings):
        if not file.is_symlink() and not file.exists():
            findings.add("config_missing", f"{file} is missing: PEFT's save_pretrained writes it")
        return None
    try:
        config = read_json(file)
    except AdapterError as exc:
        findings.add("config_unreadable", str(exc))
        return None
    return lora_config(config, findings)


def _weights(folder: Path, findings: Findings) -> Path | None:
    file = folder / WEIGHTS_FILE
    if _is_own_file(file, folder, findings):
        return file
    if file.is_symlink() or file.exists():
        return None
    if pickled := [name for name in PICKLES if (folder / name).exists()]:
        findings.add(
            "pickle",
            f"{pickled[0]} is a pickle, which can hold a program and is never opened: load it with PEFT "
            "where you trust it, and save_pretrained(FOLDER), which writes safetensors",
        )
    else:
        findings.add("weights_missing", f"{file} is missing: PEFT's save_pretrained writes it")
    return None


def _is_own_file(file: Path, folder: Path, findings: Findings) -> bool:
    """Is it a regular file within the folder? What is there but is not is reported."""
    try:
        target = file.resolve(strict=True)
        mode = target.stat().st_mode
    except (OSError, RuntimeError):  # a link to nowhere, or in a circle
        if file.is_symlink():
            findings.add("symlink", f"{file} is a link that leads nowhere: copy the file itself")
        return False
    if not target.is_relative_to(folder.resolve()):
        findings.add("symlink", f"{file} is a link out of its folder: copy the files themselves (cp -rL)")
        return False
    if not stat.S_ISREG(mode):
        findings.add("not_a_file", f"{file} is no file: PEFT's save_pretrained writes one")
        return False
    return True


def _check_rank(config: LoraConfig, max_lora_rank: int | None, findings: Findings) -> None:
    rank = config.largest_rank
    if max_lora_rank is not None and rank > max_lora_rank:
        findings.add(
            "rank_too_large",
            f"it has rank {rank}, the engine allows {max_lora_rank}: raise max_lora_rank under [engine]",
        )


def _check_base_model(config: LoraConfig, base_model: str | None, findings: Findings) -> None:
    trained_on = config.base_model
    if not base_model or not trained_on or _plain(trained_on) == _plain(base_model):
        return
    are_hub_ids = all("/" in name and HUB_ID.fullmatch(name) for name in (trained_on, base_model))
    if are_hub_ids:
        said = f"it was trained on {shown(trained_on)}, not on {shown(base_model)}: correct it in the list"
    else:  # a folder may hold anything
        said = f"names alone do not tell whether {shown(trained_on)}, its base, is {shown(base_model)}"
    findings.add("base_model", said, is_fatal=are_hub_ids)


def _plain(model: str) -> str:
    """The model's own name: without who published it, and in which form."""
    name = model.rstrip("/").rsplit("/", 1)[-1]
    while (shorter := QUANTIZED.sub("", name)) != name:
        name = shorter
    return name.lower()
