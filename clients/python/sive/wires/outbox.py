"""Writes that leave together, once all that has arrived was read."""

import asyncio


class Outbox:
    """Writes the first piece of an event loop's turn at once, and the others together at its end.

    uvloop writes each at once. Each then wakes its reader's idle CPU by itself, which can take the kernel as
    long as a request takes us; written one after the other most find it awake (64 connections: 181 us CPU
    per request without, 137 with). The first does not wait, so that who is alone is not kept waiting.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[asyncio.Transport, bytes]] = []
        self._collects = False

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write this soon, in order."""
        if self._collects:
            self._waiting.append((transport, data))
            return
        self._collects = True
        self._loop.call_soon(self._end_turn)
        if not transport.is_closing():
            transport.write(data)

    def flush(self) -> None:
        """Write what waits; whoever is about to close a transport calls this first."""
        waiting, self._waiting = self._waiting, []
        for transport, data in waiting:
            if not transport.is_closing():
                transport.write(data)

    def _end_turn(self) -> None:
        self._collects = False
        self.flush()
