"""What an adapter must fit: the linear layers of its base model, by name and shape."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sive.errors import AdapterError, LocalModelError

from sive_adapters.registry import HUB_ID

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
"""``model_type`` of the families whose layers have Llama's names and shapes."""

LINEAR_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Types whose tensors have the layer's own shape; 4-bit weights are packed otherwise."""

NO_LINEAR = ("embed_tokens", "lm_head", "wte", "wpe")
"""Matrices that are no linear layers of a block: vLLM adapts no embeddings."""

MAX_LAYERS = 4096


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model's linear layers: full module name to (in, out) features.

    ``name`` is the hub id or folder it was read for.
    """

    name: str
    modules: Mapping[str, tuple[int, int]]


def read_base_model(model: str, revision: str | None = None) -> BaseModel | None:
    """Return what this machine knows of a hub id or an absolute folder; None when it cannot be known.

    The headers of its own weights say it best; where they are not here, or packed, ``config.json`` does
    for Llama's relatives. Nothing is downloaded.

    Raises:
        AdapterError: it is here, but cannot be read.
    """
    folder = Path(model) if Path(model).is_absolute() else _cached(model, revision)
    if folder is None or not folder.is_dir():
        return None
    modules = dict(_from_weights(folder)) or dict(_from_config(folder))
    return BaseModel(model, modules) if modules else None


def _cached(model: str, revision: str | None) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ModuleNotFoundError:
        return None
    if not HUB_ID.fullmatch(model):
        return None
    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _from_weights(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    from sive.local.safetensors import read_header

    for file in _shards(folder):
        try:
            tensors = read_header(file)
        except LocalModelError as exc:
            raise AdapterError(f"the base model cannot be read: {exc}") from exc
        for name, tensor in tensors.items():
            module = name.removesuffix(".weight")
            is_linear = module != name and len(tensor.shape) == 2 and tensor.dtype in LINEAR_DTYPES
            if is_linear and module.rsplit(".", 1)[-1] not in NO_LINEAR:
                yield module, (tensor.shape[1], tensor.shape[0])


def _shards(folder: Path) -> list[Path]:
    """The files of its weights; none when not all are here."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    names = _config(index).get("weight_map")
    files = {folder / Path(str(name)).name for name in (names.values() if isinstance(names, dict) else ())}
    return sorted(files) if all(file.is_file() for file in files) else []


def _from_config(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    config = _config(folder / "config.json")
    if config.get("model_type") not in LLAMA_LIKE:
        return
    size = {key: _count(config, key) for key in ("hidden_size", "intermediate_size", "num_attention_heads")}
    layers, heads = min(_count(config, "num_hidden_layers"), MAX_LAYERS), size["num_attention_heads"]
    hidden, inner = size["hidden_size"], size["intermediate_size"]
    head_dim = _count(config, "head_dim", default=hidden // heads)
    queries = heads * head_dim
    keys = _count(config, "num_key_value_heads", default=heads) * head_dim
    for layer in range(layers):
        at = f"model.layers.{layer}"
        yield f"{at}.self_attn.q_proj", (hidden, queries)
        yield f"{at}.self_attn.k_proj", (hidden, keys)
        yield f"{at}.self_attn.v_proj", (hidden, keys)
        yield f"{at}.self_attn.o_proj", (queries, hidden)
        yield f"{at}.mlp.gate_proj", (hidden, inner)
        yield f"{at}.mlp.up_proj", (hidden, inner)
        yield f"{at}.mlp.down_proj", (inner, hidden)


def _config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise AdapterError(f"the base model's {file} cannot be read: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise AdapterError(f"the base model's {file} is not JSON: {exc}") from exc
    if not isinstance(config, dict):
        raise AdapterError(f"the base model's {file} is not a JSON object")
    return config


def _count(config: Mapping[str, Any], key: str, *, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise AdapterError(f"the base model's config.json has {key} = {value!r}, expected a positive number")
    return value
