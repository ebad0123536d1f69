"""Adapters on disk: what ``adapters.toml`` lists, what each was trained on, and with which rank."""

import json
import re
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sive.errors import AdapterError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
KEYS = ("name", "source", "base_model")
# As PEFT saves them; vLLM takes the first that is there.
WEIGHTS_FILES = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Adapter:
    """A LoRA in a local folder.

    ``base_model`` is a hub id, or the absolute path of a folder; ``rank`` the largest its layers have.
    """

    name: str
    path: Path
    base_model: str
    rank: int

    @property
    def weights_file(self) -> Path:
        """The file its tensors are in."""
        return weights_file(self.path)


def read_adapters(path: Path) -> tuple[Adapter, ...]:
    """Read and check ``adapters.toml``; ``file:`` sources are relative to it.

    Raises:
        AdapterError: the file or an adapter in it is wrong; one line names what, and the way out.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise AdapterError(f"cannot read {path}: {exc.strerror}") from exc
    except ValueError as exc:  # not TOML, or not UTF-8
        raise AdapterError(f"{path} is not TOML: {exc}") from exc
    _refuse_unknown(document, ("adapter",), where=str(path))
    tables = document.get("adapter", [])
    if not isinstance(tables, list):
        raise AdapterError(f"{path}: write each adapter under [[adapter]], with two brackets")
    adapters = tuple(_read_adapter(table, path.parent) for table in tables)
    names = [adapter.name for adapter in adapters]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise AdapterError(f"{path}: two adapters are called {twice[0]!r}: give each its own name")
    return adapters


def adapters_for(adapters: tuple[Adapter, ...], model: str) -> tuple[tuple[Adapter, ...], tuple[str, ...]]:
    """Return the adapters trained on ``model``, and the names of all the others."""
    base = base_model_of(model, Path())
    ours = tuple(adapter for adapter in adapters if adapter.base_model == base)
    return ours, tuple(adapter.name for adapter in adapters if adapter not in ours)


def base_model_of(model: str, folder: Path) -> str:
    """Return a hub id as it is, and a ``file:`` or existing folder as its absolute path."""
    is_file = model.startswith("file:")
    path = folder / Path(model.removeprefix("file:")).expanduser()
    return str(path.resolve()) if is_file or path.is_dir() else model


def weights_file(folder: Path) -> Path:
    """Return the file that holds an adapter's tensors.

    Raises:
        AdapterError: there is none.
    """
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise AdapterError(f"adapter folder {folder} has no weights: expected {' or '.join(WEIGHTS_FILES)}")


def lora_rank(folder: Path) -> int:
    """Return the largest rank an adapter was trained with: ``r``, or one of its ``rank_pattern``.

    Raises:
        AdapterError: ``adapter_config.json`` is missing or describes no LoRA.
    """
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except OSError as exc:
        raise AdapterError(f"cannot read {file}: {exc.strerror}; PEFT's save_pretrained writes it") from exc
    except ValueError as exc:
        raise AdapterError(f"{file} is not JSON: {exc}") from exc
    # vLLM answers 200 for a LoKr and then computes it as if it were a LoRA.
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterError(f'{file} describes no LoRA: vLLM serves only "peft_type": "LORA"')
    ranks: list[Any] = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(type(rank) is int and rank > 0 for rank in ranks):
        raise AdapterError(f"{file} has no usable rank: r is {config.get('r')!r}, expected a positive number")
    return int(max(ranks))


def _read_adapter(table: Any, folder: Path) -> Adapter:
    if not isinstance(table, dict):
        raise AdapterError("write each adapter under [[adapter]], as a table")
    where = f"adapter {table.get('name', '')!r}"
    _refuse_unknown(table, KEYS, where=where)
    for key in KEYS:
        if not isinstance(table.get(key), str) or not table[key]:
            raise AdapterError(f'{where} has no {key}: add {key} = "..."')
    if not NAME.fullmatch(table["name"]):
        raise AdapterError(
            f"{where} is badly named: letters, digits, '.', '_' and '-', a letter or digit first"
        )
    if not table["source"].startswith("file:"):
        raise AdapterError(
            f"{where} has the source {table['source']!r}, which cannot be served yet: "
            "download it and write file:FOLDER"
        )
    path = (folder / Path(table["source"].removeprefix("file:")).expanduser()).resolve()
    if not path.is_dir():
        raise AdapterError(f"{where}: there is no folder {path}: correct its source, or train it first")
    rank = lora_rank(path)
    weights_file(path)
    return Adapter(table["name"], path, base_model_of(table["base_model"], folder), rank)


def _refuse_unknown(table: dict[str, Any], known: tuple[str, ...], *, where: str) -> None:
    for key in table:
        if key not in known:
            nearest = get_close_matches(key, known, n=1, cutoff=0)[0]
            raise AdapterError(f"{where} has an unknown key {key!r}: did you mean {nearest!r}?")
