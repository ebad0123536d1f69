"""What an adapter's source holds now, as a release that is pinned to it."""

import hashlib
import os
from pathlib import Path

from sive.errors import AdapterError

from sive_adapters import sources
from sive_adapters.entries import FILES
from sive_adapters.registry import Adapter, Release


def pinned(adapter: Adapter, folder: Path) -> Release:
    """Return the adapter's release with the hashes of its files; ``file:`` is relative to ``folder``.

    Raises:
        AdapterError: a file is missing, changed meanwhile, or is not the one that is pinned already.
    """
    where, release = f"adapter {adapter.name!r}", adapter.release
    source = sources.parse(release.source, folder)
    if source.kind != "file":
        raise AdapterError(
            f"{where} has the source {source}, which cannot be fetched yet: download it and write file:FOLDER"
        )
    found = Release(release.source, {name: _sha256(Path(source.path) / name, where) for name in FILES})
    if release.sha256 and dict(release.sha256) != found.sha256:
        raise AdapterError(
            f"{where} is pinned to {str(release.digest)[:12]}, {source} holds {str(found.digest)[:12]} now: "
            "restore its files, or take sha256 out of the list to pin what is there"
        )
    return found


def _sha256(file: Path, where: str) -> str:
    try:
        with file.open("rb") as content:
            before = os.fstat(content.fileno())
            digest = hashlib.file_digest(content, "sha256").hexdigest()
            after = os.fstat(content.fileno())
    except OSError as exc:
        raise AdapterError(f"{where}: cannot read {file}: {exc.strerror}") from exc
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise AdapterError(f"{where}: {file} changed while it was read: try again when it is whole")
    return digest
