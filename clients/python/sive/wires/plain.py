"""The gateway's wire to plain-HTTP backends: httptools on an asyncio protocol, at a third of a client's cost.

Only what a backend needs: HTTP/1.1, keep-alive, chunked, sized and until-close bodies. TLS and proxies are
aiohttp's.
"""

import asyncio
import logging
import re
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Mapping
from functools import lru_cache
from typing import cast
from urllib.parse import urlsplit

import httptools

from sive.errors import LostError, Why
from sive.wires import KEEPALIVE_S, Receiver, WireRequest
from sive.wires.turn import Turn

MAX_HEAD_BYTES = 65_536
TURN_BYTES = 16_384
"""What is read of a reply before others have their turn: some 50 chunks, which take a millisecond."""

HIGH_WATER_BYTES = 262_144
"""Reading pauses while so much of a body waits to be taken."""

Address = tuple[str, int]

log = logging.getLogger(__name__)

_FORBIDDEN = re.compile(r"[\r\n\0]")


class PlainWire:
    """A pool of connections per host; ``connect_s`` is how long a TCP handshake may take.

    ``turn``: the event loop's, when others write on it too.
    """

    def __init__(self, turn: Turn | None = None, *, connect_s: float = 3) -> None:
        self._connect_s = connect_s
        self._is_closed = False
        self.loop = asyncio.get_running_loop()
        self.turn = turn or Turn()
        self._idle: defaultdict[Address, deque[_Connection]] = defaultdict(deque)

    async def open(self, request: WireRequest) -> "_Reply":
        """Send and wait for the head.

        Raises:
            LostError: no head came.
        """
        reply = _Reply()
        reply.exchange = self.send(request, reply)
        await reply.head()
        return reply

    def send(self, request: WireRequest, receiver: Receiver) -> "_Exchange":
        """Send, and tell the receiver what comes back."""
        address, target, host = _parts(request.url)
        exchange = _Exchange(receiver)
        if _FORBIDDEN.search("".join(request.headers.values())):
            exchange.lose("malformed", "a header value with a line break: is a key's last character one?")
            return exchange
        lines = [f"{name}: {value}\r\n" for name, value in request.headers.items()]
        head = (
            f"{request.method} {target} HTTP/1.1\r\nhost: {host}\r\n"
            f"content-length: {len(request.body)}\r\n{''.join(lines)}\r\n"
        )
        data = head.encode("latin-1") + request.body
        if (connection := self._reusable(address)) is not None:
            connection.ask(exchange, data)
        else:
            exchange.connecting = self.loop.create_task(self._connect(address, exchange, data))
        return exchange

    async def aclose(self) -> None:
        """Close idle connections, and those in use when they are given back."""
        self._is_closed = True
        for address in list(self._idle):
            self.forget(address)

    def take_back(self, connection: "_Connection") -> None:
        """Keep a connection whose reply was read to the end."""
        idle, now = self._idle[connection.address], self.loop.time()
        while idle and not (idle[0].is_open and now - idle[0].idle_since < KEEPALIVE_S):
            idle.popleft().drop()
        if self._is_closed:
            connection.drop()
        else:
            connection.idle_since = now
            idle.append(connection)

    def forget(self, address: Address) -> None:
        """Close the idle connections to a host."""
        idle = self._idle[address]
        while idle:
            idle.pop().drop()

    def _reusable(self, address: Address) -> "_Connection | None":
        idle, now = self._idle[address], self.loop.time()
        while idle:
            connection = idle.pop()
            if connection.is_open and now - connection.idle_since < KEEPALIVE_S:
                return connection
            connection.drop()
        return None

    async def _connect(self, address: Address, exchange: "_Exchange", data: bytes) -> None:
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await self.loop.create_connection(
                    lambda: _Connection(self, address), *address
                )
        except TimeoutError:
            exchange.lose("timeout", "connecting")
        except OSError as exc:
            exchange.lose("dns" if type(exc).__name__ == "gaierror" else "refused", str(exc))
        except Exception:  # the outermost frame of a task: whatever broke, the request must go on
            log.exception("connecting to %s:%d failed", *address)
            exchange.lose("malformed")
        else:
            exchange.connecting = None
            connection.ask(exchange, data)


@lru_cache(maxsize=256)
def _parts(url: str) -> tuple[Address, str, str]:
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    return (parts.hostname or "", parts.port or 80), target or "/", parts.netloc.rpartition("@")[2]


class _Exchange:
    """A request under way. ``receiver`` is None once it was told the end, or does not want to hear it."""

    __slots__ = ("connecting", "connection", "receiver")

    def __init__(self, receiver: Receiver) -> None:
        self.receiver: Receiver | None = receiver
        self.connection: _Connection | None = None
        self.connecting: asyncio.Task[None] | None = None

    def pause(self) -> None:
        """Take no more from the backend for now."""
        if self.connection is not None:
            self.connection.pause()

    def resume(self) -> None:
        """Go on."""
        if self.connection is not None:
            self.connection.resume()

    def close(self) -> None:
        """Give the connection back when the reply was read to its end; else abort it."""
        self.receiver = None
        if self.connecting is not None:
            self.connecting.cancel()
        if self.connection is not None:
            self.connection.give_back()

    def lose(self, why: Why, detail: str = "") -> None:
        """Tell the receiver that there is no reply, or no more of it."""
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.on_lost(LostError(why, detail))


class _Connection(asyncio.Protocol):
    """One connection, and the reply on it: httptools calls the ``on_`` methods.

    The receiver is told after the parser has seen all that arrived together: pieces then go on as one.
    """

    def __init__(self, wire: PlainWire, address: Address) -> None:
        self.address = address
        self.is_open = False
        self.idle_since = 0.0
        self._wire = wire
        self._uses = 0
        self._is_paused = False
        self._rest = b""
        self._parser = httptools.HttpResponseParser(self)
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._exchange: _Exchange | None = None
        self._body: list[bytes] = []
        self._head_bytes = 0
        self._has_head = False
        self._is_complete = False
        self._is_surplus = False
        self._keeps_alive = False
        self._ends_with_close = False

    # The wire's side

    def ask(self, exchange: _Exchange, request: bytes) -> None:
        """Send a request."""
        self._uses += 1
        self._exchange = exchange
        if exchange.receiver is None or not self.is_open:
            self._lose("reset")
            return
        exchange.connection = self
        self._wire.turn.write(self._transport, request)

    def pause(self) -> None:
        """Read no more for now."""
        if not self._is_paused and self.is_open:
            self._is_paused = True
            if not self._rest:
                self._transport.pause_reading()

    def resume(self) -> None:
        """Go on reading."""
        if self._is_paused and self.is_open:
            self._is_paused = False
            if self._rest:
                self._wire.loop.call_soon(self._next_turn)
            else:
                self._transport.resume_reading()

    def give_back(self) -> None:
        """To the pool when its reply was read to the end; else abort."""
        if self._exchange is not None:
            self._exchange.connection = None
        if self._is_complete and self._keeps_alive and self.is_open and not self._rest:
            self.resume()
            self._reset()
            self._wire.take_back(self)
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
        if self._rest:
            self._rest += data
            return
        self._parse(data[:TURN_BYTES])
        if len(data) > TURN_BYTES and self.is_open:
            self._rest = data[TURN_BYTES:]
            self._transport.pause_reading()
            self._wire.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        """Go on with what came at once: others had their turn."""
        if self._is_paused or not self._rest:
            return
        rest, self._rest = self._rest, b""
        self.data_received(rest)
        if not self._rest and not self._is_paused and self.is_open:
            self._transport.resume_reading()

    def _parse(self, data: bytes) -> None:
        if self._exchange is None:
            self.drop()  # bytes that nobody asked for
            return
        if not self.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._keeps_alive = False
            self._tell()
            self._lose("malformed", str(exc))
            return
        if self._head_bytes > MAX_HEAD_BYTES and not self.status:
            self._lose("malformed", f"a head of more than {MAX_HEAD_BYTES} bytes")
            return
        self._tell()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        rest, self._rest = self._rest, b""
        if rest:
            self._parse(rest)
        self._tell_end(exc)
        del self._parser  # which holds our methods: a cycle, which only the collector would free

    def _tell_end(self, exc: Exception | None) -> None:
        if self._exchange is None or self._is_complete:
            return
        if self._ends_with_close and exc is None:
            self.on_message_complete()
            self._tell()
        elif self.status:
            self._lose("reset" if exc is not None else "eof")
        elif self._uses > 1 and not self._head_bytes:
            self._wire.forget(self.address)  # its neighbours are as old
            self._lose("reset_reused")
        else:
            self._lose("reset")

    def _lose(self, why: Why, detail: str = "") -> None:
        exchange, self._exchange = self._exchange, None
        self.drop()
        if exchange is not None:
            exchange.connection = None
            exchange.lose(why, detail)

    def _tell(self) -> None:
        """Tell the receiver what is new; it may close the exchange at any of these calls."""
        exchange = self._exchange
        if exchange is None or not self.status:
            return
        if not self._has_head:
            self._has_head = True
            if (encoding := self.headers.get("content-encoding", "identity")) != "identity":
                self._lose("malformed", f"content-encoding {encoding} was not asked for")
                return
            if exchange.receiver is not None:
                exchange.receiver.on_head(self.status, self.headers)
        if self._body and exchange.receiver is not None:
            body, self._body = self._body, []
            exchange.receiver.on_data(body[0] if len(body) == 1 else b"".join(body))
        if self._is_complete and exchange.receiver is not None:
            receiver, exchange.receiver = exchange.receiver, None
            self.give_back()
            receiver.on_end()

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

    def on_body(self, body: bytes) -> None:
        if not self._is_surplus:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self.status:  # not a 1xx
            self._is_complete = True


class _Reply:
    """A reply that is iterated; it holds its connection until it is closed or was read to its end."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.exchange: _Exchange | None = None
        self._news = asyncio.Event()
        self._body: list[bytes] = []
        self._waiting_bytes = 0
        self._is_complete = False
        self._lost: LostError | None = None

    async def head(self) -> None:
        """Wait until it is there.

        Raises:
            LostError: it never came.
        """
        try:
            while not self.status:
                await self._more()
        except BaseException:
            await self.aclose()
            raise

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not (self._is_complete and not self._body):
            if not self._body:
                await self._more()
                continue
            body, self._body, self._waiting_bytes = b"".join(self._body), [], 0
            if self.exchange is not None:
                self.exchange.resume()
            yield body

    async def aclose(self) -> None:
        """Stop: aborts the connection when the reply was not read to its end."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.close()

    async def _more(self) -> None:
        if self._lost is not None:
            raise self._lost
        self._news.clear()
        await self._news.wait()

    # The connection's side

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.headers = status, headers
        self._news.set()

    def on_data(self, data: bytes) -> None:
        self._body.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > HIGH_WATER_BYTES and self.exchange is not None:
            self.exchange.pause()
        self._news.set()

    def on_end(self) -> None:
        self._is_complete = True
        self._news.set()

    def on_lost(self, lost: LostError) -> None:
        self._lost = lost
        self._news.set()
