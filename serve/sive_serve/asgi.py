"""What faces need of ASGI: a body that is bounded, and a caller who may leave while it waits."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from sive.errors import RequestError
from sive.protocol import SSE_HEADERS, Json, dumps, loads
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

T = TypeVar("T")

LEFT_STATUS = 499
"""nginx's code for a caller who left; nobody reads it."""

ABORT = "sive.abort"
"""An ASGI extension: ends the connection with all that waits to be read, which closing it would wait for."""


class JsonResponse(Response):
    """JSON as everywhere here: a number too large to be one is null, and no error after the work is done."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return dumps(content)


class EventStream(StreamingResponse):
    """Server-sent events; ``close`` is called when they are over, however that came about.

    ``patience_s``: a caller who takes nothing for so long is let go.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        *,
        close: Callable[[], None],
        patience_s: float,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(events, headers=SSE_HEADERS | (headers or {}))
        self._close = close
        self._patience_s = patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them; a caller who leaves, or never reads, ends that."""

        async def patiently(message: Message) -> None:
            try:
                async with asyncio.timeout(self._patience_s):
                    await send(message)
            except TimeoutError as exc:
                raise ClientDisconnect from exc

        try:
            await super().__call__(scope, receive, patiently)
        except ClientDisconnect:
            scope["extensions"][ABORT]()
            await _left(receive)
        finally:
            self._close()


async def json_body(request: Request, *, max_bytes: int) -> Json:
    """The JSON object that a request brings.

    Raises:
        RequestError: it is too large, or no JSON object.
    """
    return json_object(await body_of(request, max_bytes=max_bytes))


async def body_of(request: Request, *, max_bytes: int) -> bytes:
    """All that a request brings.

    Raises:
        RequestError: 413, it is too large.
    """
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > max_bytes:
                message = f"the request body is larger than {max_bytes} bytes"
                raise RequestError(message, status=413, code="request_too_large")
    except ClientDisconnect as exc:
        raise RequestError("the caller left", status=LEFT_STATUS, code="caller_left") from exc
    return bytes(body)


def json_object(body: bytes) -> Json:
    """A body's JSON object.

    Raises:
        RequestError: 400, it is none.
    """
    try:
        asked = loads(body)
    except ValueError as exc:
        raise RequestError(f"the body is not valid JSON: {exc}", code="invalid_json") from exc
    if not isinstance(asked, dict):
        raise RequestError("the body must be a JSON object", code="invalid_json")
    return asked


async def while_here(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do it while the caller, whose body was read, waits for it; stop when it leaves.

    Raises:
        RequestError: the caller left.
    """
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise RequestError("the caller left", status=LEFT_STATUS, code="caller_left")
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
