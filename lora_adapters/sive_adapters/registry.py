"""The adapters that are wanted: ``adapters.toml``, read, checked and changed."""

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sive.errors import AdapterError

from sive_adapters import sources
from sive_adapters.entries import AdapterEntry, ListEntry, ReleaseEntry, first_mistake
from sive_adapters.store import digest_of

LOCK_TIMEOUT_S = 30.0
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Release:
    """One version of an adapter as it is wanted: where it is from, and what its files must be.

    ``source`` is as written; ``sha256`` maps file names to lowercase hex and is empty when not pinned.
    """

    source: str
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str | None:
        """The version's digest; None when it is not pinned."""
        return digest_of(self.sha256) if self.sha256 else None


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


Change = Callable[[tuple[Adapter, ...]], tuple[Adapter, ...]]


def read_adapters(path: Path) -> tuple[Adapter, ...]:
    """Read and check ``adapters.toml``; a ``file:`` base model is relative to it.

    Raises:
        AdapterError: the file or an entry is wrong; one line names what, and the way out.
    """
    return _parse(_read(path), path)


def parse_adapter(keys: Mapping[str, Any], path: Path) -> Adapter:
    """Return the adapter that these keys of an ``[[adapter]]`` describe, as if the list at ``path`` held it.

    Raises:
        AdapterError: one is wrong; the line names it, and the way out.
    """
    try:
        return _adapter(AdapterEntry.model_validate(dict(keys)), path)
    except ValidationError as exc:
        raise AdapterError(first_mistake({"adapter": [keys]}, exc, at=("adapter", 0))) from None


def adapters_for(adapters: tuple[Adapter, ...], model: str) -> tuple[tuple[Adapter, ...], tuple[str, ...]]:
    """Return the adapters trained on ``model``, and the names of all the others."""
    base = base_model_of(model, Path())
    ours = tuple(adapter for adapter in adapters if adapter.base_model == base)
    return ours, tuple(adapter.name for adapter in adapters if adapter.base_model != base)


def base_model_of(model: str, folder: Path) -> str:
    """Return a hub id as it is, and a ``file:`` or existing folder as its absolute path."""
    is_file = model.startswith("file:")
    path = folder / Path(model.removeprefix("file:")).expanduser()
    return str(path.resolve()) if is_file or path.is_dir() else model


def edit(path: Path, change: Change) -> tuple[Adapter, ...]:
    """Change the list and return what it is then: the only writer of ``adapters.toml``.

    ``change`` gets what is listed when nobody else can write. Comments, order and entries that stay as
    they are keep their very text. A crash at any moment leaves the old file or the new one.

    Raises:
        AdapterError: the file cannot be read or written, or what ``change`` returns may not be listed.
    """
    from sive_adapters.toml_blocks import rewritten

    path = path.resolve()  # behind a link the file is replaced, not the link
    with _locked(path):
        text = _read(path) if path.exists() else ""
        before = _parse(text, path)
        after = change(before)
        if after == before:
            return before
        new = rewritten(text, *_difference(before, after))
        listed = _parse(new, path)
        if sorted(listed, key=_name) != sorted(after, key=_name):
            raise AdapterError(f"{path} is written in a way that cannot be changed safely: edit it by hand")
        _replace(path, new)
        return listed


def _name(adapter: Adapter) -> str:
    return adapter.name


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # line ends as they are
    except FileNotFoundError as exc:
        raise AdapterError(f"there is no {path}: name a list with --adapters") from exc
    except OSError as exc:
        raise AdapterError(f"cannot read {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise AdapterError(f"{path} is not TOML: it is not UTF-8 at byte {exc.start}") from exc


def _parse(text: str, path: Path) -> tuple[Adapter, ...]:
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise AdapterError(f"{path} is not TOML: {exc}") from exc
    try:
        entries = ListEntry.model_validate(tree).adapter
    except ValidationError as exc:
        raise AdapterError(f"{path}: {first_mistake(tree, exc)}") from None
    adapters = tuple(_adapter(entry, path) for entry in entries)
    _refuse_twins(adapters, path)
    return adapters


def _adapter(entry: AdapterEntry, path: Path) -> Adapter:
    where = f"{path}: adapter {entry.name!r}"
    base_model = base_model_of(entry.base_model, path.parent)
    if not Path(base_model).is_absolute() and not HUB_ID.fullmatch(base_model):
        raise AdapterError(
            f"{where}: base_model is {base_model!r}, which is neither a hub id nor a folder: "
            'write "org/name" or "file:FOLDER"'
        )
    return Adapter(
        entry.name,
        base_model,
        _release(entry, where, path.parent),
        tuple(_release(one, where, path.parent) for one in entry.previous),
        entry.system_prompt,
        tuple(entry.languages),
        entry.sampling.model_dump(exclude_none=True),
    )


def _release(entry: ReleaseEntry, where: str, folder: Path) -> Release:
    try:
        sources.parse(entry.source, folder)
    except AdapterError as exc:
        raise AdapterError(f"{where}: {exc}") from exc
    return Release(entry.source, dict(entry.sha256))


def _refuse_twins(adapters: tuple[Adapter, ...], path: Path) -> None:
    """Two names that differ only in case would share a folder on some disks."""
    seen: dict[str, str] = {}
    for adapter in adapters:
        if (twin := seen.get(adapter.name.lower())) is not None:
            how = "" if twin == adapter.name else f", but for case like {twin!r}"
            raise AdapterError(
                f"{path}: two adapters are called {adapter.name!r}{how}: give each its own name"
            )
        seen[adapter.name.lower()] = adapter.name


def _difference(
    before: tuple[Adapter, ...], after: tuple[Adapter, ...]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Return what stays, by name, with the keys that change (None: goes); and what is new."""
    old = {adapter.name: keys_of(adapter) for adapter in before}
    new = {adapter.name: keys_of(adapter) for adapter in after}
    kept = {
        name: {key: keys.get(key) for key in old[name] | keys if old[name].get(key) != keys.get(key)}
        for name, keys in new.items()
        if name in old
    }
    return kept, [keys for name, keys in new.items() if name not in old]


def keys_of(adapter: Adapter) -> dict[str, Any]:
    """An adapter as it is written: only keys that say something."""
    base = adapter.base_model
    keys = {
        "name": adapter.name,
        **_release_keys(adapter.release),
        "base_model": f"file:{base}" if Path(base).is_absolute() else base,
        "system_prompt": adapter.system_prompt,
        "languages": list(adapter.languages),
        "sampling": dict(adapter.sampling),
        "previous": [_release_keys(release) for release in adapter.previous],
    }
    return {key: value for key, value in keys.items() if value not in (None, [], {})}


def _release_keys(release: Release) -> dict[str, Any]:
    return {"source": release.source} | ({"sha256": dict(release.sha256)} if release.sha256 else {})


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_TIMEOUT_S)
    try:
        lock.acquire()
    except Timeout as exc:
        raise AdapterError(f"{path} is being changed by another program: try again") from exc
    except OSError as exc:
        raise AdapterError(f"cannot write beside {path}: {exc.strerror}") from exc
    with lock:
        lock.release()  # entering took it once more
        yield


def _replace(path: Path, text: str) -> None:
    """Put a text in a file's place, whole or not at all; a file left from a crash is overwritten."""
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("w", encoding="utf-8", newline="") as file:
            if path.exists():
                os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as exc:
        beside.unlink(missing_ok=True)
        raise AdapterError(f"cannot write {path}: {exc.strerror}") from exc
