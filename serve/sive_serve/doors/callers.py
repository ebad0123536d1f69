"""What the doors know of their callers: where the key is, and how an error is told."""

from collections.abc import Mapping

from fastapi import Request
from fastapi.responses import JSONResponse
from sive.errors import RequestError
from starlette.datastructures import Headers

from sive_serve.doors.answers import AnswerError
from sive_serve.gateway import Gateway

SPACE_KEY = "x-hf-authorization"
"""Where ``gradio_client`` puts its ``token``: Hugging Face's proxy takes it there, and so do we."""


NO_KEY = ("/health", "/gradio_api/cancel", "/gradio_api/reset", "/cancel", "/reset")
"""The process lives; and what ``@gradio/client`` sends without a key, with an id that nobody can guess."""


def needs_no_key(path: str) -> bool:
    """May everybody ask for this page?"""
    return path in NO_KEY


def authorization(headers: Headers) -> str:
    """The key that a caller of a door came with, as an ``Authorization`` header."""
    return headers.get("authorization") or headers.get(SPACE_KEY, "")


def headers_of(request: Request) -> Mapping[str, str]:
    """A caller's headers, with its key where the gateway looks for one."""
    key = authorization(request.headers)
    return dict(request.headers) | ({"authorization": key} if key else {})


def refused(gateway: Gateway, problem: RequestError) -> JSONResponse:
    """An error as the clients of the small REST apps read it: a status, and a text."""
    return JSONResponse({"error": problem.message}, problem.status, headers=noted(gateway, problem))


def noted(gateway: Gateway, problem: RequestError) -> dict[str, str]:
    """Count an error that only a door knows of; what else its head should say."""
    if isinstance(problem, AnswerError):
        return problem.headers
    gateway.metrics.refused(problem.status)
    return {}
