"""A request that one of our own faces makes: it translates what it reads for callers of another protocol."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Self

from sive.drive import Driver
from sive.errors import LostError
from sive.protocol import Endpoint, Json, dumps
from sive.routes import Model

from sive_serve.direct import Direct

if TYPE_CHECKING:
    from sive_serve.gateway import Gateway

CARRIED = ("authorization", "x-request-id", "x-sive-require", "x-sive-hop")
"""A caller's headers that mean to the gateway what they mean on its own paths."""

MAX_WAITING_BYTES = 262_144
"""How far an answer may run ahead of a face whose own caller reads slowly."""


class Inner:
    """One request and its answer, counted, logged, cancelled and drained as all others.

    A context manager: who leaves the block has left the answer, which ends the backend's work.

        with Inner(gateway, "chat/completions", body, request.headers) as answer:
            status, headers = await answer.head()
            async for piece in answer.pieces(): ...

    One reader at a time. ``headers``: those of the face's caller, by lower-case name; CARRIED are carried on.
    The key is looked at where the face's request comes in, not here.
    ``waiting_bytes``: how much was not read yet.
    """

    def __init__(
        self, gateway: "Gateway", endpoint: Endpoint, body: Json, headers: Mapping[str, str]
    ) -> None:
        self.endpoint = endpoint
        self.headers = {name: headers[name] for name in CARRIED if name in headers}
        self.request_id = ""
        self.model: Model | None = None
        self.driver: Direct | Driver | None = None
        self.has_begun = False
        self._status = 0
        self._told: dict[str, str] = {}
        self._pieces: list[bytes] = []
        self.waiting_bytes = 0
        self._has_ended = False
        self._is_cut = False
        self._max_bytes = gateway.policy.limits.held_bytes
        self._arrived = asyncio.Event()
        gateway.answer(self, dumps(body))

    def __enter__(self) -> Self:
        """The answer is under way already."""
        return self

    def __exit__(self, *_: object) -> None:
        """The reader leaves."""
        self.leave()

    # The face's side

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers, as soon as they are known.

        Raises:
            LostError: the server stopped before.
        """
        await self._wait_for(lambda: self.has_begun)
        return self._status, self._told

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes, all that waits at once; what is not taken holds the backend back.

        Raises:
            LostError: it was cut in the middle.
        """
        while True:
            await self._wait_for(lambda: bool(self._pieces) or self._has_ended)
            if not self._pieces:
                return
            piece = b"".join(self._pieces)
            self._pieces.clear()
            self._taken(len(piece))
            yield piece

    async def whole(self) -> bytes:
        """The body in one piece.

        Raises:
            LostError: it was cut in the middle, or is larger than any answer.
        """
        body = bytearray()
        async for piece in self.pieces():
            body += piece
            if len(body) > self._max_bytes:
                raise LostError("too_large", f"an answer of more than {self._max_bytes} bytes")
        return bytes(body)

    def leave(self) -> None:
        """The face's own caller is gone, or wants no more."""
        if self.driver is not None and not self._has_ended:
            self.driver.left()

    # The gateway's side

    @property
    def is_slow(self) -> bool:
        """Does so much wait to be read that nothing should follow for now?"""
        return self.waiting_bytes > MAX_WAITING_BYTES

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """The head of the answer."""
        self._status, self._told = status, headers
        self.has_begun = True
        self._arrived.set()

    def send(self, data: bytes) -> None:
        """Some of the body."""
        self._put(data)

    def end(self, data: bytes) -> None:
        """The rest of the body."""
        if data:
            self._put(data)
        self._has_ended = True
        self._arrived.set()

    def end_early(self, *, status: int, message: str, code: str) -> None:
        """End the request from outside; the reader is told."""
        if self.driver is not None:
            self.driver.cancel(status=status, message=message, code=code)

    def abort(self) -> None:
        """The reader left, or never reads: what waits is dropped."""
        if not self._has_ended:
            self._pieces.clear()
            self._break()

    def cut(self) -> None:
        """End in the middle: the reader sees that it was no clean end."""
        if self.driver is not None:
            self.driver.close()
            self.driver = None
        self._break()

    def _put(self, data: bytes) -> None:
        self._pieces.append(data)
        self.waiting_bytes += len(data)
        self._arrived.set()

    def _taken(self, size: int) -> None:
        was_slow = self.is_slow
        self.waiting_bytes -= size
        if was_slow and not self.is_slow and self.driver is not None:
            self.driver.resume()

    def _break(self) -> None:
        self._is_cut = True
        self._arrived.set()

    async def _wait_for(self, is_there: Callable[[], bool]) -> None:
        while not is_there():
            if self._is_cut:
                raise LostError("eof", "the answer was cut")
            self._arrived.clear()
            await self._arrived.wait()
