"""A file on its way: which of its bytes are on disk, so that a download goes on after a kill."""

import json
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

MIB = 2**20
PIECE_BYTES = 16 * MIB
FIRST_PIECE_BYTES, LAST_PIECE_BYTES = 2 * MIB, 4 * MIB
CONNECTIONS = 8
"""Pieces that are fetched at once."""

DONE = "files"
"""Where in a working folder the files lie that are whole."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")

Range = tuple[int, int]
"""Bytes of a file: the first, and the one after the last."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What a store says of a file: enough to see whether it is still the same one.

    ``sha256``: promised by the store itself, where it does.
    """

    size: int
    etag: str | None = None
    modified: str | None = None
    sha256: str | None = None

    @property
    def is_known(self) -> bool:
        """Could a change of the file be seen?"""
        return self.etag is not None or self.modified is not None

    def is_of(self, other: "Stat") -> bool:
        """Is this the same file, as far as the store tells?"""
        is_same_time = self.etag is not None or self.modified == other.modified
        return (self.size, self.etag) == (other.size, other.etag) and is_same_time


class Part:
    """A file being written at ``path``, and beside it ``path.json``, which says what of it is there.

    After a kill all that was written counts. After a crash of the machine only what had been synced does:
    the rest may never have reached the disk, though the file is as long as if it had.
    """

    def __init__(self, path: Path, stat: Stat) -> None:
        self._path = path
        self._sidecar = path.with_name(f"{path.name}.json")
        self._stat = stat
        self._boot = _boot()
        self._lock = threading.Lock()
        self._written: list[Range] = []
        self._synced: list[Range] = []
        self._sha256: str | None = None

    def finished(self, final: Path) -> str | None:
        """Return the hash of a file that an earlier try brought whole, None when there is none."""
        try:
            said = json.loads(self._sidecar.read_text("utf-8"))
            is_same = said["of"] == self._identity and final.stat().st_size == self._stat.size
            return str(said["sha256"]) if is_same and said["sha256"] and self._stat.is_known else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def __enter__(self) -> Self:
        self._written, self._synced = self._resumable()
        if not self._written:
            self._sidecar.unlink(missing_ok=True)  # before the bytes that it spoke of go
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | (0 if self._written else os.O_TRUNC), 0o644)
        try:
            os.ftruncate(self._fd, self._stat.size)
            self._save()
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    @property
    def fd(self) -> int:
        """The open file."""
        return self._fd

    @property
    def written(self) -> list[Range]:
        """What is there, merged and in order."""
        with self._lock:
            return list(self._written)

    def write(self, data: memoryview, at: int) -> None:
        """Write bytes; they count once ``add`` says that their piece is whole."""
        while data:
            count = os.pwrite(self._fd, data, at)
            data, at = data[count:], at + count

    def add(self, piece: Range) -> None:
        """Remember that a piece is there."""
        with self._lock:
            self._written = merged([*self._written, piece])
            self._save()

    def sync(self) -> None:
        """Bring what was written so far onto the disk."""
        before = self.written
        os.fdatasync(self._fd) if hasattr(os, "fdatasync") else os.fsync(self._fd)
        with self._lock:
            self._synced = before
            self._save()

    def forget(self) -> None:
        """Begin anew."""
        with self._lock:
            self._written, self._synced = [], []
            self._save()

    def finish(self, final: Path, sha256: str) -> None:
        """Move the whole file, synced before, where it belongs, and remember its hash."""
        with self._lock:
            self._sha256 = sha256
            self._save()
        self._path.replace(final)

    def _resumable(self) -> tuple[list[Range], list[Range]]:
        """Return what may be kept of an earlier try, and what of it was synced."""
        if not self._stat.is_known:
            return [], []
        try:
            said: dict[str, Any] = json.loads(self._sidecar.read_text("utf-8"))
            is_same = said["of"] == self._identity and self._path.stat().st_size == self._stat.size
            synced = merged((int(start), int(end)) for start, end in said["synced"])
            written = merged((int(start), int(end)) for start, end in said["written"])
        except (OSError, ValueError, KeyError, TypeError):
            return [], []
        if said["boot"] != self._boot:
            written = synced
        is_inside = all(0 <= start < end <= self._stat.size for start, end in [*written, *synced])
        return (written, synced) if is_same and is_inside else ([], [])

    @property
    def _identity(self) -> list[int | str | None]:
        return [self._stat.size, self._stat.etag, self._stat.modified]

    def _save(self) -> None:
        """Write the sidecar whole or not at all."""
        said = {
            "of": self._identity,
            "boot": self._boot,
            "written": self._written,
            "synced": self._synced,
            "sha256": self._sha256,
        }
        beside = self._sidecar.with_name(f"{self._sidecar.name}.new")
        beside.write_text(json.dumps(said), "utf-8")
        beside.replace(self._sidecar)


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Return ranges in order, those that touch as one."""
    result: list[Range] = []
    for start, end in sorted(ranges):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def missing(size: int, written: Iterable[Range]) -> list[Range]:
    """Return the pieces still to be fetched, in order.

    The hash goes through them in order. They begin small, so that it begins early, and get smaller towards
    the end, so that all connections end together and it is not far behind.
    """
    gaps, at = [], 0
    for start, end in [*merged(written), (size, size)]:
        if at < start:
            gaps.append((at, start))
        at = end
    left = sum(end - start for start, end in gaps)
    pieces: list[Range] = []
    for start, end in gaps:
        while start < end:
            grown = FIRST_PIECE_BYTES << min(len(pieces) // CONNECTIONS, 10)
            share = max(LAST_PIECE_BYTES, left // (2 * CONNECTIONS) // MIB * MIB)
            length = min(end - start, PIECE_BYTES, grown, share)
            pieces.append((start, start + length))
            start, left = start + length, left - length
    return pieces


def _boot() -> str:
    try:
        return _BOOT.read_text("ascii").strip()
    except OSError:
        return ""
