"""Stop strings found across the seams of a text that comes in pieces; pure."""

from collections.abc import Iterable


class StopFinder:
    """Passes text on up to the first stop string to be complete; what may be the start of one is held.

    How the text is cut into pieces makes no difference to what comes out.
    ``beyond``: characters that came after the stop string that was found.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self._shown = 0  # so much of what is held was shown before
        self.found: str | None = None
        self.beyond = 0

    def feed(self, text: str) -> str:
        """Return the text that is safe to show; nothing more once ``found`` is set."""
        if self.found is not None:
            return ""
        self._held += text
        end = self._first_end()
        if end is None:
            keep = self._possible_start()
            shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
            return self._unshown(shown)
        # Of the stops that end here, the longest began first.
        self.found = max((stop for stop in self._stops if self._held[:end].endswith(stop)), key=len)
        self.beyond = len(self._held) - end
        shown, self._held = self._held[: end - len(self.found)], ""
        return self._unshown(shown)

    def prime(self, shown: str) -> None:
        """Begin in the middle: what was shown may end in the beginning of a stop string."""
        self._held = shown[max(0, len(shown) - max(map(len, self._stops), default=1) + 1) :]
        self._shown = self._possible_start()
        self._held = self._held[len(self._held) - self._shown :]

    def flush(self) -> str:
        """Return what was held when no more text will come."""
        shown, self._held = self._held, ""
        return self._unshown(shown)

    def _unshown(self, text: str) -> str:
        known = min(len(text), self._shown)
        self._shown -= known
        return text[known:]

    def _first_end(self) -> int | None:
        ends = [at + len(stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        return min(ends, default=None)

    def _possible_start(self) -> int:
        """Return how long the longest end of the held text is that begins a stop string."""
        longest = min(max(map(len, self._stops), default=1) - 1, len(self._held))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
