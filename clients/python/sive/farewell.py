"""The last request to a host that would go on working when its answer is not read any more."""

import asyncio
from collections.abc import Mapping

from sive.errors import LostError
from sive.wires import Exchange, Wire, WireRequest

FAREWELL_S = 10.0
"""Then the connection closes, whether the host has replied or not."""

_under_way: "set[_Unheard]" = set()
"""Of every loop: copied before it is walked, as loops of other threads add theirs."""


def say(wire: Wire, request: WireRequest) -> None:
    """Send it; nobody waits for the reply."""
    for one in tuple(_under_way):
        if one.over.get_loop().is_closed():  # before its reply came, and its timer
            _under_way.discard(one)
    unheard = _Unheard(asyncio.get_running_loop())
    _under_way.add(unheard)
    unheard.exchange = wire.send(request, unheard)


async def finish(seconds: float = 1.0) -> None:
    """Let this loop's farewells reach their hosts, before the wires close."""
    loop = asyncio.get_running_loop()
    if said := [one.over for one in tuple(_under_way) if one.over.get_loop() is loop]:
        await asyncio.wait(said, timeout=seconds)


class _Unheard:
    """Takes a reply that nobody reads."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.exchange: Exchange | None = None
        self.over: asyncio.Future[None] = loop.create_future()
        self._timer = loop.call_later(FAREWELL_S, self._end)

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        """Nothing is read."""

    def on_data(self, data: bytes) -> None:
        """Nothing is read."""

    def on_end(self) -> None:
        """The connection goes back to its wire."""
        self._end()

    def on_lost(self, lost: LostError) -> None:
        """It may not have heard; there is nobody to tell."""
        self._end()

    def _end(self) -> None:
        _under_way.discard(self)
        self._timer.cancel()
        if self.exchange is not None:
            self.exchange.close()
        if not self.over.done():
            self.over.set_result(None)
