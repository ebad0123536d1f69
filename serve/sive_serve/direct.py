"""The short way of an answer that passes through whole: its first attempt, without a chain.

Nearly all such answers are a good one from the first rung, and then a chain, its driver and their events cost
more than the rest. Whatever else happens is the chain's to decide: it begins then, as if it had asked itself,
and what the first backend did is played to it.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

from sive.ability import wants_tools
from sive.backends import WireName
from sive.backends.openai import OpenAIBackend
from sive.calls import Call
from sive.candidates import MAX_BYTES_PER_TOKEN, goes_on
from sive.chain import Chain
from sive.drive import Caller, Driver
from sive.errors import LostError
from sive.events import Begin, Command, End, Head
from sive.faces import WholeFace, whole
from sive.health import Health
from sive.policy import Policy
from sive.protocol import Json, with_model
from sive.report import Report
from sive.resume import Plan
from sive.routes import Model, Rung, request_for
from sive.wires import Exchange, Receiver, Wire, WireRequest, WireResponse
from sive.words import Words

LARGE_BODY_BYTES = 65_536
"""From here on a body is not written anew for the sake of its model's name: at 7 MB that blocks for 25 ms."""

Ended = Callable[[Report, Exception | None], None]


def is_direct(call: Call, model: Model, health: Health, now: float) -> bool:
    """Would a chain do nothing but ask the first rung and wait for its answer?"""
    if call.lack is not None or call.origin is not None:
        return False
    if call.stream or model.guards_json or model.hedges or not model.rungs:
        return False
    rung = model.rungs[0]
    backend = rung.backend
    if not isinstance(backend, OpenAIBackend) or backend.is_local or rung.is_degraded:
        return False
    if not goes_on(call, rung) or (not backend.tools and wants_tools(call)):
        return False
    context = backend.context_tokens
    is_too_long = context is not None and call.prompt_bytes > context * MAX_BYTES_PER_TOKEN
    return not is_too_long and not health.is_full(backend) and health.rest(rung, now) is None


class Direct:
    """Asks the first rung; to its exchange it is a driver."""

    def __init__(
        self,
        call: Call,
        model: Model,
        policy: Policy,
        *,
        health: Health,
        wires: Mapping[WireName, Wire],
        caller: Caller,
        ended: Ended,
    ) -> None:
        self._call = call
        self._model = model
        self._policy = policy
        self._health = health
        self._wires = wires
        self._caller = caller
        self._ended = ended
        self._rung: Rung = model.rungs[0]
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._driver: Driver | None = None
        self._exchange: Exchange | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._report = Report(call, self._started_at, attempts=1)
        self._is_trial = False
        self._is_closed = False
        self._status = 0
        self._headers: Mapping[str, str] = {}
        self._pieces: list[bytes] = []
        self._size = 0

    # What a driver does

    def start(self) -> None:
        """Send the request."""
        clocks = self._policy.clocks
        self._timer = self._loop.call_later(min(clocks.whole_s, clocks.deadline_s), self._hand_over)
        self._is_trial = self._health.opened(self._rung)
        try:
            request, dropped = request_for(self._call, self._model, self._rung, streams=False)
            is_large = len(self._call.raw) > LARGE_BODY_BYTES
            if is_large and _changes_only_the_model(self._call.body, request.body):
                raw = with_model(self._call.raw, self._call.model, self._rung.model)
                request = replace(request, raw=raw)
            self._plan = Plan(self._rung, request, dropped)
            self._request = next(self._rung.backend.flow(request))
            self._exchange = self._wires[self._rung.backend.wire].send(self._request, self)
        except Exception as exc:  # the outermost frame of a request: whoever started it is told
            self._fail(exc)

    def left(self) -> None:
        """The caller closed the connection."""
        self._with_driver().left()

    def cancel(self, *, status: int, message: str, code: str) -> None:
        """End the request from outside; its caller is told."""
        self._with_driver().cancel(status=status, message=message, code=code)

    def resume(self) -> None:
        """The caller is not slow any more; an answer in one piece does not care."""

    def close(self) -> None:
        """Abort whatever is open; nobody is told."""
        if self._driver is not None:
            self._driver.close()
        else:
            self._close()

    # What the backend does

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        """Its answer begins."""
        self._status, self._headers = status, headers

    def on_data(self, data: bytes) -> None:
        """Some of its answer."""
        self._pieces.append(data)
        self._size += len(data)
        limit = self._policy.limits.reply_bytes
        if self._size > limit:
            self._hand_over(LostError("too_large", f"a reply of more than {limit} bytes"))

    def on_end(self) -> None:
        """Its answer is complete: pass it on if it is one."""
        try:
            answer = self._read()
            if answer is None:
                self._hand_over(is_complete=True)
            else:
                self._pass_on(*answer)
        except Exception as exc:  # as in `start`
            self._fail(exc)

    def on_lost(self, lost: LostError) -> None:
        """It did not answer."""
        self._hand_over(lost)

    # A good answer

    def _read(self) -> tuple[list[Command], Json | None] | None:
        """What to tell the caller, and the usage; None when it is no good answer."""
        if self._policy.judge(self._status, dict(self._headers), self._body).follow != "answer":
            return None
        try:
            words = Words(self._call, self._model, self._policy, self._report)
            label = words.label(self._plan, Head(0, self._started_at, self._status, self._headers))
            return whole(self._body, label, words.headers(self._rung))
        except ValueError:
            return None

    @property
    def _body(self) -> bytes:
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

    def _pass_on(self, commands: list[Command], usage: Json | None) -> None:
        self._health.answered(self._rung, None, self._loop.time())
        self._health.completed(self._rung)
        self._close()
        for command in commands:
            match command:
                case Begin(status, headers):
                    self._caller.begin(status, headers)
                case End(data):
                    self._caller.end(data)
        self._report.answered_by(self._rung, self._loop.time())
        self._report.ended_at = self._report.first_token_at
        self._report.usage, self._report.is_complete = usage, True
        self._ended(self._report, None)

    # Anything else

    def _hand_over(self, lost: LostError | None = None, *, is_complete: bool = False) -> Driver:
        """Let a chain go on from here: with a reply, a loss, or with neither, a backend that is silent."""
        self._close()
        name = self._rung.backend.wire
        wire = _Replayed(self._wires[name], self._request.url)
        if lost is not None:
            wire.lost = lost
        elif is_complete:
            wire.reply = self._status, self._headers, self._body
        face = WholeFace(self._call)
        chain = Chain(self._call, self._model, face, self._policy, health=self._health, now=self._started_at)
        self._driver = Driver(
            chain,
            {**self._wires, name: wire},
            self._caller,
            ended=lambda failure: self._ended(chain.report, failure),
        )
        self._driver.start()
        return self._driver

    def _fail(self, failure: Exception) -> None:
        if self._driver is None:
            self._close()
        self._ended(Report(self._call, self._started_at), failure)

    def _with_driver(self) -> Driver:
        return self._driver or self._hand_over()

    def _close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._health.closed(self._rung, None, was_trial=self._is_trial)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()


def _changes_only_the_model(before: Json, after: Json) -> bool:
    same = len(before) == len(after)
    return same and all(after.get(name) is value for name, value in before.items() if name != "model")


class _Replayed:
    """A wire on which the first request to a URL has been made already: what came of it is told once more."""

    def __init__(self, wire: Wire, url: str) -> None:
        self._wire = wire
        self._url: str | None = url
        self.reply: tuple[int, Mapping[str, str], bytes] | None = None
        self.lost: LostError | None = None

    async def open(self, request: WireRequest) -> WireResponse:
        """As the wire's; a driver does not use it."""
        return await self._wire.open(request)

    async def aclose(self) -> None:
        """The wire is not ours."""

    def send(self, request: WireRequest, receiver: Receiver) -> Exchange:
        """Tell what came of the first request; send all others."""
        if request.url != self._url:
            return self._wire.send(request, receiver)
        self._url = None
        if self.lost is not None:
            receiver.on_lost(self.lost)
        elif self.reply is not None:
            status, headers, body = self.reply
            receiver.on_head(status, headers)
            receiver.on_data(body)
            receiver.on_end()
        return _Over()


class _Over:
    """An exchange that has ended."""

    def pause(self) -> None:
        """Nothing comes."""

    def resume(self) -> None:
        """Nothing comes."""

    def close(self) -> None:
        """Nothing is open."""
