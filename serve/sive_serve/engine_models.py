"""The models an engine serves, and the weights string that tells whether two answers are the same voice."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sive.config import EngineSettings
from sive.errors import EngineError
from sive_adapters.adapters import Adapter
from sive_adapters.registry import base_model_of

DIGEST_CHARS = 12
BASE_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


@dataclass(frozen=True)
class EngineModel:
    """One served model: its ``weights``, and for an adapter its base's served name as ``parent``."""

    name: str
    weights: str
    parent: str | None = None


def model_of(settings: EngineSettings) -> str:
    """Return what vLLM is told to load: a hub id, or the absolute path of a folder.

    Raises:
        EngineError: the model is written as a path, and there is no such folder.
    """
    model = base_model_of(settings.model, Path())
    if model.startswith(("/", ".", "~")) and not Path(model).is_dir():
        raise EngineError(f"model folder {model} does not exist: correct model under [engine]")
    return model


def engine_models(settings: EngineSettings, adapters: tuple[Adapter, ...]) -> dict[str, EngineModel]:
    """Return every served model by name, the base first. Reads the adapters' weights to identify them.

    Raises:
        EngineError: two of them have the same name.
    """
    model = model_of(settings)
    is_folder = Path(model).is_dir()
    name = settings.served_model_name or (Path(model).name if is_folder else model)
    weights = f"{Path(model).name}@{_digest(_describe_base(Path(model)))}" if is_folder else model
    if not is_folder and (revision := settings.passed_through.get("revision")):
        weights += f"@{revision}"
    models = {name: EngineModel(name, weights)}
    for adapter in adapters:
        if adapter.name in models:
            raise EngineError(f"adapter {adapter.name!r} has the name of another model: rename it")
        digest = _digest(_contents(adapter.path / "adapter_config.json", adapter.weights_file))
        models[adapter.name] = EngineModel(adapter.name, f"{weights}+{adapter.name}@{digest}", parent=name)
    return models


def _digest(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:DIGEST_CHARS]


def _describe_base(folder: Path) -> Iterator[bytes]:
    """Yield config.json and each weight file's name and size: tens of gigabytes are not worth reading."""
    yield from _contents(folder / "config.json")
    files = sorted(path for pattern in BASE_WEIGHTS for path in folder.glob(pattern))
    yield json.dumps([(path.name, path.stat().st_size) for path in files]).encode()


def _contents(*files: Path) -> Iterator[bytes]:
    for file in files:
        try:
            with file.open("rb") as content:
                while part := content.read(2**20):
                    yield part
        except OSError as exc:
            raise EngineError(f"cannot read {file}: {exc.strerror}") from exc
