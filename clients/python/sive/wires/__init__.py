"""Wires: how a request reaches a backend. One method, ``open``; a file per transport.

``aiohttp`` and, where there is neither TLS nor a proxy, ``plain`` carry the gateway, ``httpx`` the SDK
drop-ins, ``local`` the CPU model in this process.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

KEEPALIVE_S = 4.0
"""Shorter than vLLM's own 5 s, so that a connection is not reused while it is being closed."""


@dataclass(frozen=True, slots=True)
class WireRequest:
    """One HTTP request to a backend.

    ``reads_body``: the backend's flow wants the whole reply before it goes on (a step towards the
    answer, not the answer itself).
    """

    method: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    reads_body: bool = False


class WireResponse(Protocol):
    """A reply whose head has arrived; iterating yields its body as it comes, in pieces of any size."""

    @property
    def status(self) -> int:
        """HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers, looked up by lower-case name."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body; raises LostError when it ends before its end."""

    async def aclose(self) -> None:
        """Stop: closes the connection at once when the body is not finished, so the backend stops too."""


class Wire(Protocol):
    """A way to a backend; safe to use from many tasks of one event loop."""

    async def open(self, request: WireRequest) -> WireResponse:
        """Send and wait for the head.

        Raises:
            LostError: no head came.
        """

    async def aclose(self) -> None:
        """Close idle connections and free what the wire holds."""
