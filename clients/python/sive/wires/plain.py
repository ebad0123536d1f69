"""The gateway's wire to plain-HTTP backends: httptools on an asyncio protocol, at a third of a client's cost.

Only what a backend needs: HTTP/1.1, keep-alive, chunked, sized and until-close bodies. TLS and proxies are
aiohttp's.
"""

import asyncio
import re
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from typing import cast
from urllib.parse import urlsplit

import httptools

from sive.errors import LostError, Why
from sive.wires import KEEPALIVE_S, WireRequest

MAX_HEAD_BYTES = 65_536
HIGH_WATER_BYTES = 262_144
"""Reading pauses while so much of a body waits to be taken."""

Address = tuple[str, int]

_FORBIDDEN = re.compile(r"[\r\n\0]")


class PlainWire:
    """A pool of connections per host; ``connect_s`` is how long a TCP handshake may take."""

    def __init__(self, *, connect_s: float = 3) -> None:
        self._connect_s = connect_s
        self._is_closed = False
        self._idle: defaultdict[Address, deque[_Connection]] = defaultdict(deque)

    async def open(self, request: WireRequest) -> "_Reply":
        """Send and wait for the head.

        Raises:
            LostError: no head came.
        """
        address, target, host = _parts(request.url)
        if any(_FORBIDDEN.search(value) for value in request.headers.values()):
            raise LostError("malformed", "a header value with a line break: is a key's last character one?")
        connection = self._reusable(address) or await self._connect(address)
        head = [
            f"{request.method} {target} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(request.body)}\r\n"
        ]
        head += [f"{name}: {value}\r\n" for name, value in request.headers.items()]
        head.append("\r\n")
        try:
            await connection.ask("".join(head).encode("latin-1") + request.body)
        except BaseException as exc:
            connection.drop()
            if isinstance(exc, LostError) and exc.why == "reset_reused":
                self._forget(address)  # its neighbours are as old
            raise
        return _Reply(connection)

    async def aclose(self) -> None:
        """Close idle connections, and those in use when they are given back."""
        self._is_closed = True
        for address in list(self._idle):
            self._forget(address)

    def _reusable(self, address: Address) -> "_Connection | None":
        idle, now = self._idle[address], asyncio.get_running_loop().time()
        while idle:
            connection = idle.pop()
            if connection.is_open and now - connection.idle_since < KEEPALIVE_S:
                return connection
            connection.drop()
        return None

    async def _connect(self, address: Address) -> "_Connection":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._take_back(address)), *address
                )
        except TimeoutError as exc:
            raise LostError("timeout", "connecting") from exc
        except OSError as exc:
            raise LostError("dns" if type(exc).__name__ == "gaierror" else "refused", str(exc)) from exc
        return connection

    def _take_back(self, address: Address) -> "Callable[[_Connection], None]":
        """What a connection calls when its reply was read to the end."""

        def take_back(connection: _Connection) -> None:
            idle, now = self._idle[address], asyncio.get_running_loop().time()
            while idle and not (idle[0].is_open and now - idle[0].idle_since < KEEPALIVE_S):
                idle.popleft().drop()
            if self._is_closed:
                connection.drop()
            else:
                connection.idle_since = now
                idle.append(connection)

        return take_back

    def _forget(self, address: Address) -> None:
        idle = self._idle[address]
        while idle:
            idle.pop().drop()


@lru_cache(maxsize=256)
def _parts(url: str) -> tuple[Address, str, str]:
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    return (parts.hostname or "", parts.port or 80), target or "/", parts.netloc.rpartition("@")[2]


class _Reply:
    """A reply, which holds its connection until it is closed."""

    def __init__(self, connection: "_Connection") -> None:
        self.status = connection.status
        self.headers = connection.headers
        self._connection: _Connection | None = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._connection is not None and (piece := await self._connection.read()):
            yield piece

    async def aclose(self) -> None:
        """Give the connection back when the reply was read to its end; else abort it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.give_back()


class _Connection(asyncio.Protocol):
    """One connection, and the reply on it: httptools calls the ``on_`` methods."""

    def __init__(self, take_back: "Callable[[_Connection], None]") -> None:
        self.is_open = False
        self.idle_since = 0.0
        self._take_back = take_back
        self._uses = 0
        self._parser = httptools.HttpResponseParser(self)
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._head: asyncio.Future[None] | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._body: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._head_bytes = 0
        self._is_complete = False
        self._is_surplus = False
        self._keeps_alive = False
        self._ends_with_close = False
        self._lost: LostError | None = None

    # The wire's side

    async def ask(self, request: bytes) -> None:
        """Send a request; return when the head is there.

        Raises:
            LostError: it never came.
        """
        self._uses += 1
        self._head = asyncio.get_running_loop().create_future()
        if not self.is_open:  # it was closed since it was taken
            raise LostError("reset_reused" if self._uses > 1 else "reset")
        self._transport.write(request)
        await self._head

    async def read(self) -> bytes:
        """What has come of the body, at least a byte; ``b""`` at its end.

        Raises:
            LostError: it ended before its end.
        """
        while not self._body:
            if self._is_complete:
                return b""
            if self._lost is not None:
                raise self._lost
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        return self._take()

    def _take(self) -> bytes:
        """All that waits, as one piece."""
        piece = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        if self._waiting_bytes > HIGH_WATER_BYTES and self.is_open:
            self._transport.resume_reading()
        self._waiting_bytes = 0
        return piece

    def give_back(self) -> None:
        """To the pool when its reply was read to the end; else abort."""
        if self._is_complete and self._keeps_alive and self.is_open and not self._body:
            self._reset()
            self._take_back(self)
        else:
            self.drop()

    def drop(self) -> None:
        """Close at once."""
        if self.is_open:
            self._transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        if self._head is None or self._is_complete:
            self.drop()  # bytes that nobody asked for
            return
        if not self.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._fail("malformed", str(exc))
        if not self._head.done() and self._head_bytes > MAX_HEAD_BYTES:
            self._fail("malformed", f"a head of more than {MAX_HEAD_BYTES} bytes")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._head is None or self._is_complete:
            return
        if self._ends_with_close and exc is None:
            self.on_message_complete()
        elif self._head.done():
            self._fail("reset" if exc is not None else "eof")
        else:
            self._fail("reset_reused" if self._uses > 1 and not self._head_bytes else "reset")

    def _fail(self, why: Why, detail: str = "") -> None:
        self._lost = LostError(why, detail)
        if self._head is not None and not self._head.done():
            self._head.set_exception(self._lost)
        self._wake()
        self.drop()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    # httptools' side

    def on_message_begin(self) -> None:
        if self._is_complete:
            self._keeps_alive = False  # a second reply, which nobody asked for
            self._is_surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_surplus:
            return
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._is_surplus:
            return
        if 100 <= status < 200:
            self.headers = {}
            return
        self.status = status
        self._keeps_alive = self._parser.should_keep_alive()
        sized = (
            "content-length" in self.headers or "chunked" in self.headers.get("transfer-encoding", "").lower()
        )
        self._ends_with_close = not sized and status not in (204, 304)
        encoding = self.headers.get("content-encoding", "identity")
        if encoding != "identity":
            self._fail("malformed", f"content-encoding {encoding} was not asked for")
        elif self._head is not None and not self._head.done():
            self._head.set_result(None)

    def on_body(self, body: bytes) -> None:
        if self._is_surplus:
            return
        self._body.append(body)
        self._waiting_bytes += len(body)
        if self._waiting_bytes > HIGH_WATER_BYTES:
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self.status:  # not a 1xx
            self._is_complete = True
            self._wake()
