"""Room on a disk: looked at before a download, and named when it runs out in the middle."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from sive.errors import AdapterError

MB = 1_000_000
MARGIN_BYTES = 16 * MB
"""Left free beside what is fetched: a disk that is full to the brim breaks others."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

FreeBytes = Callable[[Path], int]


def free_bytes(folder: Path) -> int:
    """Return how much may still be written to the disk a folder is on."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def check_room(needed_bytes: int, folder: Path, free: FreeBytes = free_bytes) -> None:
    """Refuse a download that cannot end well.

    Raises:
        AdapterError: there is not enough room; it names both numbers.
    """
    there = free(folder)
    if needed_bytes + MARGIN_BYTES > there:
        raise AdapterError(
            f"{folder} has {_mb(there)} free, {_mb(needed_bytes)} are to be fetched and {_mb(MARGIN_BYTES)} "
            "must stay free: free some, or choose another folder"
        )


@contextlib.contextmanager
def plain_errors(folder: Path, what: str) -> Iterator[None]:
    """Turn what a disk refuses into one line.

    Raises:
        AdapterError: it is full, or cannot be written.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in FULL:
            raise AdapterError(
                f"the disk is full: {what} does not fit into {folder} ({exc.strerror}); free some and ask "
                "again, what is there already is kept"
            ) from exc
        raise AdapterError(f"{what} cannot be stored in {folder}: {exc.strerror or exc}") from exc


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder's files onto the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _mb(count: int) -> str:
    return f"{-(-count // MB)} MB" if count < 10_000 * MB else f"{count / 1000 / MB:.1f} GB"
