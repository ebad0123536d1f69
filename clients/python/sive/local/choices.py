"""The ``n`` choices of one answer, spoken one after the other in one slot."""

import asyncio
from collections.abc import AsyncIterator, Callable

from sive.local.generation import Generation

Begin = Callable[[Callable[[], None]], Generation]
"""Starts a generation; what it is given is called when its thread is free again."""


class Choices:
    """Iterating yields each generation with its index; the first runs from the start.

    ``ended`` is called once, when nothing runs any more and nothing will.
    """

    def __init__(self, begin: Begin, count: int, *, ended: Callable[[], None]) -> None:
        self.finished = asyncio.Event()
        self._begin = begin
        self._left = count
        self._ended = ended
        self._running = self._next()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Generation]]:
        index = 0
        yield index, self._running
        while self._left:
            await self._running.finished.wait()  # a stop string ends the text before its thread is free
            if not self._left:  # it was cancelled meanwhile
                return
            index += 1
            self._running = self._next()
            yield index, self._running

    def cancel(self) -> None:
        """Stop within a token."""
        self._left = 0
        if self._running.finished.is_set():
            self._end()
        else:
            self._running.cancel()

    def _next(self) -> Generation:
        self._left -= 1
        return self._begin(self._freed)

    def _freed(self) -> None:
        if not self._left:
            self._end()

    def _end(self) -> None:
        if not self.finished.is_set():
            self.finished.set()
            self._ended()
