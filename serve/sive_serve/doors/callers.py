"""What the doors know of their callers: where the key is, and how an error is told."""

from fastapi.responses import JSONResponse
from sive.errors import RequestError
from starlette.types import ASGIApp, Receive, Scope, Send

from sive_serve.doors.answers import AnswerError
from sive_serve.gateway import Gateway

SPACE_KEY = b"x-hf-authorization"
"""Where ``gradio_client`` puts its ``token``, as Hugging Face's proxy wants it."""


NO_KEY = ("/health", "/gradio_api/cancel", "/gradio_api/reset", "/cancel", "/reset")
"""The process lives; and what ``@gradio/client`` sends without a key, with an id that nobody can guess."""


def needs_no_key(path: str) -> bool:
    """May everybody ask for this page?"""
    return path in NO_KEY


class SpaceKeys:
    """Puts the key of ``gradio_client``'s ``token`` where everybody looks for one, unless one is there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at the head, and pass the request on."""
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            if SPACE_KEY in headers and b"authorization" not in headers:
                moved = [*scope["headers"], (b"authorization", headers[SPACE_KEY])]
                scope = {**scope, "headers": moved}
        await self._app(scope, receive, send)


def refused(gateway: Gateway, problem: RequestError) -> JSONResponse:
    """An error as the clients of the small REST apps read it: a status, and a text."""
    return JSONResponse({"error": problem.message}, problem.status, headers=noted(gateway, problem))


def noted(gateway: Gateway, problem: RequestError) -> dict[str, str]:
    """Count an error that only a door knows of; what else its head should say."""
    if isinstance(problem, AnswerError):
        return problem.headers
    gateway.metrics.refused(problem.status)
    return {}
