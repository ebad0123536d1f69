"""The hot paths' HTTP: requests straight from uvicorn's parser, answers straight to its transport.

A subclass of uvicorn's protocol, which keeps what uvicorn is good at (parsing, keep-alive, pipelining,
graceful shutdown) and leaves out what costs more than the answer: an ASGI scope, a task, its messages.
Every other request takes uvicorn's way to the ASGI application.
"""

import asyncio
import math
import urllib.parse
from typing import TYPE_CHECKING, Any, ClassVar

import httptools
from sive.drive import Driver
from sive.errors import RequestError
from sive.failures import failure_body
from sive.protocol import JSON_HEADERS, Endpoint, dumps, error_of
from sive.routes import Model
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sive_serve.asgi import ABORT
from sive_serve.auth import authorization
from sive_serve.direct import Direct

if TYPE_CHECKING:
    from sive_serve.gateway import Gateway

HOT_PATHS: dict[bytes, Endpoint] = {
    b"/v1/chat/completions": "chat/completions",
    b"/v1/completions": "completions",
    b"/v1/embeddings": "embeddings",
    b"/v1/messages": "messages",
    b"/v1/responses": "responses",
}
MAX_LENGTH_DIGITS = 18
MAX_HEAD_BYTES = 65_536
NO_HTTP = "Invalid HTTP request received."
HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)


def refusal(problem: RequestError, request_id: str, endpoint: str = "") -> tuple[dict[str, str], bytes]:
    """Headers and body that tell a caller what is wrong; a body that is too large is not read any further."""
    body = dumps(failure_body(endpoint, problem.status, error_of(problem)))
    headers = JSON_HEADERS | {"content-length": str(len(body)), "x-should-retry": "false"}
    if request_id:
        headers["x-request-id"] = request_id
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    if problem.status == 413:
        headers["connection"] = "close"
    return headers, body


class GatewayProtocol(HttpToolsProtocol):
    """One connection of a caller."""

    def __init__(self, gateway: "Gateway", **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.gateway = gateway
        self.answering: Exchange | None = None
        self._reading: Exchange | None = None
        self._is_in_head = False
        self._offers = False
        self._head_bytes = 0
        self._idle_since = math.inf
        self._idles: asyncio.TimerHandle | None = None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the request; uvicorn looks for an expectation in each."""
        self.headers.append((name.lower(), value))

    def data_received(self, data: bytes) -> None:
        """Some of a request; a head without end is not waited for."""
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                self._decline(offer, data)
        except httptools.HttpParserError:
            self.logger.warning(NO_HTTP)
            self.send_400_response(NO_HTTP)
            return
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.gateway.turn.flush()
                self.transport.write(HEAD_TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        """Of a request: which way it takes is not known yet."""
        self._idle_since = math.inf
        self._is_in_head, self._head_bytes = True, 0
        self.url = b""
        self.headers = []

    def on_headers_complete(self) -> None:
        """Take it, or make up for what uvicorn would have done so far."""
        self._offers = self.parser.should_upgrade()
        if self._offers:
            return  # it comes once more
        self._idle_since = math.inf  # an answer may have ended while the head came
        self._is_in_head = False
        endpoint = self._endpoint()
        if endpoint is None:
            url, headers = self.url, self.headers
            super().on_message_begin()
            self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore[dict-item]
            self.url = url
            for name, value in headers:
                super().on_header(name, value)
            self._reading = None
            super().on_headers_complete()
            return
        previous = self.cycle
        self._reading = exchange = Exchange(self, endpoint)
        self.cycle = exchange  # type: ignore[assignment]  # has all that uvicorn asks of its own
        if previous is None or previous.response_complete:
            exchange.start()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        """Some of it."""
        if self._reading is not None:
            self._reading.take(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        if self._offers:
            return
        if self._reading is not None:
            self._reading.taken()
        else:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Uvicorn's, without a timer for each answer: one a connection looks at the clock when it is due."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self._idles is None:
            self._idles = self.loop.call_later(self.timeout_keep_alive, self._end_if_idle)

    def _end_if_idle(self) -> None:
        self._idles = None
        idle_s = self.loop.time() - self._idle_since
        if idle_s >= self.timeout_keep_alive:
            self.timeout_keep_alive_handler()
        elif idle_s >= 0:
            self._idles = self.loop.call_later(self.timeout_keep_alive - idle_s, self._end_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone."""
        if self._idles is not None:
            self._idles.cancel()
        super().connection_lost(exc)
        if self.answering is not None:
            self.answering.left()
        # Cycles, which only the collector would free.
        self.cycle = self.parser = None  # type: ignore[assignment]  # nothing comes any more

    def resume_writing(self) -> None:
        """The caller has read what waited."""
        super().resume_writing()
        if self.answering is not None:
            self.answering.drained()

    def write(self, data: bytes) -> None:
        """Send this with whatever else leaves in this turn of the loop."""
        self.gateway.turn.write(self.transport, data)

    def close(self) -> None:
        """Close the connection after what was written."""
        self.gateway.turn.flush()
        self.transport.close()

    def shutdown(self) -> None:
        """The server stops."""
        self.gateway.turn.flush()
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP; the answers before it are still owed."""
        self.gateway.turn.flush()
        super().send_400_response(msg)

    def _endpoint(self) -> Endpoint | None:
        if self.parser.get_method() != b"POST":
            return None
        return HOT_PATHS.get(self.url) or HOT_PATHS.get(_path(self.url))

    def _decline(self, offer: httptools.HttpParserUpgrade, data: bytes) -> None:
        """Read requests that offer another protocol as if they did not.

        The parser stops behind the head of such a one, because whoever takes the offer reads on in another
        way. Nobody does here: some clients offer HTTP/2 with every request.
        """
        rest = memoryview(data)
        while True:
            rest, head = rest[offer.args[0] :], self._head_without_offer()
            self.parser = httptools.HttpRequestParser(self)  # the old one may take the connection for closed
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            self.parser.feed_data(head)
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as another:
                offer = another
            else:
                return

    def _head_without_offer(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":  # which is nothing but one
            raise httptools.HttpParserInvalidMethodError("sive is no proxy")
        lines = _lines([line for line in self.headers if line[0] != b"upgrade"])
        return b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version.encode(), lines)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Uvicorn's, for a request that had to wait its turn."""
        if isinstance(cycle, Exchange):
            self.loop.call_soon(cycle.start)  # not within its predecessor's end, which may be one of hundreds
        else:
            super()._start_asgi_task(cycle, app)


def _lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % line for line in headers])


def _path(url: bytes) -> bytes:
    try:
        path = httptools.parse_url(url).path or b""
    except httptools.HttpParserInvalidURLError:
        return b""
    return urllib.parse.unquote_to_bytes(path) if b"%" in path else path


class Exchange:
    """One request on a hot path and its answer: the driver's caller, and to uvicorn one of its cycles.

    It starts when its turn has come, which pipelining may put off; what came of its body until then waits.
    """

    message_event: ClassVar = asyncio.Event()
    """Uvicorn sets it when the caller leaves; nobody waits for it."""

    def __init__(self, protocol: GatewayProtocol, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.request_id = ""
        self.model: Model | None = None
        self.driver: Direct | Driver | None = None
        self.has_begun = False
        # What uvicorn looks at:
        self.disconnected = False
        self.response_complete = False
        self.keep_alive = protocol.parser.should_keep_alive() and protocol.parser.get_http_version() != "1.0"
        self._protocol = protocol
        self._gateway = protocol.gateway
        # By lower-case name; bytes that are not Latin-1 cannot occur in HTTP.
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in protocol.headers}
        if "x-api-key" in self.headers:
            self.headers["authorization"] = authorization(self.headers)
        self._is_on = False
        self._is_whole = False
        self._body: bytes | bytearray = b""
        self._limit = self._gateway.settings.gateway.max_body_bytes
        self._head = b""
        self._is_chunked = False

    # The request

    def start(self) -> None:
        """Its turn has come: look whether to read it at all, then begin when it is whole."""
        self._is_on = True
        self._protocol.answering = self
        try:
            self._gateway.access.check(self.headers, f"/v1/{self.endpoint}")
            self._check_length()
        except RequestError as problem:
            self._gateway.refuse(self, problem)
            return
        if self._is_whole:
            self._gateway.turn.run(self._answer)
        elif self.headers.get("expect", "").lower() == "100-continue":
            self._protocol.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def take(self, data: bytes) -> None:
        """Some of the body."""
        if self.response_complete:
            return  # it was refused unread
        if not self._body:
            self._body = data
        elif len(self._body) <= self._limit:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += data
        if len(self._body) > self._limit and self._is_on:
            self._gateway.refuse(self, self._too_large())

    def taken(self) -> None:
        """The body is complete."""
        self._is_whole = True
        if self._is_on and not self.response_complete:
            self._gateway.turn.run(self._answer)

    def _answer(self) -> None:
        if not self.disconnected:
            self._gateway.answer(self, bytes(self._body))

    def left(self) -> None:
        """The caller closed the connection."""
        self.disconnected = True
        if self.driver is not None:
            self.driver.left()

    def _check_length(self) -> None:
        declared = self.headers.get("content-length", "")
        if len(declared) > MAX_LENGTH_DIGITS or (declared.isdecimal() and int(declared) > self._limit):
            raise self._too_large()
        if len(self._body) > self._limit:
            raise self._too_large()

    def _too_large(self) -> RequestError:
        message = f"the request body is larger than {self._limit} bytes"
        return RequestError(message, status=413, code="request_too_large")

    # The answer

    @property
    def is_slow(self) -> bool:
        """Does so much wait to be read that nothing should follow for now?"""
        return self._protocol.flow.write_paused

    def drained(self) -> None:
        """What waited was read."""
        if self.driver is not None:
            self.driver.resume()

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """The head; it goes out together with what follows."""
        if self._gateway.cors:
            headers = headers | self._gateway.cors.headers(self.headers.get("origin"))
        self._is_chunked = "content-length" not in headers
        if self._is_chunked:
            headers["transfer-encoding"] = "chunked"
        self.keep_alive = self.keep_alive and headers.get("connection") != "close"
        if not self.keep_alive:
            headers["connection"] = "close"
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
            raise ValueError("a line break in a header")
        self._head = b"%b%b%b\r\n" % (
            STATUS_LINE[status],
            _lines(self._protocol.server_state.default_headers),
            lines.encode("latin-1", "replace"),
        )
        self.has_begun = True

    def send(self, data: bytes) -> None:
        """Some of the body."""
        head, self._head = self._head, b""
        if not self.disconnected:
            framed = b"%b%x\r\n%b\r\n" % (head, len(data), data) if self._is_chunked else head + data
            self._protocol.write(framed)

    def end(self, data: bytes) -> None:
        """The rest of the body."""
        if self._is_chunked:
            last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        else:
            last = data
        self.response_complete = True
        self._protocol.answering = None
        if self.disconnected:
            return
        self._protocol.write(self._head + last)
        if not self.keep_alive:
            self._protocol.close()
        self._protocol.on_response_complete()

    def end_early(self, *, status: int, message: str, code: str) -> None:
        """End the request from outside; the caller is told."""
        if self.driver is not None:
            self.driver.cancel(status=status, message=message, code=code)

    def abort(self) -> None:
        """The caller left, or never reads: what waits for it is dropped."""
        if not self.response_complete:
            self._protocol.transport.abort()

    def cut(self) -> None:
        """End in the middle: the caller sees that it was no clean end."""
        if self.driver is not None:
            self.driver.close()
            self.driver = None
        self._protocol.close()
