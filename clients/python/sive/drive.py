"""The one async driver: does what a chain says, and tells it what happened."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

from sive import sse
from sive.backends import Reply, Translate, WireName
from sive.chain import Chain
from sive.errors import LostError
from sive.events import (
    Alarm,
    Begin,
    CallerLeft,
    Cancelled,
    Close,
    End,
    Event,
    First,
    Head,
    Incoming,
    Lost,
    Open,
    Relay,
    Send,
    Step,
    Whole,
)
from sive.relay import FailedInBand, Finished, has_token, is_error
from sive.relay import Relay as AnyRelay
from sive.wires import Wire, WireRequest, WireResponse

log = logging.getLogger(__name__)

MAX_REPLY_BYTES = 32_000_000
"""A whole answer, or a step's reply, larger than this is a broken neighbour."""

MAX_HELD_BYTES = 1_000_000
"""Bytes a stream may send before its first token."""

Wires = Mapping[WireName, Wire]


class Caller(Protocol):
    """Who gets the answer."""

    async def begin(self, status: int, headers: dict[str, str]) -> None:
        """The head; called once, first."""

    async def send(self, data: bytes) -> None:
        """Some of the body; waits while the caller is slow."""

    async def end(self, data: bytes) -> None:
        """The rest of the body."""


class Driver:
    """Runs one chain. ``left`` may be called from the event loop when the caller closes the connection."""

    def __init__(self, chain: Chain, wires: Wires, caller: Caller) -> None:
        self._chain = chain
        self._wires = wires
        self._caller = caller
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Incoming] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._attempts: dict[int, _Attempt] = {}

    def left(self) -> None:
        """The caller closed the connection."""
        self._put(CallerLeft(self._loop.time()))

    def cancel(self, *, status: int, message: str, code: str) -> None:
        """End the request from outside; its caller is told."""
        self._put(Cancelled(self._loop.time(), status, message, code))

    async def run(self) -> None:
        """Drive the chain to its end; whatever is open then is closed, also when this task is cancelled."""
        try:
            step = self._chain.start()
            while await self._do(step):
                step = self._chain.send(await self._next(step.until))
        finally:
            self._chain.close()
            for attempt in self._attempts.values():
                attempt.close()
            self._attempts.clear()  # they hold this driver in turn

    async def _do(self, step: Step) -> bool:
        """Run a step's commands; False when there is nothing to wait for."""
        for command in step.do:
            match command:
                case Open():
                    self._attempts[command.id] = _Attempt(command, self._wires, self._caller, self._put)
                case Relay():
                    self._attempts[command.id].relay(command.relay)
                case Close():
                    self._attempts.pop(command.id).close()
                case Begin():
                    await self._caller.begin(command.status, command.headers)
                case Send():
                    await self._caller.send(command.data)
                case End():
                    await self._caller.end(command.data)
        return step.until is not None

    async def _next(self, until: float | None) -> Incoming:
        while not self._drop_stale():
            self._wake = self._loop.create_future()
            timer = None if until is None else self._loop.call_at(until, self._alarm)
            try:
                await self._wake
            finally:
                self._wake = None
                if timer is not None:
                    timer.cancel()
        return self._inbox.popleft()

    def _drop_stale(self) -> bool:
        """Is there an event? Those of attempts that were closed meanwhile are nobody's news."""
        while self._inbox:
            first = self._inbox[0]
            if not isinstance(first, Head | Event | Lost) or first.id in self._attempts:
                return True
            self._inbox.popleft()
        return False

    def _alarm(self) -> None:
        self._put(Alarm(self._loop.time()))

    def _put(self, incoming: Incoming) -> None:
        if isinstance(incoming, Head | Event | Lost) and incoming.id not in self._attempts:
            return
        self._inbox.append(incoming)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class _Attempt:
    """One open attempt: walks the backend's flow, finds the first token, then pumps through the relay."""

    def __init__(self, opened: Open, wires: Wires, caller: Caller, put: Callable[[Incoming], None]) -> None:
        self._opened = opened
        self._wire = wires[opened.rung.backend.wire]
        self._caller = caller
        self._put = put
        self._loop = asyncio.get_running_loop()
        self._won: asyncio.Future[AnyRelay] | None = None
        self._task = self._loop.create_task(self._run())

    def relay(self, relay: AnyRelay) -> None:
        """It has won: pass on what is held, and all that follows."""
        assert self._won is not None  # noqa: S101 - only a stream that had its first token can win
        self._won.set_result(relay)

    def close(self) -> None:
        """Abort; the connection closes at once."""
        self._task.cancel()

    async def _run(self) -> None:
        try:
            response, translate = await self._fetch()
            try:
                self._put(Head(self._opened.id, self._loop.time(), response.status, response.headers))
                await self._read(response, translate)
            finally:
                await response.aclose()
        except LostError as lost:
            self._put(Lost(self._opened.id, self._loop.time(), lost.why))
        except Exception:  # the outermost frame of a task: whatever broke, the request must go on
            log.exception("the attempt on backend %r failed", self._opened.rung.backend.name)
            self._put(Lost(self._opened.id, self._loop.time(), "malformed"))

    async def _fetch(self) -> tuple[WireResponse, Translate | None]:
        """Walk the backend's flow up to the reply that is the answer."""
        flow = self._opened.rung.backend.flow(self._opened.request)
        request: WireRequest = next(flow)
        while True:
            response = await self._wire.open(request)
            try:
                body = await _read_whole(response) if request.reads_body else b""
                request = flow.send(Reply(response.status, response.headers, body))
            except StopIteration as stop:
                return response, stop.value
            except BaseException:
                await response.aclose()
                raise
            await response.aclose()

    async def _read(self, response: WireResponse, translate: Translate | None) -> None:
        streams = response.headers.get("content-type", "").startswith("text/event-stream")
        if not (self._opened.request.stream and response.status == 200 and streams):
            body = await _read_whole(response)
            self._tell(Whole(body))
            return
        chunks = _translated(response, translate)
        self._won = self._loop.create_future()
        held = await self._first(chunks)
        await self._pump(held, chunks, await self._won)

    async def _first(self, chunks: AsyncIterator[bytes]) -> bytes:
        """Read on to the first event that says something; return all that came until then."""
        splitter, held = sse.Splitter(), bytearray()
        async for raw in chunks:
            held += raw
            if first := _first_said(splitter.feed(raw)):
                self._tell(first)
                return bytes(held)
            if len(held) > MAX_HELD_BYTES:
                break
        raise LostError("eof" if len(held) <= MAX_HELD_BYTES else "too_large", "before the first token")

    async def _pump(self, held: bytes, chunks: AsyncIterator[bytes], relay: AnyRelay) -> None:
        if await self._feed(relay, held):
            return
        async for raw in chunks:
            if await self._feed(relay, raw):
                return
        raise LostError("eof")

    async def _feed(self, relay: AnyRelay, raw: bytes) -> bool:
        """Pass bytes on; True when the stream is over."""
        try:
            out = relay.feed(raw, self._loop.time())
        except ValueError as exc:
            raise LostError("malformed", str(exc)) from exc
        if out:
            relay.is_blocked = True
            await self._caller.send(out)
            relay.is_blocked = False
        happening = relay.take()
        if happening is not None:
            self._tell(happening)
        return isinstance(happening, Finished | FailedInBand)

    def _tell(self, event: First | Whole | Finished | FailedInBand | object) -> None:
        self._put(Event(self._opened.id, self._loop.time(), event))  # type: ignore[arg-type]


def _first_said(whole: bytes) -> First | None:
    for one in sse.split(whole):
        try:
            data = sse.read(one)
            chunk = data.json() if data is not None and not data.is_done else {}
            is_first = is_error(chunk) or has_token(chunk)
        except ValueError:
            continue  # malformed events are skipped; the relay counts them, if this stream wins
        if is_first:
            return First(chunk)
    return None


async def _translated(response: WireResponse, translate: Translate | None) -> AsyncIterator[bytes]:
    async for raw in response:
        yield translate(raw) if translate is not None else raw


async def _read_whole(response: WireResponse) -> bytes:
    body = bytearray()
    async for raw in response:
        body += raw
        if len(body) > MAX_REPLY_BYTES:
            raise LostError("too_large", f"a reply of more than {MAX_REPLY_BYTES} bytes")
    return bytes(body)
