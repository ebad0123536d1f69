"""Wires: how a request reaches a backend; a file per transport.

``aiohttp`` and, where there is neither TLS nor a proxy, ``plain`` carry the gateway, ``httpx`` the SDK
drop-ins, ``local`` the CPU model in this process. Each can be read in two ways: ``open`` gives a reply to
iterate, ``send`` tells a receiver, which spares a task and its wake-ups for every piece of a stream.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import field
from typing import Protocol

from sive.errors import LostError
from sive.frozen import frozen

KEEPALIVE_S = 4.0
"""Shorter than vLLM's own 5 s, so that a connection is not reused while it is being closed."""


@frozen
class WireRequest:
    """One HTTP request to a backend.

    ``reads_body``: the backend's flow wants the whole reply before it goes on (a step towards the
    answer, not the answer itself). ``farewell``: sent when the reply is given up before its end, to a host
    that would go on working; nobody reads what it says. ``waits_for``: what its silence would mean, in words
    for callers.
    """

    method: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    reads_body: bool = False
    farewell: "WireRequest | None" = None
    waits_for: str = ""


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


class Receiver(Protocol):
    """Who is told of a reply: its head, pieces of its body, and at last that it ended or was lost."""

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        """The head; headers are looked up by lower-case name."""

    def on_data(self, data: bytes) -> None:
        """Some of the body."""

    def on_end(self) -> None:
        """The body is complete."""

    def on_lost(self, lost: LostError) -> None:
        """No head came, or the body ended before its end."""


class Exchange(Protocol):
    """A request under way; after ``close`` its receiver is told nothing more."""

    def pause(self) -> None:
        """Take no more from the backend for now."""

    def resume(self) -> None:
        """Go on."""

    def close(self) -> None:
        """Stop: as ``WireResponse.aclose``."""


class Wire(Protocol):
    """A way to a backend; safe to use from many tasks of one event loop."""

    async def open(self, request: WireRequest) -> WireResponse:
        """Send and wait for the head.

        Raises:
            LostError: no head came.
        """

    def send(self, request: WireRequest, receiver: Receiver) -> Exchange:
        """Send, and tell the receiver what comes back; it may be told before this returns."""

    async def aclose(self) -> None:
        """Close idle connections and free what the wire holds."""
