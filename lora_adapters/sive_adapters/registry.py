"""The adapters that are wanted: ``adapters.toml``, read, checked and changed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Release:
    """One version of an adapter as it is wanted: where it is from, and what its files must be.

    ``source`` is as written; ``sha256`` maps file names to lowercase hex and is empty when not pinned.
    """

    source: str
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Adapter:
    """One ``[[adapter]]``.

    ``base_model`` is a hub id or the absolute path of a folder; ``previous`` what a rollback goes back to,
    newest first; ``sampling`` fills only keys that a request lacks.
    """

    name: str
    base_model: str
    release: Release
    previous: tuple[Release, ...] = ()
    system_prompt: str | None = None
    languages: tuple[str, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)


def read_adapters(path: Path) -> tuple[Adapter, ...]:
    """Read and check ``adapters.toml``.

    Raises:
        AdapterError: the file or an entry is wrong; one line names what, and the way out.
    """
    raise NotImplementedError


def adapters_for(adapters: tuple[Adapter, ...], model: str) -> tuple[tuple[Adapter, ...], tuple[str, ...]]:
    """Return the adapters trained on ``model``, and the names of all the others."""
    raise NotImplementedError


def edit(path: Path, change: Callable[[tuple[Adapter, ...]], tuple[Adapter, ...]]) -> tuple[Adapter, ...]:
    """Change the list: the only writer of ``adapters.toml``."""
    raise NotImplementedError
