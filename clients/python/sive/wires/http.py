"""The gateway's wire: plain HTTP by our own protocol, TLS and proxies by aiohttp."""

from urllib.request import getproxies

from sive.wires import Exchange, Receiver, Wire, WireRequest, WireResponse
from sive.wires.aiohttp import AiohttpWire
from sive.wires.plain import PlainWire
from sive.wires.turn import Turn

LOOPBACK = ("http://127.", "http://localhost:", "http://[::1]")


class HttpWire:
    """Chooses by URL. ``HTTP_PROXY`` is for hosts elsewhere: a proxy cannot reach this machine's engine."""

    def __init__(self, turn: Turn | None = None, *, connect_s: float = 3) -> None:
        self._plain = PlainWire(turn, connect_s=connect_s)
        self._aiohttp = AiohttpWire(connect_s=connect_s)
        self._unproxied = LOOPBACK if "http" in getproxies() else ("http://",)

    async def open(self, request: WireRequest) -> WireResponse:
        """Send and wait for the head.

        Raises:
            LostError: no head came.
        """
        return await self._wire(request).open(request)

    def send(self, request: WireRequest, receiver: Receiver) -> Exchange:
        """Send, and tell the receiver what comes back."""
        return self._wire(request).send(request, receiver)

    async def aclose(self) -> None:
        """Close idle connections."""
        await self._plain.aclose()
        await self._aiohttp.aclose()

    def _wire(self, request: WireRequest) -> Wire:
        return self._plain if request.url.startswith(self._unproxied) else self._aiohttp
