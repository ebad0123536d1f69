"""Adapters made from the tiny ones by breaking them in one way each, and sound ones of other shapes."""

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sive.local.safetensors import SafeTensors

from tests.conftest import TINY

Array = npt.NDArray[Any]
Config = dict[str, Any]
Tensors = dict[str, Array]

DTYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "float64": "F64", "int8": "I8"}
"""numpy's name of a type: safetensors'; uint16 stands for BF16, the upper half of a float32."""

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
RANK = 8


@dataclass(frozen=True)
class Made:
    """An adapter made from ``spinoza``. ``code``: what the check refuses it for.

    ``vllm``: what vLLM 0.32 does with it when asked to load it; ``serves`` is silent acceptance.
    """

    change: Callable[[Config, Tensors], None]
    code: str = ""
    vllm: Literal["serves", "refuses"] = "refuses"


def make(made: Made, folder: Path) -> Path:
    """Write the adapter to a new folder, and return it."""
    folder.mkdir(parents=True)
    config, tensors = read(TINY / "spinoza")
    made.change(config, tensors)
    write(folder, config, tensors)
    return folder


def read(folder: Path) -> tuple[Config, Tensors]:
    """Return what an adapter's two files say."""
    file = SafeTensors(folder / "adapter_model.safetensors")
    tensors = {name: np.array(file.view(name)) for name in file.tensors}
    return json.loads((folder / "adapter_config.json").read_text()), tensors


def write(folder: Path, config: Config, tensors: Mapping[str, Array]) -> None:
    """Write an adapter's two files."""
    (folder / "adapter_config.json").write_text(json.dumps(config))
    entries, at = {}, 0
    for name, array in tensors.items():
        entries[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, at := at + array.nbytes],
        }
    write_raw(folder, json.dumps(entries).encode(), b"".join(array.tobytes() for array in tensors.values()))


def write_raw(folder: Path, header: bytes, data: bytes = b"", *, length: int | None = None) -> None:
    """Write a safetensors file of these parts; ``length`` is what it says of its header's length."""
    prefix = struct.pack("<Q", len(header) if length is None else length)
    (folder / "adapter_model.safetensors").write_bytes(prefix + header + data)


def copy_of(name: str, folder: Path) -> Path:
    """Copy a tiny adapter."""
    return Path(shutil.copytree(TINY / name, folder))


def bfloat16(array: Array) -> Array:
    """The upper half of each float32."""
    return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def of_rank(rank: int, name: str, folder: Path) -> Path:
    """Write a tiny adapter again with a larger rank, a multiple of its own, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config, tensors = read(TINY / name)
    times = rank // int(config["r"])
    repeats = {key: (times, 1) if "lora_A" in key else (1, times) for key in tensors}
    write(folder, {**config, "r": rank}, {key: np.tile(one, repeats[key]) for key, one in tensors.items()})
    return folder


def _set(**keys: Any) -> Callable[[Config, Tensors], None]:
    return lambda config, tensors: config.update(keys)


def _all(change: Callable[[Array], Array]) -> Callable[[Config, Tensors], None]:
    def on_all(config: Config, tensors: Tensors) -> None:
        tensors.update({name: change(array) for name, array in tensors.items()})

    return on_all


def _one(name: str, change: Callable[[Array], Array]) -> Callable[[Config, Tensors], None]:
    def on_one(config: Config, tensors: Tensors) -> None:
        tensors[name] = change(tensors[name])

    return on_one


def _resized(rank: int | None = None, features: int = 0) -> Callable[[Config, Tensors], None]:
    """Give every module another rank, cut off or padded with zeros, or more or fewer features."""

    def change(config: Config, tensors: Tensors) -> None:
        for name, array in tensors.items():
            rank_axis = 0 if "lora_A" in name else 1
            shape = list(array.shape)
            shape[rank_axis] = rank or RANK
            shape[1 - rank_axis] += features
            resized = np.zeros(shape, array.dtype)
            kept = tuple(slice(0, min(pair)) for pair in zip(shape, array.shape, strict=True))
            resized[kept] = array[kept]
            tensors[name] = resized

    return change


def _renamed(old: str, new: str) -> Callable[[Config, Tensors], None]:
    def change(config: Config, tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def _only(text: str) -> Callable[[Config, Tensors], None]:
    def change(config: Config, tensors: Tensors) -> None:
        for name in [name for name in tensors if text not in name]:
            del tensors[name]

    return change


def _without(name: str) -> Callable[[Config, Tensors], None]:
    return lambda config, tensors: tensors.__delitem__(name)


def _with(**added: tuple[int, ...]) -> Callable[[Config, Tensors], None]:
    def change(config: Config, tensors: Tensors) -> None:
        for name, shape in added.items():
            tensors[name.replace("__", ".")] = np.full(shape, 0.01, np.float32)

    return change


def _both(*changes: Callable[[Config, Tensors], None]) -> Callable[[Config, Tensors], None]:
    def change(config: Config, tensors: Tensors) -> None:
        for one in changes:
            one(config, tensors)

    return change


def _holding(value: float) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        array = array.copy()
        array[-1, -1] = value
        return array

    return change


BROKEN: dict[str, Made] = {
    "lokr": Made(_set(peft_type="LOKR"), "peft_type", "serves"),
    "rank of the config too large": Made(_set(r=16), "rank_mismatch", "serves"),
    "rank of the tensors too small": Made(_resized(rank=4), "rank_mismatch", "serves"),
    "rank of the tensors too large": Made(_resized(rank=16), "rank_mismatch", "serves"),
    "rank of the tensors above the engine's": Made(_resized(rank=32), "rank_mismatch"),
    "rank pattern of another rank": Made(
        _set(rank_pattern={r"layers\.0\.self_attn\.q_proj": 4}), "rank_mismatch", "serves"
    ),
    "no rank": Made(_set(r=0), "rank"),
    "rank that is text": Made(_set(r="8"), "rank"),
    "alpha of zero": Made(_set(lora_alpha=0), "alpha", "serves"),
    "alpha that is not a number": Made(_set(lora_alpha=None), "alpha"),
    "rslora that is text": Made(_set(use_rslora="false"), "alpha", "serves"),
    "pattern that is none": Made(_set(rank_pattern={"(": 8}), "pattern"),
    "pattern that never ends": Made(_set(rank_pattern={"(a+)+b": 8}), "pattern", "serves"),
    "more wildcards than anybody needs": Made(
        _set(rank_pattern={f"x{number}.*": 8 for number in range(65)}), "pattern", "serves"
    ),
    "no target modules": Made(_set(target_modules=None), "target_modules", "serves"),
    "dora": Made(_set(use_dora=True), "dora"),
    "dora in the tensors": Made(_with(**{Q0.replace(".", "__") + "__lora_magnitude_vector": (192,)}), "dora"),
    "bias": Made(_set(bias="all"), "bias"),
    "bias of a half": Made(_set(lora_bias=True), "bias"),
    "bias in the tensors": Made(_with(**{Q0.replace(".", "__") + "__lora_B__bias": (192,)}), "bias"),
    "pissa": Made(_set(init_lora_weights="pissa"), "unsupported"),
    "trained tokens": Made(_set(trainable_token_indices=[1]), "unsupported", "serves"),
    "modules to save": Made(
        _both(_set(modules_to_save=["lm_head"]), _with(base_model__model__lm_head__weight=(2000, 192))),
        "modules_to_save",
    ),
    "modules to save that are not there": Made(_set(modules_to_save=["lm_head"]), "modules_to_save"),
    "a whole layer in the tensors": Made(
        _with(base_model__model__lm_head__weight=(2000, 192)), "modules_to_save"
    ),
    "embedding": Made(
        _with(
            base_model__model__model__embed_tokens__lora_embedding_A=(RANK, 2000),
            base_model__model__model__embed_tokens__lora_embedding_B=(192, RANK),
        ),
        "embedding",
    ),
    "embedding of the base": Made(
        _with(base_model__model__model__embed_tokens__base_layer__weight=(2000, 192)), "embedding", "serves"
    ),
    "head": Made(
        _with(
            base_model__model__lm_head__lora_A__weight=(RANK, 192),
            base_model__model__lm_head__lora_B__weight=(2000, RANK),
        ),
        "embedding",
    ),
    "too few features": Made(_resized(features=-16), "shape", "serves"),
    "too few inputs of one": Made(_one(f"{Q0}.lora_A.weight", lambda a: a[:, :-1]), "shape", "serves"),
    "too few outputs of one": Made(_one(f"{Q0}.lora_B.weight", lambda b: b[:-1]), "shape", "serves"),
    "too many features": Made(_resized(features=16), "shape"),
    "a tensor that is no matrix": Made(_one(f"{Q0}.lora_A.weight", np.ravel), "shape"),
    "a layer too many": Made(_renamed("layers.3.", "layers.9."), "unknown_layer", "serves"),
    "the model without its head": Made(
        _renamed("model.model.model.", "model.model."), "unknown_module", "serves"
    ),
    "a name twice": Made(
        _with(model__layers__0__self_attn__q_proj__lora_A__weight=(RANK, 192)), "unknown_tensor", "serves"
    ),
    "a module of another family": Made(_renamed("self_attn.q_proj", "self_attn.c_attn"), "unknown_module"),
    "a tensor of training": Made(_renamed(".weight", ".default.weight"), "unknown_tensor"),
    "half a module": Made(_without(f"{Q0}.lora_B.weight"), "half_missing"),
    "nan": Made(_one(f"{Q0}.lora_A.weight", _holding(np.nan)), "not_finite", "serves"),
    "inf": Made(_one(f"{Q0}.lora_B.weight", _holding(np.inf)), "not_finite", "serves"),
    "minus inf": Made(_one(f"{Q0}.lora_B.weight", _holding(-np.inf)), "not_finite", "serves"),
    "nan in bfloat16": Made(
        _both(_one(f"{Q0}.lora_B.weight", _holding(-np.nan)), _all(bfloat16)), "not_finite", "serves"
    ),
    "nan in float16": Made(
        _both(_one(f"{Q0}.lora_B.weight", _holding(np.nan)), _all(lambda a: a.astype(np.float16))),
        "not_finite",
        "serves",
    ),
    "values above float16's": Made(_one(f"{Q0}.lora_B.weight", _holding(-1e5)), "overflow", "serves"),
    "values that rslora scales above float16's": Made(
        _both(_one(f"{Q0}.lora_B.weight", _holding(1e3)), _set(lora_alpha=256, use_rslora=True)),
        "overflow",
        "serves",
    ),
    "float64": Made(_all(lambda a: a.astype(np.float64)), "dtype", "serves"),
    "int8": Made(_all(lambda a: (a * 100).astype(np.int8)), "dtype", "serves"),
    "no tensors": Made(lambda config, tensors: tensors.clear(), "weights_empty"),
    "another base": Made(_set(base_model_name_or_path="Qwen/Qwen2.5-7B-Instruct"), "base_model", "serves"),
}
"""What an adapter can be broken by while both its files can be read, and what the check says of it."""

SOUND: dict[str, Made] = {
    "as it is": Made(_set()),
    "bfloat16": Made(_all(bfloat16)),
    "float16": Made(_all(lambda a: a.astype(np.float16))),
    "rank 16": Made(_both(_resized(rank=16), _set(r=16, lora_alpha=32))),
    "rank 4": Made(_both(_resized(rank=4), _set(r=4, lora_alpha=8))),
    "rslora": Made(_set(use_rslora=True, lora_alpha=6)),
    "rank pattern": Made(_both(_resized(rank=4), _set(r=8, rank_pattern={r".*\.(self_attn|mlp)\.\w+": 4}))),
    "alpha pattern": Made(_set(alpha_pattern={"q_proj": 32})),
    "attention alone": Made(
        _both(_only("self_attn"), _set(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    ),
    "some layers": Made(_both(_only("layers.1."), _set(layers_to_transform=[1]))),
    "targets by pattern": Made(_set(target_modules=r".*\.(self_attn|mlp)\..*_proj")),
    "without the prefix": Made(_renamed("base_model.model.", "")),
    "another form of the base": Made(_set(base_model_name_or_path="unsloth/Tiny-bnb-4bit")),
}
"""What is served, and how it differs from the usual."""
