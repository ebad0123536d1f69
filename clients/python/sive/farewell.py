"""The last request to a host that would go on working when its answer is not read any more."""

import asyncio
from collections.abc import Mapping

from sive.errors import LostError
from sive.wires import Exchange, Wire, WireRequest

FAREWELL_S = 10.0
"""Then the connection closes, whether the host has replied or not."""


def say(wire: Wire, request: WireRequest) -> None:
    """Send it; nobody waits for the reply."""
    unheard = _Unheard()
    unheard.exchange = wire.send(request, unheard)
    # The loop holds the timer, and the timer the exchange: nobody else does.
    unheard.timer = asyncio.get_running_loop().call_later(FAREWELL_S, unheard.exchange.close)


class _Unheard:
    """Takes a reply that nobody reads."""

    exchange: Exchange | None = None
    timer: asyncio.TimerHandle | None = None

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        """Nothing is read."""

    def on_data(self, data: bytes) -> None:
        """Nothing is read."""

    def on_end(self) -> None:
        """The connection goes back to its wire."""
        self._over()

    def on_lost(self, lost: LostError) -> None:
        """It may not have heard; there is nobody to tell."""
        self._over()

    def _over(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.exchange is not None:
            self.exchange.close()
