"""A folder on this machine, from which files are copied: its own may change."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from sive.errors import AdapterError

from sive_adapters.meter import Meter
from sive_adapters.part import DONE, Stat
from sive_adapters.progress import Told
from sive_adapters.sources import Source

BLOCK_BYTES = 2**20
CHANGES = 3


class Folder:
    """Files are copied, never linked.

    Raises:
        AdapterError: there is no such folder.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._path = Path(source.path)
        if not self._path.is_dir():
            raise AdapterError(
                f"there is no folder {self._path}: correct the source, or train the adapter first"
            )

    def look(self, names: Iterable[str]) -> dict[str, Stat]:
        """Look at files; those that are not there are left out."""
        paths = [self._path / name for name in names]
        return {path.name: _stat_of(path.stat()) for path in paths if path.is_file()}

    def list(self) -> dict[str, Stat]:
        """Return the files of the folder itself, none of those below it."""
        return self.look(path.name for path in self._path.iterdir())

    def fetch(self, name: str, stat: Stat, working: Path, *, what: str, told: Told) -> tuple[str, Stat]:
        """Copy a file to ``working/files/name``; return its SHA-256 and what it turned out to be.

        Raises:
            AdapterError: it cannot be read, or keeps changing.
            OSError: it cannot be written.
        """
        for _ in range(CHANGES):
            digest = self._copy(name, working / DONE / name, Meter(what, stat.size, told))
            now = self.look([name]).get(name)
            if now == stat:
                return digest, stat
            if now is None:
                break
            stat = now
        raise AdapterError(f"{self._path / name} changes while it is copied: wait until it is written")

    def _copy(self, name: str, to: Path, meter: Meter) -> str:
        digest = hashlib.sha256()
        meter.start(0)
        with _opened(self._path / name) as source, to.open("wb") as copy:
            while block := source.read(BLOCK_BYTES):
                copy.write(block)
                digest.update(block)
                meter.add(len(block))
            copy.flush()
            os.fsync(copy.fileno())
        meter.end()
        return digest.hexdigest()


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as exc:
        raise AdapterError(f"cannot read {path}: {exc.strerror}") from exc


def _stat_of(stat: os.stat_result) -> Stat:
    # Whoever puts the old time back onto a changed file cannot put its inode's time back.
    return Stat(stat.st_size, f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_ctime_ns}")
