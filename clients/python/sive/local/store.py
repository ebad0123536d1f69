"""Where prepared models lie, which there are, and which one answers."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from sive.config.sections import LocalSettings
from sive.errors import LocalModelError
from sive.local import source
from sive.local.memory import headroom_bytes

EMBEDDED = Path(__file__).parent / "embedded"
DEFAULT_DIR = Path("~/.cache/sive/weights")
MB = 1_000_000

RUNNING_BYTES = 220 * MB
"""What a model needs beside its weights: buffers, and the caches of four answers (measured with gpt2)."""

EMBEDDED_DEFAULT = "embedded default"
BEST_ON_DISK = "best on disk"
CONFIGURED = "configured"


@dataclass(frozen=True, slots=True)
class LocalModelInfo:
    """A model on disk. ``path``: its prepared folder, or a plain Hugging Face folder not converted yet.

    ``why`` is one phrase: why this one answers.
    """

    name: str
    weights: str
    context_tokens: int
    path: Path
    why: str

    @property
    def is_prepared(self) -> bool:
        """Whether the folder can be loaded as it is."""
        return (self.path / "sive.json").is_file()

    @property
    def size_bytes(self) -> int:
        """Size of the weights in memory; a plain folder's float32 shrink to a quarter."""
        if self.is_prepared:
            return (self.path / "model.bin").stat().st_size
        return source.weights_file(self.path).stat().st_size // 4


def weights_dir(settings: LocalSettings) -> Path:
    """Return the folder prepared models lie in; it need not exist."""
    return (settings.weights_dir or DEFAULT_DIR).expanduser().absolute()


def folder_name(name: str, version: str) -> str:
    """Return how the folder of a prepared model is called."""
    plain = "".join(char if char.isalnum() or char in "._-" else "--" for char in name).strip(".")
    return f"{plain}--{version}"


def read_info(folder: Path, why: str) -> LocalModelInfo:
    """Return what a prepared folder says of itself.

    Raises:
        LocalModelError: it is no prepared model.
    """
    try:
        about = json.loads((folder / "sive.json").read_text(encoding="utf-8"))
        name, weights, context = str(about["name"]), str(about["weights"]), int(about["context_tokens"])
    except OSError as exc:
        raise LocalModelError(
            f"{folder} is no prepared model: sive.json cannot be read ({exc.strerror})"
        ) from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise LocalModelError(
            f"{folder / 'sive.json'} is damaged ({exc!r}): prepare the model again"
        ) from exc
    for needed in ("model.bin", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise LocalModelError(f"{folder} is no prepared model: it has no {needed}")
    return LocalModelInfo(name, weights, context, folder, why)


def prepared(directory: Path, why: str = BEST_ON_DISK) -> list[LocalModelInfo]:
    """Return the prepared models of a folder, the largest first, of one name the newest first.

    What a conversion that died left behind begins with a dot and is none.
    """
    found = []
    folders = (
        sorted(directory.glob("[!.]*"), key=os.path.getmtime, reverse=True) if directory.is_dir() else []
    )
    for folder in folders:
        try:
            found.append(read_info(folder, why))
        except LocalModelError:
            continue
    return sorted(found, key=lambda info: info.size_bytes, reverse=True)


def find(model: str, directory: Path) -> LocalModelInfo:
    """Return the model a configuration names: a prepared one, or a folder.

    Raises:
        LocalModelError: there is no such model, or the folder holds none.
    """
    for info in prepared(directory, CONFIGURED):
        if model == info.name:
            return info
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise LocalModelError(
            f"{model!r} is neither a prepared model nor a folder: run `sive weights prepare {model}`"
        )
    return find_folder(folder.absolute(), directory)


def find_folder(folder: Path, directory: Path) -> LocalModelInfo:
    """Return the model in a folder; of a plain one its converted form, where that exists.

    Raises:
        LocalModelError: the folder holds no model the CPU can run.
    """
    if (folder / "sive.json").is_file():
        return read_info(folder, CONFIGURED)
    context = source.context_tokens(folder)
    source.weights_file(folder)
    version = source.fingerprint(folder)
    converted = directory / folder_name(folder.name, version)
    if (converted / "sive.json").is_file():
        return read_info(converted, CONFIGURED)
    return LocalModelInfo(folder.name, f"{folder.name}@{version}-int8", context, folder, CONFIGURED)


def choose(
    settings: LocalSettings, embedded: Path = EMBEDDED, free_bytes: int | None = None
) -> LocalModelInfo:
    """Return the model that is to answer: the configured one if it is there and fits, else the embedded one.

    Raises:
        LocalModelError: the embedded model is needed and not there.
    """
    if settings.model == "embedded":
        return read_info(embedded, CONFIGURED)
    directory = weights_dir(settings)
    try:
        wanted = prepared(directory) if settings.model == "auto" else [find(settings.model, directory)]
    except LocalModelError as exc:
        return read_info(embedded, str(exc))
    free = headroom_bytes() if free_bytes is None else free_bytes
    why = EMBEDDED_DEFAULT
    for info in wanted:
        needs = max(settings.headroom_mb * MB, info.size_bytes + RUNNING_BYTES)
        if needs <= free:
            return info
        why = f"only {free // MB} MB free: {info.name!r} needs {-(-needs // MB)} MB"
    return read_info(embedded, why)


def instead(embedded: Path, problem: LocalModelError) -> LocalModelInfo:
    """Return the embedded model, standing in because of a problem with another.

    Raises:
        LocalModelError: it is not there.
    """
    return replace(read_info(embedded, EMBEDDED_DEFAULT), why=str(problem))
