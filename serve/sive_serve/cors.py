"""CORS: which pages of other origins may call from a browser, and what they may send and read."""

import re
from collections.abc import Collection
from http import HTTPStatus

from sive.protocol import JSON_HEADERS, dumps, error
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = "GET, POST"
MAX_AGE_S = 7200
"""How long a browser need not ask again: the longest that Chromium takes."""

EXPOSED = (
    "x-request-id",
    "x-sive-backend",
    "x-sive-degraded",
    "x-sive-attempts",
    "retry-after",
    "x-should-retry",
)
"""Headers of answers that a page may read."""

_ALLOWED = re.compile(
    r"accept|authorization|content-type|x-api-key|x-gradio-user|x-hf-authorization|x-request-id"
    r"|(?:x-sive|x-stainless|anthropic)-[a-z0-9-]+"
)
"""Headers of requests that a page may send: ours, and those that SDKs add."""

Told = dict[str, str]


class Cors:
    """``origins``: exactly as browsers spell them, or ``*`` for all pages."""

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)
        self._is_open = "*" in self._origins

    def __bool__(self) -> bool:
        """Is anybody named?"""
        return bool(self._origins)

    def headers(self, origin: str | None) -> Told:
        """What lets a page of ``origin`` read an answer; None: whoever asks is no page."""
        if not self._origins:
            return {}
        told = {} if self._is_open else {"vary": "Origin"}
        if origin is None or not self.lets_in(origin):
            return told
        allowed = "*" if self._is_open else origin
        return told | {
            "access-control-allow-origin": allowed,
            "access-control-expose-headers": ", ".join(EXPOSED),
        }

    def lets_in(self, origin: str) -> bool:
        """May pages of this origin call?"""
        return self._is_open or origin in self._origins

    def preflight(self, origin: str, asked: str) -> Response:
        """The answer to a browser that asks before it sends; ``asked``: the headers it would send."""
        vary = {"vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"}
        if not self.lets_in(origin):
            message = f"pages of {origin[:200]!r} may not call: [gateway] cors_origins does not name it"
            body = dumps(error(message, type="invalid_request_error", code="origin_not_allowed"))
            return Response(body, HTTPStatus.FORBIDDEN, vary | JSON_HEADERS)
        names = {name.strip().lower() for name in asked.split(",")}
        told = {
            "access-control-allow-methods": METHODS,
            "access-control-allow-headers": ", ".join(sorted(filter(_ALLOWED.fullmatch, names))),
            "access-control-max-age": str(MAX_AGE_S),
        }
        return Response(status_code=HTTPStatus.NO_CONTENT, headers=self.headers(origin) | told | vary)


class CorsPages:
    """An ASGI application whose pages may be read as ``cors`` says; preflights need no key."""

    def __init__(self, app: ASGIApp, cors: Cors) -> None:
        self._app = app
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight; of any other request the answer says who may read it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope)
        origin = asked.get("origin")
        if origin is not None and scope["method"] == "OPTIONS" and "access-control-request-method" in asked:
            answer = self._cors.preflight(origin, asked.get("access-control-request-headers", ""))
            await answer(scope, receive, send)
            return

        async def send_told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._cors.headers(origin).items():
                    headers.add_vary_header(value) if name == "vary" else headers.update({name: value})
            await send(message)

        await self._app(scope, receive, send_told)
