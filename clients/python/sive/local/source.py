"""A plain Hugging Face folder with a GPT-2 in it: what it says of itself, and what its content is."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from sive.errors import LocalModelError

FILES = ("config.json", "model.safetensors", "tokenizer.json", "vocab.json", "merges.txt")
"""All a conversion reads; ``vocab.json`` and ``merges.txt`` only where there is no ``tokenizer.json``."""

ACTIVATIONS = {"gelu_new": "GELUTanh", "gelu": "GELU", "relu": "RELU", "gelu_pytorch_tanh": "GELUTanh"}
"""transformers' name of an activation: CTranslate2's."""
UNUSUAL = {"scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True, "add_cross_attention": False}
"""Switches CTranslate2's GPT-2 does not have, with the value it computes."""


def read_config(source: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a GPT-2 folder.

    Raises:
        LocalModelError: missing, not JSON, or another architecture.
    """
    path = source / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        model_type = config.get("model_type")
    except OSError as exc:
        raise LocalModelError(
            f"{source} is no model folder: config.json cannot be read ({exc.strerror})"
        ) from exc
    except (ValueError, AttributeError) as exc:
        raise LocalModelError(f"{path} is not a JSON object: {exc}") from exc
    if model_type != "gpt2":
        raise LocalModelError(f"{path}: model_type is {model_type!r}, the CPU model can only be 'gpt2'")
    for key, value in UNUSUAL.items():
        if config.get(key, value) != value:
            raise LocalModelError(f"{path}: {key} = {config[key]} is not supported")
    if config.get("activation_function", "gelu_new") not in ACTIVATIONS:
        raise LocalModelError(
            f"{path}: activation_function {config['activation_function']!r} is not supported"
        )
    return dict(config)


def weights_file(source: Path) -> Path:
    """Return the folder's ``model.safetensors``.

    Raises:
        LocalModelError: there is none.
    """
    path = source / "model.safetensors"
    if not path.is_file():
        raise LocalModelError(f"{source} has no model.safetensors: pytorch_model.bin and shards are not read")
    return path


def context_tokens(source: Path) -> int:
    """Return the context a folder's ``config.json`` states.

    Raises:
        LocalModelError: it states none.
    """
    positions = read_config(source).get("n_positions", 1024)
    if not isinstance(positions, int) or positions < 1:
        raise LocalModelError(f"{source / 'config.json'}: n_positions is {positions!r}")
    return positions


def fingerprint(source: Path) -> str:
    """Return 12 hex digits of the SHA-256 over all that a conversion reads.

    A model of 500 MB takes a few tenths of a second; files that did not change are hashed once a process.
    """
    whole = hashlib.sha256()
    for name in FILES:
        path = source / name
        if path.is_file():
            stat = path.stat()
            whole.update(f"{name} {_digest(path, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return whole.hexdigest()[:12]


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
