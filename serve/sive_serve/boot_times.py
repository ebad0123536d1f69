"""How long each phase of a boot took the last time: what "ready in 40 s" is made from."""

import contextlib
import json
from pathlib import Path

PHASES = ("fetching", "starting", "loading", "compiling", "adapters", "probing")
"""Of a boot, in order. What is fetched is known in bytes, and takes another time each time."""

FIRST_BOOT_S = 60.0
"""What a caller is told to wait before a boot was measured."""


class BootTimes:
    """Seconds per phase of the last boot that succeeded, kept in ``path`` when there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._last: dict[str, float] = {}
        self._now: dict[str, float] = {}
        if path is not None:
            with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
                read = json.loads(path.read_text("utf-8"))
                self._last = {phase: float(read[phase]) for phase in PHASES if phase in read}

    def begin(self) -> None:
        """A boot begins."""
        self._now = {}

    def took(self, phase: str, seconds: float) -> None:
        """A phase of it is over."""
        if phase in PHASES:
            self._now[phase] = self._now.get(phase, 0.0) + seconds

    def succeeded(self) -> None:
        """It is over, and these times are the ones to go by."""
        self._last = dict(self._now)
        if self._path is not None:
            # To know it the next time is nice to have: a full disk must not stop an engine.
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                new = self._path.with_suffix(".new")
                new.write_text(json.dumps({key: round(value, 1) for key, value in self._last.items()}))
                new.replace(self._path)

    def left_s(self, phase: str, since_s: float, fetch_s: float | None = None) -> float:
        """Return how long it takes until ready, ``since_s`` seconds into a phase.

        ``fetch_s``: to fetch the rest. Fetching apart it takes as long as the last time; an overdue phase is
        believed to end any moment.
        """
        if not self._last and phase != "fetching":
            return max(2.0, FIRST_BOOT_S - since_s)
        if not self._last:
            return (fetch_s or 0.0) + FIRST_BOOT_S
        after = PHASES[PHASES.index(phase) + 1 :] if phase in PHASES else PHASES[1:]
        rest_s = sum(self._last.get(one, 0.0) for one in after)
        if phase == "fetching":
            return (fetch_s or 0.0) + rest_s
        return max(0.0, self._last.get(phase, 0.0) - since_s) + rest_s

    @property
    def total_s(self) -> float:
        """How long the last boot took, without fetching."""
        return sum(self._last.get(phase, 0.0) for phase in PHASES[1:]) or FIRST_BOOT_S
