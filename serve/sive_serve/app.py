"""The ASGI application: everything but the hot paths, which `http` answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sive.calls import request_id as id_of
from sive.errors import RequestError
from sive.protocol import error
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from sive_serve import doors, status
from sive_serve.admin import check_admin_key, routes
from sive_serve.auth import authorization
from sive_serve.cors import CorsPages
from sive_serve.doors.callers import KeyHeaders, needs_no_key
from sive_serve.gateway import Gateway
from sive_serve.http import HOT_PATHS

SDK_PATHS = ("/chat/completions", "/completions", "/embeddings", "/messages", "/models", "/responses")
"""What an SDK asks for whose ``base_url`` lacks its ``/v1``."""

OTHER_METHODS = ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"]
"""What an endpoint that takes POST is not asked with."""


def create_app(gateway: Gateway) -> ASGIApp:
    """The application that serves a gateway; its lifespan starts and stops it."""
    app: ASGIApp = KeyHeaders(_Front(gateway, _pages(gateway)))
    return CorsPages(app, gateway.cors) if gateway.cors else app


class _Front:
    """Checks the key of everything but the chat page and a few others; /admin has keys of its own."""

    def __init__(self, gateway: Gateway, pages: ASGIApp) -> None:
        self._gateway = gateway
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._pages
        if scope["type"] == "http" and not needs_no_key(scope["path"]):
            headers = Headers(scope=scope)
            if found := self._gateway.page.answer(scope["method"], scope["path"], headers):
                await found(scope, receive, send)
                return
            try:
                if scope["path"].startswith("/admin"):
                    check_admin_key(self._gateway.admin_keys, headers.get("authorization", ""))
                else:
                    self._gateway.access.check(headers, scope["path"])
            except RequestError as problem:
                told, body = self._gateway.refusal(problem, id_of(headers))
                app = Response(body, problem.status, told)
        await app(scope, receive, send)


def _pages(gateway: Gateway) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    # Nobody is sent elsewhere for a slash too many: behind a proxy it would be to http, and in clear text.
    app = FastAPI(title="sive", lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.include_router(routes(gateway))
    app.add_exception_handler(StarletteHTTPException, _openai_error)

    for path in SDK_PATHS:  # before the doors, one of which would take the first of them for a question
        app.add_api_route(path, _without_version, methods=["GET", "POST"])

    for hot in HOT_PATHS:  # with POST they do not come here
        app.add_api_route(hot.decode(), _only_post, methods=OTHER_METHODS)

    @app.get("/v1/models")
    async def models(request: Request) -> JSONResponse:
        return JSONResponse(status.models(gateway, authorization(request.headers)))

    @app.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> Response:
        try:
            return JSONResponse(status.model(gateway, name, authorization(request.headers)))
        except RequestError as problem:
            headers, body = gateway.refusal(problem, id_of(request.headers))
            return Response(body, problem.status, headers)

    @app.post("/v1/requests/{request_id}/cancel")
    async def cancel(request_id: str, request: Request) -> JSONResponse:
        cancelled = gateway.cancel(request_id, authorization(request.headers))
        if not cancelled:
            message = f"no request {request_id[:128]!r} of yours is being answered"
            payload = error(message, type="invalid_request_error", code="request_not_found")
            return JSONResponse(payload, status_code=404)
        return JSONResponse({"id": request_id, "cancelled": cancelled})

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get("/ready")
    async def ready(model: str | None = None, require: str | None = None) -> JSONResponse:
        if model is not None and model not in gateway.table:
            raise HTTPException(404, f"the model {model[:200]!r} is not served")
        if require not in (None, "adapter"):  # who asks for more than that must not be misunderstood
            raise HTTPException(400, f"require must be 'adapter', not {require[:40]!r}")
        said = status.readiness(gateway, model=model, own_voice=require is not None)
        return JSONResponse(said, status_code=200 if said["ready"] else 503)

    @app.get("/status")
    async def status_() -> JSONResponse:
        return JSONResponse(status.status(gateway))

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(gateway.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    app.include_router(doors.routes(gateway))  # last: none of them may stand before a page of our own
    return app


async def _without_version(request: Request) -> JSONResponse:
    """Nothing; but who asks most likely meant the same below ``/v1``."""
    path = request.url.path
    message = f"there is no {path} here: did you mean /v1{path}? An SDK's base_url ends in /v1"
    payload = error(message, type="invalid_request_error", code="unknown_url")
    return JSONResponse(payload, status_code=404)


async def _only_post(request: Request) -> JSONResponse:
    """Nothing: who opens an endpoint's URL in a browser is told what it takes."""
    message = f"{request.method} {request.url.path}: this endpoint takes POST, with a JSON body"
    payload = error(message, type="invalid_request_error", code="method_not_allowed")
    return JSONResponse(payload, status_code=405, headers={"allow": "POST"})


async def _openai_error(request: Request, exc: Exception) -> JSONResponse:
    """What is not there, in the shape that every SDK understands."""
    assert isinstance(exc, HTTPException | StarletteHTTPException)  # noqa: S101 - registered for these alone
    message = f"{request.method} {request.url.path}: {exc.detail}"
    payload = error(
        message, type="invalid_request_error", code="unknown_url" if exc.status_code == 404 else None
    )
    return JSONResponse(payload, status_code=exc.status_code, headers=exc.headers)
