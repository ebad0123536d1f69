"""The chain: a generator of one request, from its route to an answer. No I/O, no clock, no sockets.

It is sent events, which carry their time, and yields steps; `drive` does what they say. Whoever wants to
know what became of the request reads ``report`` when it is over.
"""

import math
from collections.abc import Generator, Mapping

from sive.backends import Request
from sive.calls import Call
from sive.errors import LOST_IN_WORDS
from sive.events import (
    Alarm,
    CallerLeft,
    Close,
    Command,
    End,
    Event,
    First,
    Head,
    Incoming,
    Lost,
    Open,
    Relay,
    Step,
    Whole,
)
from sive.faces import Face
from sive.policy import Policy, retry_after_s
from sive.protocol import DONE, Json, error, passed_on
from sive.relay import ERROR_IN_BAND, FailedInBand, Finished, Finishing, Label, StreamRelay, is_error
from sive.report import Failure, Report
from sive.routes import Model, Rest, Rung, request_for

MAX_BYTES_PER_TOKEN = 16
"""No tokenizer packs running text tighter; what exceeds it plainly does not fit a context."""

DEFAULT_RETRY_AFTER_S = 5.0

NO_HEADERS: Mapping[str, str] = {}

HEADERS_OF_ERRORS = ("retry-after", "x-ratelimit-", "x-should-retry")
"""Headers that go back with a caller's own error, by how they begin."""

Trying = Generator[Step, Incoming, bool]
"""Ends with True when the request is over."""
Waiting = Generator[Step, Incoming, Incoming]


class _CallerIsGoneError(Exception):
    """The caller left: everything open is closed and nothing more is said."""


class Chain:
    """Tries the rungs of a model in order until one answers.

    ``rests``: backends that cannot answer now, by name. ``now``: the time at which the request came.
    """

    def __init__(
        self, call: Call, model: Model, face: Face, policy: Policy, *, rests: Mapping[str, Rest], now: float
    ) -> None:
        self.report = Report(call, started_at=now)
        self._call = call
        self._model = model
        self._face = face
        self._policy = policy
        self._clocks = policy.clocks
        self._rests = rests
        self._now = now
        self._deadline = now + policy.clocks.deadline_s
        self._beat_at = now + policy.clocks.head_s
        self._do: list[Command] = []
        self._too_long = ""
        self._opens = 0
        self._opened: int | None = None
        self._steps = self._run()

    def start(self) -> Step:
        """The first step."""
        return self._advance(None)

    def send(self, incoming: Incoming) -> Step:
        """The step that follows an event; the last one contains End, or is empty when the caller left."""
        return self._advance(incoming)

    def _advance(self, incoming: Incoming | None) -> Step:
        try:
            return self._steps.send(incoming)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as stop:
            return stop.value or Step(())

    def _run(self) -> Generator[Step, Incoming, Step]:
        try:
            if not (yield from self._try_rungs()):
                self._give_up()
        except _CallerIsGoneError:
            self.report.caller_left = True
            self._close()
        self.report.ended_at = self._now
        # Returned, not yielded: a generator left suspended would keep the whole request alive in a cycle.
        return Step(tuple(self._do))

    def _try_rungs(self) -> Trying:
        for rung in self._candidates():
            if (yield from self._attempt(rung)):
                return True
            if self._now >= self._deadline:
                break
        return False

    # Which rungs

    def _candidates(self) -> list[Rung]:
        return [rung for rung in self._model.rungs if self._may_answer(rung)]

    def _may_answer(self, rung: Rung) -> bool:
        if rung.is_degraded and (self._call.requires_adapter or self._model.refuses_degraded):
            self._fail(rung, "degraded", "another voice, and only the model's own is wanted")
        elif rest := self._rests.get(rung.backend.name):
            self._fail(rung, "resting", rest.why, rest.retry_after_s)
        elif self._is_plainly_too_long(rung):
            self._fail(rung, "context_length", f"reads at most {rung.backend.context_tokens} tokens")
        else:
            return True
        return False

    def _is_plainly_too_long(self, rung: Rung) -> bool:
        context = rung.backend.context_tokens
        may_truncate = rung.backend.is_local and rung.is_degraded
        if context is None or may_truncate:
            return False
        return self._call.prompt_bytes > context * MAX_BYTES_PER_TOKEN

    # One rung, until it answers or fails

    def _attempt(self, rung: Rung) -> Trying:
        request, dropped = request_for(self._call, self._model, rung)
        self.report.attempts += 1
        self._open(rung, request)
        # The CPU model is never dead and silent: who waits there stands in its queue.
        sees_tokens = self._call.stream and not rung.backend.is_local
        clock_s = self._clocks.first_token_s if sees_tokens else self._clocks.whole_s
        silent_at = self._now + clock_s
        head: Head | None = None
        is_fresh = True
        while True:
            incoming = yield from self._wait(min(silent_at, self._deadline))
            match incoming:
                case Head():
                    head = incoming
                case Event(event=Whole(body)) if head is not None:
                    self._opened = None
                    return self._judge(rung, head, body, self._label(rung, head, dropped))
                case Event(event=First(chunk)) if head is not None:
                    if is_error(chunk):
                        return self._move_on(
                            rung, "in_band_error", ERROR_IN_BAND, falls=not self._policy.strict
                        )
                    label = self._label(rung, head, dropped)
                    return (yield from self._relay(rung, label, request.choices))
                case Lost(why="reset_reused") if is_fresh:
                    # The connection had been closed while it was idle: nobody has seen the request.
                    is_fresh, head = False, None
                    self._reopen(rung, request)
                case Lost(why=why):
                    return self._move_on(rung, why, LOST_IN_WORDS[why], falls=self._policy.falls(why))
                case Alarm():
                    what = "first token" if self._call.stream else "answer"
                    message = f"no {what} within {clock_s:g} s"
                    return self._move_on(rung, "silent", message, falls=self._policy.falls("timeout"))
                case _:
                    pass

    def _judge(self, rung: Rung, head: Head, body: bytes, label: Label) -> bool:
        headers = dict(head.headers)
        verdict = self._policy.judge(head.status, headers, body)
        if rung.backend.is_local and rung.is_degraded and verdict != "answer":
            # Standing in for another: what it says of itself is why it cannot, not the request's fault.
            said = passed_on(head.status, body)["error"].get("message")
            return self._move_on(rung, f"http_{head.status}", str(said), retry_after_s=retry_after_s(headers))
        if verdict == "callers_answer":
            kept = {name: value for name, value in headers.items() if name.startswith(HEADERS_OF_ERRORS)}
            self._say_error(rung, head.status, passed_on(head.status, body), kept)
            return True
        if verdict == "answer":
            return self._whole(rung, body, label)
        if verdict == "too_long":
            said = passed_on(head.status, body)["error"].get("message")
            self._too_long = self._too_long or str(said or "")
            return self._move_on(rung, "context_length", "the request is longer than its context")
        falls = verdict == "next_rung" or not self._policy.strict
        what = f"HTTP {head.status}" if verdict == "next_rung" else f"a {head.status} that is no answer"
        wait_s = retry_after_s(headers)
        return self._move_on(rung, f"http_{head.status}", what, falls=falls, retry_after_s=wait_s)

    def _whole(self, rung: Rung, body: bytes, label: Label) -> bool:
        try:
            commands, usage = self._face.whole(body, label, self._headers(rung))
        except ValueError as exc:
            message = f"a 200 that is no answer: {exc}"
            return self._move_on(rung, "malformed", message, falls=not self._policy.strict)
        self._do += commands
        self._answered_by(rung)
        self._complete(usage)
        return True

    # The rung that answers, until its end

    def _relay(self, rung: Rung, label: Label, choices: int) -> Trying:
        relay = self._face.relay(label, choices)
        if relay is None or self._opened is None:
            message = "a stream where one answer was asked for"
            return self._move_on(rung, "malformed", message, falls=not self._policy.strict)
        self._answered_by(rung)
        self._do += [*self._face.begin(self._headers(rung)), Relay(self._opened, relay)]
        relay.fed_at = self._now
        patience_s = self._clocks.stall_s
        while True:
            incoming = yield from self._wait(relay.fed_at + patience_s)
            match incoming:
                case Event(event=Finishing()):
                    patience_s = self._clocks.finish_s
                case Event(event=Finished(usage)):
                    return self._end_stream(relay, usage)
                case Event(event=FailedInBand(message=message)):
                    return self._cut(rung, relay, "in_band_error", message)
                case Lost() | Alarm() if relay.is_finished and not relay.is_blocked:
                    return self._end_stream(relay, relay.usage, DONE)
                case Lost(why=why):
                    return self._cut(rung, relay, why, LOST_IN_WORDS[why])
                case Alarm(at=at) if relay.is_blocked:
                    relay.fed_at = at  # time blocked on a slow caller is nobody's stall
                case Alarm(at=at) if at >= relay.fed_at + patience_s:
                    return self._cut(rung, relay, "stall", f"no token for {patience_s:g} s")
                case _:
                    pass

    def _end_stream(self, relay: StreamRelay, usage: Json | None, rest: bytes = b"") -> bool:
        self._note(relay)
        self._close()
        self._do.append(End(rest))
        self._complete(usage)
        return True

    def _note(self, relay: StreamRelay) -> None:
        self.report.chunks, self.report.malformed = relay.chunks, relay.malformed

    def _cut(self, rung: Rung, relay: StreamRelay, reason: str, message: str) -> bool:
        self._note(relay)
        self._close()
        self._fail(rung, reason, message)
        what = f"the answer broke off: backend {rung.backend.name!r}: {message}"
        self._say_error(rung, 502, error(what, type="server_error", code="stream_interrupted"))
        return True

    # What the caller is told

    def _label(self, rung: Rung, head: Head, dropped: list[str]) -> Label:
        said = {
            "backend": rung.backend.name,
            "degraded": rung.is_degraded,
            "resumed": False,
            "truncated": head.headers.get("x-sive-truncated") == "1",
            "dropped": dropped,
        }
        keeps_name = rung.is_degraded or self._policy.strict
        return Label(None if keeps_name else self._model.name, said)

    def _headers(self, rung: Rung | None) -> dict[str, str]:
        headers = {"x-request-id": self._call.request_id, "x-sive-attempts": str(self.report.attempts)}
        if rung is not None:
            headers["x-sive-backend"] = rung.backend.name
            headers["x-sive-degraded"] = "true" if rung.is_degraded else "false"
        return headers

    def _say_error(
        self, rung: Rung | None, status: int, payload: Json, headers: Mapping[str, str] = NO_HEADERS
    ) -> None:
        self._do += self._face.error(status, payload, {**self._headers(rung), **headers})
        self.report.status = status
        if rung is not None:
            self.report.backend, self.report.is_degraded = rung.backend.name, rung.is_degraded

    def _give_up(self) -> None:
        failures = self.report.failures
        if self._is_too_long_for_all():
            code = "context_length_exceeded"
            message = self._too_long or self._longest_context()
            self._say_error(None, 400, error(message, type="invalid_request_error", code=code))
            return
        whys = "; ".join(f"{failure.backend}: {failure.message}" for failure in failures)
        message = f"no backend could answer for {self._model.name!r}: {whys or 'its route is empty'}"
        waits = [failure.retry_after_s for failure in failures if failure.retry_after_s is not None]
        wait_s = math.ceil(min(waits, default=DEFAULT_RETRY_AFTER_S))
        payload = error(message, type="server_error", code="no_backend")
        # The SDKs' own retries would only knock again at doors that were just tried.
        self._say_error(None, 503, payload, {"retry-after": str(max(1, wait_s)), "x-should-retry": "false"})

    def _longest_context(self) -> str:
        reads = max(rung.backend.context_tokens or 0 for rung in self._model.rungs)
        return f"This model's maximum context length is {reads} tokens; your request is longer."

    def _is_too_long_for_all(self) -> bool:
        reasons = {failure.reason for failure in self.report.failures} - {"degraded"}
        return reasons == {"context_length"}

    # Book-keeping

    def _open(self, rung: Rung, request: Request) -> None:
        self._opens += 1
        self._opened = self._opens
        self._do.append(Open(self._opened, rung, request))

    def _reopen(self, rung: Rung, request: Request) -> None:
        """Once more on a fresh connection; it counts for nothing."""
        self._close()
        self._open(rung, request)

    def _close(self) -> None:
        if self._opened is not None:
            self._do.append(Close(self._opened))
            self._opened = None

    def _fail(self, rung: Rung, reason: str, message: str, retry_after_s: float | None = None) -> None:
        self.report.failures.append(Failure(rung.backend.name, reason, message, retry_after_s))

    def _move_on(
        self,
        rung: Rung,
        reason: str,
        message: str,
        *,
        falls: bool = True,
        retry_after_s: float | None = None,
    ) -> bool:
        """Note the failure; True when it ends the request because nobody else may be asked."""
        self._close()
        self._fail(rung, reason, message, retry_after_s)
        if not falls:
            what = f"backend {rung.backend.name!r}: {message}"
            self._say_error(rung, 502, error(what, type="server_error", code="bad_gateway"))
        return not falls

    def _answered_by(self, rung: Rung) -> None:
        self.report.status = 200
        self.report.backend = rung.backend.name
        self.report.is_degraded = rung.is_degraded
        self.report.first_token_at = self._now

    def _complete(self, usage: Json | None) -> None:
        self.report.usage = usage
        self.report.is_complete = True

    def _wait(self, until: float) -> Waiting:
        """Yield what is to be done until an event comes that is not the heartbeat's."""
        while True:
            do, self._do = tuple(self._do), []
            waits_for_head = not self._answering
            incoming = yield Step(do, min(until, self._beat_at) if waits_for_head else until)
            self._now = incoming.at
            if isinstance(incoming, CallerLeft):
                raise _CallerIsGoneError
            if isinstance(incoming, Head | Event | Lost) and incoming.id != self._opened:
                continue  # of an attempt that is over
            if not (isinstance(incoming, Alarm) and waits_for_head and incoming.at < until):
                return incoming
            self._beat_at = incoming.at + self._clocks.head_s
            self._do += self._face.heartbeat(self._headers(None))

    @property
    def _answering(self) -> bool:
        return self.report.first_token_at is not None
