"""Counts the bytes of one file and tells of them, not too often."""

import time

from sive_adapters.progress import Progress, Told

EVERY_S = 0.1


class Meter:
    """Tells at most every ``EVERY_S``, and at the end. ``total``: bytes of the whole file."""

    def __init__(self, what: str, total: int | None, told: Told) -> None:
        self._what = what
        self._total = total
        self._told = told
        self._done = 0
        self._told_at = 0.0

    def start(self, done: int) -> None:
        """Begin with what is there already."""
        self._done = done
        self._tell()

    def add(self, count: int) -> None:
        """Count bytes."""
        self._done += count
        if time.monotonic() - self._told_at >= EVERY_S:
            self._tell()

    def reach(self, done: int, total: int) -> None:
        """Count up to ``done``, as a library that counts itself says."""
        self._total = total
        self.add(done - self._done)

    def end(self) -> None:
        """Say that all is there."""
        self._tell()

    def _tell(self) -> None:
        self._told_at = time.monotonic()
        self._told(Progress(self._what, self._done, self._total))
