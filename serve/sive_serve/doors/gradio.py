"""The Gradio face: what ``gradio_client`` and ``@gradio/client`` speak to a Space, spoken to the gateway."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sive.config import FunctionSettings
from sive.errors import RequestError
from sive.protocol import Json

from sive_serve.asgi import EventStream, JsonResponse, body_of, json_object, while_here
from sive_serve.auth import authorization
from sive_serve.doors import gradio_messages as messages
from sive_serve.doors.answers import Answer, Question, default_model, known_model
from sive_serve.doors.callers import noted
from sive_serve.doors.gradio_functions import API_PREFIX, Functions
from sive_serve.doors.gradio_jobs import Job, Jobs, Stream
from sive_serve.doors.gradio_streams import HEARTBEAT_S, call_events, session_events
from sive_serve.doors.gradio_turn import Turn, named, turn
from sive_serve.gateway import Gateway

PREFIXES = (API_PREFIX, "")
"""Gradio 5 and later, and before."""

MAX_SMALL_BYTES = 10_000


def routes(gateway: Gateway) -> APIRouter:
    """Every page that the two clients ask for, with and without the prefix."""
    door = _Door(gateway)
    router = APIRouter()
    router.add_api_route("/config", door.config)
    for prefix in PREFIXES:
        for path, endpoint, method in (
            ("/info", door.info, "GET"),
            ("/startup-events", door.startup_events, "GET"),
            ("/app_id", door.app_id, "GET"),
            ("/heartbeat/{session_hash}", door.heartbeat, "GET"),
            ("/queue/status", door.queue_status, "GET"),
            ("/queue/join", door.join, "POST"),
            ("/queue/data", door.session_stream, "GET"),
            ("/call/v2/{name:path}", door.call_named, "POST"),
            ("/call/{name:path}", door.call, "POST"),
            ("/call/{name:path}/{event_id}", door.call_stream, "GET"),
            ("/run/{name:path}", door.run, "POST"),
            ("/predict/{name:path}", door.run, "POST"),
            ("/api/{name:path}", door.run, "POST"),
            ("/cancel", door.cancel, "POST"),
            ("/reset", door.cancel, "POST"),
        ):
            router.add_api_route(prefix + path, endpoint, methods=[method], response_model=None)
    return router


class _Door:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._functions = Functions(gateway.settings.compat.functions)
        self._jobs = Jobs()

    # What there is

    async def config(self) -> JsonResponse:
        return JsonResponse(self._functions.config())

    async def info(self) -> JsonResponse:
        return JsonResponse(self._functions.info())

    async def startup_events(self) -> JsonResponse:
        return JsonResponse(True)

    async def app_id(self) -> JsonResponse:
        return JsonResponse({"app_id": self._functions.config()["app_id"]})

    async def queue_status(self) -> JsonResponse:
        status = {"msg": "estimation", "event_id": None, "rank": None, "queue_size": 0, "rank_eta": None}
        return JsonResponse(status)

    async def heartbeat(self, session_hash: str) -> EventStream:
        return self._streamed(self._alive())

    async def _alive(self) -> AsyncIterator[bytes]:
        stopping = self._gateway.stopping
        while not stopping.is_set():
            yield b"data: ALIVE\n\n"
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await stopping.wait()
            except TimeoutError:
                continue

    # Calls

    async def join(self, request: Request) -> JsonResponse:
        """A call by its number in a session, whose stream tells what becomes of it."""
        try:
            asked, size = await self._body(request)
            if not isinstance(asked.get("session_hash"), str):
                raise RequestError("Session hash not found.")
            return self._started(request, self._functions.at(asked.get("fn_index")), asked, size)
        except RequestError as problem:
            return self._refused(problem)

    async def call(self, request: Request, name: str) -> JsonResponse:
        """A call by its name, which is then read alone."""
        try:
            asked, size = await self._body(request)
            return self._started(request, self._functions.named(name), asked, size)
        except RequestError as problem:
            return self._refused(problem)

    async def call_named(self, request: Request, name: str) -> JsonResponse:
        """A call with named arguments."""
        try:
            asked, size = await self._body(request)
            function = self._functions.named(name)
            return self._started(request, function, {"data": named(function, asked)}, size)
        except RequestError as problem:
            return self._refused(problem)

    async def run(self, request: Request, name: str) -> JsonResponse:
        """A call that is answered in one piece."""
        started_at = time.monotonic()
        try:
            asked, _ = await self._body(request)
            made = turn(self._functions.run(name, asked.get("fn_index")), asked.get("data"))
            with Answer(self._gateway, self._question(made), request.headers, stream=False) as answer:
                text = await while_here(request, answer.whole())
                taken_s = time.monotonic() - started_at
                output = {"data": made.outputs(text), "is_generating": False, "duration": taken_s}
                output["average_duration"] = taken_s
                return JsonResponse(output, headers=await answer.headers())
        except RequestError as problem:
            headers = noted(self._gateway, problem)
            return JsonResponse(messages.failure(problem), problem.status, headers=headers)

    async def cancel(self, request: Request) -> JsonResponse:
        """End a call: its id, which nobody can guess, is all that it takes."""
        try:
            asked = json_object(await body_of(request, max_bytes=MAX_SMALL_BYTES))
        except RequestError as problem:
            return self._refused(problem)
        job = self._jobs.find(str(asked.get("event_id")))
        if job is not None:
            job.cancel()
        return JsonResponse({"success": True})

    async def _body(self, request: Request) -> tuple[Json, int]:
        body = await body_of(request, max_bytes=self._gateway.settings.gateway.max_body_bytes)
        return json_object(body), len(body)

    def _started(self, request: Request, function: FunctionSettings, asked: Json, size: int) -> JsonResponse:
        caller = self._caller(request)
        self._jobs.check_room(size, caller)
        made = turn(function, asked.get("data"))
        event_id = secrets.token_hex(16)
        headers = {"x-request-id": event_id, **request.headers}
        answer = Answer(self._gateway, self._question(made), headers, stream=True)
        session = str(asked.get("session_hash") or event_id), caller
        self._jobs.add(Job(event_id, session, made, answer, size=size))
        return JsonResponse({"event_id": event_id})

    def _question(self, made: Turn) -> Question:
        name = made.philosopher or default_model(self._gateway)
        return Question(known_model(self._gateway, name, "philosopher"), made.messages)

    def _refused(self, problem: RequestError) -> JsonResponse:
        """As Gradio tells it: arguments that are wrong are named one by one."""
        headers = noted(self._gateway, problem)
        detail: Any = problem.message
        if problem.status == 422:
            what = {"parameter_name": problem.param, "message": problem.message}
            detail = [{"__type__": "validate", "is_valid": False, **what}]
        return JsonResponse({"detail": detail}, problem.status, headers=headers)

    # What becomes of them

    async def call_stream(self, request: Request, event_id: str) -> Response:
        """The answer to one call, each time all that is said so far."""
        job = self._jobs.read_one(event_id, self._caller(request))
        if job is None:
            return self._streamed(_once(messages.event("error", messages.NOT_FOUND)))
        stream = Stream()
        try:
            headers = await while_here(request, job.answer.headers())
        except RequestError:
            headers = {}
        stream.add(job)
        events = call_events(stream, self._jobs)
        return self._streamed(events, lambda: self._jobs.close(stream), headers)

    async def session_stream(self, request: Request, session_hash: str = "") -> EventStream:
        """All calls of one session, as they go on."""
        session = session_hash, self._caller(request)
        stream = self._jobs.read_session(session)
        if stream is None:
            return self._streamed(_once(messages.session_not_found()))
        events = session_events(stream, self._jobs, session)
        return self._streamed(events, lambda: self._jobs.close(stream, session))

    def _caller(self, request: Request) -> str:
        """Whoever this is; empty without a key, which gets here only where none is needed."""
        given = authorization(request.headers)
        access = self._gateway.access
        return "" if not given and access.is_open else access.caller(given)

    def _streamed(
        self,
        events: AsyncIterator[bytes],
        close: Callable[[], None] = lambda: None,
        headers: dict[str, str] | None = None,
    ) -> EventStream:
        patience_s = self._gateway.settings.gateway.deadline_s
        return EventStream(events, close=close, patience_s=patience_s, headers=headers)


async def _once(event: bytes) -> AsyncIterator[bytes]:
    yield event
