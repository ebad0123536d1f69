"""Wires whose replies are iterated, read by a task on behalf of a receiver."""

import asyncio
import logging

import anyio

from sive.errors import LostError
from sive.wires import Receiver, WireRequest, WireResponse

log = logging.getLogger(__name__)


class PulledWire:
    """Gives a wire that has ``open`` its ``send``."""

    async def open(self, request: WireRequest) -> WireResponse:
        """Send and wait for the head."""
        raise NotImplementedError

    def send(self, request: WireRequest, receiver: Receiver) -> "_Reading":
        """Send, and tell the receiver what comes back."""
        return _Reading(self, request, receiver)


class _Reading:
    """A task that reads one reply.

    It is stopped by a cancel scope and not by ``Task.cancel``, which would also end a client library in the
    middle of closing a connection, and leave the socket to the collector.
    """

    def __init__(self, wire: PulledWire, request: WireRequest, receiver: Receiver) -> None:
        self._wire = wire
        self._request = request
        self._receiver: Receiver | None = receiver
        self._room = asyncio.Event()
        self._room.set()
        self._scope: anyio.CancelScope | None = None  # until the task runs
        self._task = asyncio.get_running_loop().create_task(self._run())

    def pause(self) -> None:
        """Read nothing until ``resume``."""
        self._room.clear()

    def resume(self) -> None:
        """Go on."""
        self._room.set()

    def close(self) -> None:
        """Stop reading; the connection closes with the task."""
        self._receiver = None
        if self._scope is not None:
            self._scope.cancel()
        else:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                await self._read()
        except LostError as lost:
            if self._receiver is not None:
                self._receiver.on_lost(lost)
        except Exception:  # the outermost frame of a task: whatever broke, the request must go on
            log.exception("%s %s failed", self._request.method, type(self._wire).__name__)
            if self._receiver is not None:
                self._receiver.on_lost(LostError("malformed"))
        else:
            if self._receiver is not None:
                self._receiver.on_end()

    async def _read(self) -> None:
        response = await self._wire.open(self._request)
        try:
            if self._receiver is not None:
                self._receiver.on_head(response.status, response.headers)
            await self._room.wait()
            async for raw in response:
                if self._receiver is None:
                    return
                self._receiver.on_data(raw)
                await self._room.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()
