"""The ASGI application: the hot path first, FastAPI behind it for everything else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sive.calls import request_id
from sive.errors import RequestError
from sive.protocol import Endpoint, error
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from sive_serve import status
from sive_serve.asgi import Receive, Scope, Send, headers_of
from sive_serve.gateway import Gateway

HOT_PATHS: dict[str, Endpoint] = {
    "/v1/chat/completions": "chat/completions",
    "/v1/completions": "completions",
}
ANSWER_HEADERS = ("x-request-id", "x-sive-backend", "x-sive-degraded", "x-sive-attempts", "retry-after")


def create_app(gateway: Gateway) -> ASGIApp:
    """The application that serves a gateway; its lifespan starts and stops it."""
    app: ASGIApp = _Front(gateway, _pages(gateway))
    if origins := gateway.settings.gateway.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=ANSWER_HEADERS,
        )
    return app


class _Front:
    """Checks the key, then answers the hot paths itself: a framework's routing costs as much as they do."""

    def __init__(self, gateway: Gateway, pages: ASGIApp) -> None:
        self._gateway = gateway
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._pages(scope, receive, send)
            return
        if scope["path"] != "/health" and not self._gateway.keys.is_open:
            try:
                self._gateway.keys.check(_authorization(scope))
            except RequestError as problem:
                await self._gateway.refuse(send, problem, request_id=request_id(headers_of(scope)))
                return
        endpoint = HOT_PATHS.get(scope["path"]) if scope["method"] == "POST" else None
        if endpoint is not None:
            await self._gateway.answer(endpoint, scope, receive, send)
        else:
            await self._pages(scope, receive, send)


def _authorization(scope: Scope) -> bytes:
    return next((value for name, value in scope["headers"] if name == b"authorization"), b"")


def _pages(gateway: Gateway) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    app = FastAPI(title="sive", lifespan=lifespan, openapi_url=None)
    app.add_exception_handler(StarletteHTTPException, _openai_error)

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse(status.models(gateway))

    @app.post("/v1/requests/{request_id}/cancel")
    async def cancel(request_id: str, request: Request) -> JSONResponse:
        cancelled = gateway.cancel(request_id, request.headers.get("authorization", ""))
        if not cancelled:
            message = f"no request {request_id[:128]!r} of yours is being answered"
            payload = error(message, type="invalid_request_error", code="request_not_found")
            return JSONResponse(payload, status_code=404)
        return JSONResponse({"id": request_id, "cancelled": cancelled})

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get("/ready")
    async def ready() -> JSONResponse:
        said = status.readiness(gateway)
        return JSONResponse(said, status_code=200 if said["ready"] else 503)

    @app.get("/status")
    async def status_() -> JSONResponse:
        return JSONResponse(status.status(gateway))

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(gateway.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def _openai_error(request: Request, exc: Exception) -> JSONResponse:
    """What is not there, in the shape that every SDK understands."""
    assert isinstance(exc, HTTPException | StarletteHTTPException)  # noqa: S101 - registered for these alone
    message = f"{request.method} {request.url.path}: {exc.detail}"
    payload = error(
        message, type="invalid_request_error", code="unknown_url" if exc.status_code == 404 else None
    )
    return JSONResponse(payload, status_code=exc.status_code, headers=exc.headers)
