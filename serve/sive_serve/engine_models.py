"""The models an engine serves, and the weights string that tells whether two answers are the same voice."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sive.assemble import EngineModel
from sive.config import EngineSettings
from sive.errors import EngineError
from sive_adapters.registry import base_model_of

from sive_serve.adapter_state import AdapterState

DIGEST_CHARS = 12
BASE_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


@dataclass(frozen=True, slots=True)
class Base:
    """The base model: what callers call it, what vLLM is told to load, and its ``weights``."""

    name: str
    path: str
    weights: str


def read_base(settings: EngineSettings) -> Base:
    """Return what the engine is told to serve: a hub id, or the absolute path of a folder.

    Raises:
        EngineError: the model is written as a path, and there is no such folder.
    """
    path = base_model_of(settings.model, Path())
    if path.startswith(("/", ".", "~")) and not Path(path).is_dir():
        raise EngineError(f"model folder {path} does not exist: correct model under [engine]")
    is_folder = Path(path).is_dir()
    is_named_by_place = is_folder or "://" in path
    name = settings.served_model_name or (Path(path).name if is_named_by_place else path)
    weights = f"{Path(path).name}@{_digest(_describe(Path(path)))}" if is_folder else path
    if not is_folder and (revision := settings.passed_through.get("revision")):
        weights += f"@{revision}"
    return Base(name, path, weights)


def engine_models(base: Base, adapters: Iterable[AdapterState]) -> dict[str, EngineModel]:
    """Return every model that is served or wanted, by the name callers know, the base first.

    Raises:
        EngineError: an adapter has the base model's name.
    """
    models = {base.name: EngineModel(base.name, base.weights, engine_name=base.name)}
    for state in adapters:
        adapter, version = state.adapter, state.serving or state.wanted
        if adapter.name == base.name:
            raise EngineError(f"adapter {adapter.name!r} has the name of the base model: rename it")
        models[adapter.name] = EngineModel(
            adapter.name,
            None if version is None else f"{base.weights}+{adapter.name}@{version.short}",
            parent=base.name,
            engine_name=state.engine_name or adapter.name,
            system_prompt=adapter.system_prompt,
            sampling=dict(adapter.sampling),
        )
    return models


def _digest(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:DIGEST_CHARS]


def _describe(folder: Path) -> Iterator[bytes]:
    """Yield config.json and each weight file's name and size: tens of gigabytes are not worth reading."""
    file = folder / "config.json"
    try:
        yield file.read_bytes()
    except OSError as exc:
        raise EngineError(f"cannot read {file}: {exc.strerror}") from exc
    files = sorted(path for pattern in BASE_WEIGHTS for path in folder.glob(pattern))
    yield json.dumps([(path.name, path.stat().st_size) for path in files]).encode()
