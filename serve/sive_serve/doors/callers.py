"""What the doors know of their callers: where the key is, and how an error is told."""

from sive.errors import RequestError
from starlette.types import ASGIApp, Receive, Scope, Send

from sive_serve.asgi import JsonResponse
from sive_serve.doors.answers import AnswerError
from sive_serve.gateway import Gateway

KEYS = {b"x-hf-authorization": b"", b"x-api-key": b"Bearer "}
"""Other headers that carry a key, and what is missing there.

``gradio_client`` puts its ``token`` where Hugging Face's proxy wants it; Anthropic's SDKs have their own.
"""

CARRIERS = (b"authorization", *KEYS)

NO_KEY = ("/health", "/gradio_api/cancel", "/gradio_api/reset", "/cancel", "/reset")
"""The process lives; and what ``@gradio/client`` sends without a key, with an id that nobody can guess."""


def needs_no_key(path: str) -> bool:
    """May everybody ask for this page?"""
    return path in NO_KEY


class KeyHeaders:
    """Puts a key that came in another header where everybody looks for one, unless one is there.

    An empty header is as none, and is taken away: all that come after see the same caller.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at the head, and pass the request on."""
        if scope["type"] == "http":
            headers = [
                (name, value) for name, value in scope["headers"] if name not in CARRIERS or value.strip()
            ]
            named = dict(reversed(headers))  # of several the first, as everywhere
            found = [before + named[name] for name, before in KEYS.items() if name in named]
            if found and b"authorization" not in named:
                headers.append((b"authorization", found[0]))
            scope = {**scope, "headers": headers}
        await self._app(scope, receive, send)


def refused(gateway: Gateway, problem: RequestError) -> JsonResponse:
    """An error as the clients of the small REST apps read it: a status, and a text."""
    return JsonResponse({"error": problem.message}, problem.status, headers=noted(gateway, problem))


def noted(gateway: Gateway, problem: RequestError) -> dict[str, str]:
    """Count an error that only a door knows of; what else its head should say."""
    if isinstance(problem, AnswerError):
        return problem.headers
    gateway.metrics.refused(problem.status)
    return {}
