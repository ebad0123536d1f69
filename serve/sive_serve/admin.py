"""``/admin/adapters``: change what the engine serves while it serves."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from sive.errors import AdapterError, EngineError, RequestError, SiveError
from sive.protocol import SSE_HEADERS, error, event
from sive_adapters import registry
from sive_adapters.registry import Adapter
from sive_adapters.store import Progress
from starlette.responses import Response

from sive_serve import status
from sive_serve.adapter_state import Phase
from sive_serve.adapter_versions import Told
from sive_serve.auth import KeyRing
from sive_serve.engine_adapters import EngineAdapters
from sive_serve.gateway import Gateway
from sive_serve.pod_adapters import AUTOMATIC

HEARTBEAT_S = 10.0
MAX_BODY_BYTES = 100_000

log = logging.getLogger(__name__)

Json = dict[str, Any]
Change = Callable[[Told], Awaitable[None]]


def check_admin_key(keys: KeyRing, authorization: str) -> None:
    """Let only an administrator in.

    Raises:
        RequestError: 403 when there is no admin key at all, 401 when this is none.
    """
    if keys.is_open:
        message = "nobody may change what is served: start sive with SIVE_ADMIN_KEYS=KEY[,KEY...]"
        raise RequestError(message, status=403, type="permission_error", code="admin_is_off")
    keys.check(authorization)


def routes(gateway: Gateway) -> APIRouter:
    """The routes that only administrators reach."""
    router = APIRouter()

    @router.get("/admin/adapters")
    async def listed() -> JSONResponse:
        return JSONResponse(_adapters(gateway))

    @router.post("/admin/adapters")
    async def change(request: Request) -> Response:
        try:
            adapters = _of_engine(gateway)
            asked = await _body(request)
            act = _change(adapters, asked, is_automatic=AUTOMATIC in request.headers)
        except SiveError as exc:
            return _failure(exc)
        if "text/event-stream" in request.headers.get("accept", ""):
            return StreamingResponse(_told(gateway, act), headers=SSE_HEADERS, media_type="text/event-stream")
        try:
            await asyncio.shield(_kept(gateway, act(lambda phase, progress: None)))
        except SiveError as exc:
            return _failure(exc)
        return JSONResponse(_adapters(gateway))

    return router


def _adapters(gateway: Gateway) -> Json:
    engine, pods = gateway.engine, gateway.pods
    said: Json = {"adapters": {} if engine is None else status.adapters(engine, for_administrators=True)}
    if engine is not None and engine.adapters is not None:
        said["base_model"] = engine.adapters.wanted.listed_base_model
        # What this engine refused another one may take: who asks is told them apart.
        said["life"] = f"{gateway.started_at:.3f} {engine.state.restarts}"
    return said | ({} if pods is None else {"pods": pods.state(for_administrators=True)})


def _of_engine(gateway: Gateway) -> EngineAdapters:
    if gateway.engine is None or gateway.engine.adapters is None:
        raise AdapterError("this sive has no engine with adapters: set model and adapters under [engine]")
    return gateway.engine.adapters


async def _body(request: Request) -> Json:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise AdapterError(f"a change of more than {MAX_BODY_BYTES} bytes")
    try:
        asked = json.loads(bytes(body))
    except ValueError as exc:
        raise AdapterError(f"the body is not JSON: {exc}") from exc
    if not isinstance(asked, dict) or not isinstance(asked.get("name"), str):
        raise AdapterError(
            'a change looks like {"action": "update", "name": "spinoza", "source": "hf://..."}'
        )
    return asked


def _change(adapters: EngineAdapters, asked: Json, *, is_automatic: bool) -> Change:
    """What is to be done.

    Raises:
        AdapterError: there is no such action.
    """
    action, name = asked.get("action"), asked["name"]
    wanted, changes = adapters.wanted, adapters.changes
    put = partial(changes.put, name, is_automatic=is_automatic)
    keys = {key: value for key, value in asked.items() if key != "action"}

    def new(listed: Adapter | None) -> Adapter:
        if listed is not None:
            raise AdapterError(f"adapter {name!r} is listed already: update it")
        return wanted.parse({"base_model": wanted.listed_base_model, **keys})

    def other(listed: Adapter | None) -> Adapter:
        before = registry.keys_of(listed or wanted.wanted(name))
        for key in ("sha256", "previous"):
            before.pop(key, None)  # another version has other files
        return wanted.parse({**before, **keys})

    match action:
        case "add":
            return lambda told: _done(put(new, told=told))
        case "update":
            return lambda told: _done(put(other, told=told))
        case "rollback":
            return lambda told: _done(changes.roll_back(name, told=told))
        case "remove":
            return lambda told: changes.remove(name)
    raise AdapterError(f"action is {action!r}: write add, update, rollback or remove")


async def _done(work: Awaitable[object]) -> None:
    await work


def _kept(gateway: Gateway, work: Awaitable[None]) -> "asyncio.Future[None]":
    """Work that goes on when the administrator who asked for it leaves."""
    task = asyncio.ensure_future(work)
    gateway.changes.add(task)

    def ended(task: "asyncio.Future[None]") -> None:
        gateway.changes.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.warning("a change of adapters failed: %s", failure)

    task.add_done_callback(ended)
    return task


async def _told(gateway: Gateway, act: Change) -> AsyncIterator[bytes]:
    """The phases and the download as events, and what is served at the end."""
    news: asyncio.Queue[Json] = asyncio.Queue()

    def told(phase: Phase, progress: Progress | None) -> None:
        news.put_nowait({"phase": phase} | (asdict(progress) if progress is not None else {}))

    task = _kept(gateway, act(told))
    task.add_done_callback(lambda _: news.put_nowait({}))
    while not (task.done() and news.empty()):
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                said = await news.get()
        except TimeoutError:
            yield b": waiting\n\n"
            continue
        if said:
            yield event(said)
    try:
        await task
    except SiveError as exc:
        yield event(_problem(exc)[1])
    else:
        yield event(_adapters(gateway))


def _failure(exc: SiveError) -> JSONResponse:
    code, payload = _problem(exc)
    return JSONResponse(payload, status_code=code)


def _problem(exc: SiveError) -> tuple[int, Json]:
    if isinstance(exc, EngineError):
        return 503, error(str(exc), type="server_error", code="engine_failed")
    return 400, error(str(exc), type="invalid_request_error", code="adapter_refused")
