"""The raw ASGI side of one request: its body in, bytes out, and the news that the caller left."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sive.errors import RequestError
from sive.protocol import JSON_HEADERS, dumps, error_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


MAX_LENGTH_DIGITS = 18


class CallerLeftError(Exception):
    """The caller closed the connection before the request was complete."""


def headers_of(scope: Scope) -> dict[str, str]:
    """Headers by lower-case name; bytes that are not Latin-1 cannot occur in HTTP."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def read_body(receive: Receive, headers: dict[str, str], limit: int) -> bytes:
    """The whole request body.

    Raises:
        RequestError: 413, as soon as it is plain that the body is larger than ``limit`` bytes.
        CallerLeftError: it never came.
    """
    declared = headers.get("content-length", "")
    if len(declared) > MAX_LENGTH_DIGITS or (declared.isdecimal() and int(declared) > limit):
        raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message["body"]
    else:
        body = await _collect(message, receive, limit)
    if len(body) > limit:
        raise _too_large(limit)
    return body


async def _collect(message: Message, receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        if message["type"] != "http.request":
            raise CallerLeftError
        body += message["body"]
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return bytes(body)
        message = await receive()


def _too_large(limit: int) -> RequestError:
    message = f"the request body is larger than {limit} bytes"
    return RequestError(message, status=413, code="request_too_large")


class AsgiCaller:
    """Who gets the answer, as the driver knows it."""

    def __init__(self, send: Send) -> None:
        self.has_begun = False
        self.raw_send = send

    async def begin(self, status: int, headers: dict[str, str]) -> None:
        """The head."""
        self.has_begun = True
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self.raw_send({"type": "http.response.start", "status": status, "headers": raw})

    async def send(self, data: bytes) -> None:
        """Some of the body; waits while the caller is slow."""
        await self.raw_send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        """The rest of the body."""
        await self.raw_send({"type": "http.response.body", "body": data, "more_body": False})


async def refuse(send: Send, problem: RequestError, *, request_id: str = "") -> None:
    """Answer a wrong request; the connection is closed when its body was not read."""
    body = dumps(error_of(problem))
    headers = JSON_HEADERS | {"content-length": str(len(body)), "x-should-retry": "false"}
    if request_id:
        headers["x-request-id"] = request_id
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    if problem.status == 413:
        headers["connection"] = "close"
    caller = AsgiCaller(send)
    await caller.begin(problem.status, headers)
    await caller.end(body)
