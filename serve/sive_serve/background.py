"""Tasks that nobody waits for: their failures are logged, and they end together."""

import asyncio
import logging
from collections.abc import Coroutine

log = logging.getLogger(__name__)


class Background:
    """Tasks of one owner; ``title`` is what the log calls it."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Begin."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """Stop what is under way, without waiting for it."""
        for task in self._tasks:
            task.cancel()

    async def aclose(self) -> None:
        """Stop what is under way, and wait until it has."""
        self.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("%s: a task failed", self._title, exc_info=failure)
