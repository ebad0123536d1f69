"""The slots requests run in, and the queue before them; used from one event loop."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

REMEMBERED = 16


class QueueFullError(Exception):
    """All slots are taken and the queue is full; ``retry_after_s`` is when a place should be free."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Slots:
    """``slots`` holders at once; ``queue`` more wait in the order they came."""

    def __init__(self, slots: int, queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._free = slots
        self._slots = slots
        self._queue = queue
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._running: list[float] = []  # when each holder began
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)

    async def acquire(self) -> "Slot":
        """Wait for a slot.

        Raises:
            QueueFullError: as many wait already as may.
        """
        if not self._free:
            if len(self._waiting) >= self._queue:
                raise QueueFullError(self._retry_after_s())
            await self._wait()
        else:
            self._free -= 1
        return self._begin()

    async def _wait(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.cancelled():  # handed a slot and cancelled in the same moment
                self._hand_on()
            raise

    def _hand_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _begin(self) -> "Slot":
        began = self._clock()
        self._running.append(began)
        return Slot(lambda: self._end(began))

    def _end(self, began: float) -> None:
        self._running.remove(began)
        self._seconds.append(self._clock() - began)
        self._hand_on()

    def _retry_after_s(self) -> int:
        """Return when the queue should have moved on by one: the mean time of a slot over their number."""
        now = self._clock()
        seconds = list(self._seconds) or [now - began for began in self._running]
        return max(1, math.ceil(sum(seconds) / max(1, len(seconds)) / self._slots))


class Slot:
    """A place among the running; ``release`` may be called more than once."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end: Callable[[], None] | None = end

    def release(self) -> None:
        """Give the slot to the next in the queue."""
        end, self._end = self._end, None
        if end is not None:
            end()
