"""SHA-256 of a file while it is still being written."""

import hashlib
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from sive_adapters.part import Range, merged

BLOCK_BYTES = 2**20


class Follower:
    """A thread that hashes a file in order, behind those who write it in any order.

    It reads what was just written back from the page cache, which costs a tenth of the hashing, so no
    piece waits in memory for its turn.
    """

    def __init__(self, fd: int, size: int, written: list[Range]) -> None:
        self._fd = fd
        self._size = size
        self._there = merged(written)
        self._hash = hashlib.sha256()
        self._at = 0
        self._failure: OSError | None = None
        self._is_stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._follow, name="sha256", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        self._thread.join()

    def add(self, written: Range) -> None:
        """Say that these bytes are there."""
        with self._changed:
            self._there = merged([*self._there, written])
            self._changed.notify()

    @property
    def backlog_bytes(self) -> int:
        """How much is there without a gap and waits for it; 0 when it has ended."""
        start, end = self._there[0] if self._there else (0, 0)
        return end - self._at if start == 0 and self._thread.is_alive() else 0

    def hexdigest(self) -> str:
        """Wait until all was written and hashed.

        Raises:
            OSError: the file cannot be read back.
        """
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._hash.hexdigest()

    def _follow(self) -> None:
        buffer = memoryview(bytearray(BLOCK_BYTES))
        try:
            while self._at < self._size and (end := self._wait()):
                while self._at < end and not self._is_stopped:
                    count = os.preadv(self._fd, [buffer[: end - self._at]], self._at)
                    if not count:
                        raise OSError("the file became shorter while it was hashed")
                    self._hash.update(buffer[:count])
                    self._at += count
        except OSError as exc:
            self._failure = exc

    def _wait(self) -> int:
        """Return up to where the file is there without a gap, 0 when nobody will write any more."""
        with self._changed:
            while not self._is_stopped:
                start, end = self._there[0] if self._there else (0, 0)
                if start == 0 and end > self._at:
                    return end
                self._changed.wait()
        return 0


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
