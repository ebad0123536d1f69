"""Pins an adapter to what its source holds now."""

from dataclasses import replace
from pathlib import Path

from sive.errors import AdapterError

from sive_adapters import sources
from sive_adapters.hashing import sha256_of
from sive_adapters.registry import Adapter, Release, edit
from sive_adapters.store import FILES, Store, Told, nobody


def pin(path: Path, adapter: Adapter, store: Store, *, told: Told = nobody) -> Adapter:
    """Write the hashes of a listed adapter's files into the list at ``path``, and return it as it is then.

    What is not in a folder here is fetched into ``store``.

    Raises:
        AdapterError: it cannot be had, changed meanwhile, or is not what is pinned already; or the adapter
            was changed in the list meanwhile.
    """
    pinned = replace(adapter, release=_release(adapter, path.parent, store, told))

    def change(listed: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
        if adapter not in listed:
            raise AdapterError(f"adapter {adapter.name!r} was changed in {path} meanwhile: try again")
        return tuple(pinned if one == adapter else one for one in listed)

    edit(path, change)
    return pinned


def _release(adapter: Adapter, folder: Path, store: Store, told: Told) -> Release:
    where, release = f"adapter {adapter.name!r}", adapter.release
    source = sources.parse(release.source, folder)
    if source.kind == "file":
        sha256 = {name: _sha256(Path(source.path) / name, where) for name in FILES}
    else:
        sha256 = dict(store.fetch(adapter.name, source, told=told).sha256)
    found = Release(release.source, sha256)
    if release.sha256 and dict(release.sha256) != found.sha256:
        raise AdapterError(
            f"{where} is pinned to {str(release.digest)[:12]}, {source} holds {str(found.digest)[:12]} now: "
            "restore its files, or take sha256 out of the list to pin what is there"
        )
    return found


def _sha256(file: Path, where: str) -> str:
    try:
        before = file.stat()
        digest = sha256_of(file)
        after = file.stat()
    except OSError as exc:
        raise AdapterError(f"{where}: cannot read {file}: {exc.strerror}") from exc
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise AdapterError(f"{where}: {file} changed while it was read: try again when it is whole")
    return digest
