"""The chain: a generator of one request, from its route to an answer. No I/O, no clock, no sockets.

It is sent events, which carry their time, and yields steps; `drive` does what they say. Whoever wants to
know what became of the request reads ``report`` when it is over.
"""

import math
import secrets
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass

from sive import resume
from sive.calls import Call
from sive.errors import LOST_IN_WORDS
from sive.events import (
    Alarm,
    CallerLeft,
    Cancelled,
    Close,
    Command,
    Event,
    First,
    Head,
    Incoming,
    Lost,
    Open,
    Step,
    Whole,
)
from sive.events import Relay as RelayCommand
from sive.faces import Face
from sive.health import Health
from sive.policy import UNSEEN, Blame, Policy, Verdict, retry_after_s
from sive.protocol import Json, error, passed_on
from sive.relay import (
    ERROR_IN_BAND,
    FailedInBand,
    Finished,
    Finishing,
    Label,
    Relay,
    StreamRelay,
    finish_reasons,
    is_error,
)
from sive.report import Failure, Report
from sive.resume import Plan
from sive.rewrite import Diverged, Limited, RewritingRelay, Voice
from sive.routes import Model, Rung, request_for
from sive.stops import StopFinder
from sive.transcript import Transcript

MAX_BYTES_PER_TOKEN = 16
"""No tokenizer packs running text tighter; what exceeds it plainly does not fit a context."""

DEFAULT_RETRY_AFTER_S = 5.0

NO_HEADERS: Mapping[str, str] = {}

HEADERS_OF_ERRORS = ("retry-after", "x-ratelimit-", "x-should-retry")
"""Headers that go back with a caller's own error, by how they begin."""

Waiting = Generator[Step, Incoming, Incoming]
Asking = Generator[Step, Incoming, "_Attempt | None"]
"""Ends with the attempt that has its first token, or with None: nobody has, or the request is over."""


class _CallerIsGoneError(Exception):
    """The caller left: everything open is closed and nothing more is said."""


class _CancelledError(Exception):
    """The request is ended from outside: everything open is closed and the caller is told."""

    def __init__(self, why: Cancelled) -> None:
        super().__init__(why.message)
        self.why = why


@dataclass(slots=True, eq=False)
class _Attempt:
    """One request to one backend. ``silent_at``: when its patience ends. ``first``: its first chunk."""

    id: int
    plan: Plan
    opened_at: float
    silent_at: float
    head: Head | None = None
    is_fresh: bool = True
    first: Json | None = None

    @property
    def rung(self) -> Rung:
        return self.plan.rung


@dataclass(frozen=True, slots=True)
class _Cut:
    """How an answer broke off, and what of it there was."""

    rung: Rung
    reason: str
    message: str
    relay: Relay


class Chain:
    """Asks the rungs of a model in order until one answers, and others to carry on when it breaks off.

    ``health``: what is known of the backends; it is told how they do. ``now``: when the request came.
    ``is_probe``: nobody waits for this answer, so its speed says nothing about answers.
    """

    def __init__(
        self,
        call: Call,
        model: Model,
        face: Face,
        policy: Policy,
        *,
        health: Health,
        now: float,
        is_probe: bool = False,
    ) -> None:
        self.report = Report(call, started_at=now)
        self._call = call
        self._model = model
        self._face = face
        self._policy = policy
        self._clocks = policy.clocks
        self._health = health
        self._is_probe = is_probe
        self._now = now
        self._deadline = now + policy.clocks.deadline_s
        self._beat_at = now + policy.clocks.head_s
        self._do: list[Command] = []
        self._attempts: dict[int, _Attempt] = {}
        self._opens = 0
        self._tries: Counter[str] = Counter()
        self._silent: set[str] = set()
        self._again_s: float | None = None
        self._too_long = ""
        self._was_seen = False
        self._is_relaying = False
        self._is_over = False
        self._is_guarded = call.stream or self._is_put_together()
        self._can = resume.ability(call) if self._is_guarded else resume.NOT_AT_ALL
        self._seed = self._drawn_seed()
        self._voice = self._new_voice()
        self._steps = self._run()

    def start(self) -> Step:
        """The first step."""
        return self._advance(None)

    def send(self, incoming: Incoming) -> Step:
        """The step that follows an event; the last one contains End, or is empty when the caller left."""
        return self._advance(incoming)

    def close(self) -> None:
        """The request is dropped where it stands: what is known of its backends is put right."""
        self._steps.close()

    def _advance(self, incoming: Incoming | None) -> Step:
        try:
            return self._steps.send(incoming)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as stop:
            return stop.value or Step(())

    def _run(self) -> Generator[Step, Incoming, Step]:
        try:
            yield from self._answer()
            if not self._is_over:
                self._give_up()
        except _CallerIsGoneError:
            self.report.caller_left = True
            self._forget_open_cut()
        except _CancelledError as cancelled:
            self._forget_open_cut()
            self._close_all()
            self._say_cancelled(cancelled.why)
        finally:
            self._close_all()
        self.report.ended_at = self._now
        # Returned, not yielded: a generator left suspended would keep the whole request alive in a cycle.
        return Step(tuple(self._do))

    def _answer(self) -> Generator[Step, Incoming, None]:
        """Find who answers; when an answer breaks off, who carries it on."""
        attempt = yield from self._ask_in_turn(self._first_plans())
        while attempt is not None:
            cut = yield from self._relay(attempt)
            if cut is None or self._is_over:
                return
            attempt = yield from self._carry_on(cut)

    # Whom to ask

    def _first_plans(self) -> Iterator[Plan]:
        """The rungs in order; when all that rest were passed over in vain, the one that rested longest."""
        passed_over: list[Rung] = []
        rungs = [rung for rung in self._model.rungs if self._may_answer(rung)]
        for rung in rungs:
            rest = self._health.rest(rung, self._now)
            is_last = rung is rungs[-1] and not self._health.is_out_of_order(rung)
            if rest is None or is_last:
                yield self._first_plan(rung)
                continue
            if not self._health.is_out_of_order(rung):
                passed_over.append(rung)
            self._fail(rung, "resting", rest.why, rest.retry_after_s)
        if passed_over:
            yield self._first_plan(min(passed_over, key=self._health.rests_until))

    def _may_answer(self, rung: Rung) -> bool:
        if rung.is_degraded and (self._call.requires_adapter or self._model.refuses_degraded):
            self._fail(rung, "degraded", "another voice, and only the model's own is wanted")
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

    def _first_plan(self, rung: Rung) -> Plan:
        streams = self._is_guarded and (self._call.stream or not rung.backend.is_local)
        if not (streams and self._can.tokens) or self._policy.strict:
            return Plan(rung, *request_for(self._call, self._model, rung, streams=streams))
        gives = self._health.gives_token_ids(rung.backend, self._now)
        keeps_stop = gives is True and bool(self._call.body.get("stop"))
        request, dropped = request_for(
            self._call,
            self._model,
            rung,
            streams=True,
            asks_ids=gives is not False and rung.backend.known_fields is None,
            keeps_stop=keeps_stop,
            seed=self._seed,
        )
        return Plan(rung, request, dropped, keeps_stop=keeps_stop)

    # Asking, until one has its first token

    def _ask_in_turn(self, plans: Iterable[Plan]) -> Asking:
        for plan in plans:
            if self._now >= self._deadline or not self._may_be_asked(plan):
                continue
            winner = yield from self._ask(plan)
            if winner is not None or self._is_over:
                return winner
        return None

    def _may_be_asked(self, plan: Plan) -> bool:
        """Not too often, not after silence, not beside too many others, and some requests only once."""
        backend = plan.rung.backend
        if self._tries[backend.name] >= self._policy.attempts or backend.name in self._silent:
            return False
        if self._was_seen and self._call.body.get("store"):
            return False
        if self._health.is_full(backend):
            self._fail(plan.rung, "full", f"runs {backend.max_in_flight} requests, its max_in_flight")
            return False
        return True

    def _ask(self, plan: Plan) -> Asking:
        """Ask one backend, if its failure asks for it once more."""
        self._again_s = None
        winner = yield from self._race(plan)
        wait_s = self._may_retry_in(plan) if winner is None and not self._is_over else None
        if wait_s is None:
            return winner
        yield from self._pause(wait_s)
        return (yield from self._race(plan))

    def _may_retry_in(self, plan: Plan) -> float | None:
        """How long to wait until the same backend is asked once more; None when it is not."""
        wait_s = self._again_s
        is_in_time = wait_s is not None and self._now + wait_s < self._deadline
        return wait_s if is_in_time and self._may_be_asked(plan) else None

    def _race(self, plan: Plan) -> Asking:
        """Open an attempt, and a hedge when it is slow, until one has its first token."""
        self._open(plan)
        hedge_at = self._hedge_at(plan)
        while self._attempts:
            ends_at = min(attempt.silent_at for attempt in self._attempts.values())
            incoming = yield from self._wait(min(ends_at, hedge_at, self._deadline))
            if isinstance(incoming, Alarm):
                if self._now >= hedge_at:
                    hedge_at = math.inf
                    self._hedge(plan)
                self._drop_silent()
            elif isinstance(incoming, Head | Event | Lost):
                attempt = self._attempts[incoming.id]
                if self._wins(attempt, incoming):
                    self._close_all(but=attempt)
                    return attempt
            if self._is_over:
                self._close_all()
        return None

    def _wins(self, attempt: _Attempt, incoming: Head | Event | Lost) -> bool:
        """Take news of an attempt in; has it its first token?"""
        match incoming:
            case Head():
                attempt.head = incoming
            case Event(event=Whole(body)) if attempt.head is not None:
                self._judge(attempt, attempt.head, body)
            case Event(event=First(chunk)) if attempt.head is not None:
                self._was_seen = True
                if not is_error(chunk) and "abort" not in finish_reasons(chunk).values():
                    attempt.first = chunk
                    return True
                self._failed(attempt, "in_band_error", ERROR_IN_BAND, Verdict("no_answer", "model"))
            case Lost(why="reset_reused") if attempt.is_fresh and not self._call.body.get("store"):
                self._reopen(attempt)
            case Lost(why=why):
                self._was_seen = self._was_seen or attempt.head is not None or why not in UNSEEN
                verdict = self._policy.lost(why, before_a_byte=attempt.head is None)
                self._failed(attempt, why, LOST_IN_WORDS[why], verdict)
            case _:
                pass
        return False

    def _judge(self, attempt: _Attempt, head: Head, body: bytes) -> None:
        """A reply in one piece: an answer, the caller's own error, or a failure."""
        headers = dict(head.headers)
        verdict = self._policy.judge(head.status, headers, body)
        rung, said = attempt.rung, "" if head.status < 400 else str(_message(head.status, body))
        self._was_seen = self._was_seen or head.status < 400 or head.status >= 500
        if verdict.follow == "answer":
            self._whole(attempt, head, body)
        elif rung.backend.is_local and rung.is_degraded:
            # Standing in for another: what it says of itself is why it cannot, not the request's fault.
            verdict = Verdict("next_rung", retry_after_s=retry_after_s(headers))
            self._failed(attempt, f"http_{head.status}", said, verdict)
        elif self._refuses_ids(attempt, head, said):
            self._health.learn_token_ids(rung.backend.name, self._now, gives=False)
            self._reopen(attempt, self._first_plan(rung))
        elif verdict.follow == "callers_answer" and attempt.plan.level is None:
            self._drop(attempt)
            kept = {name: value for name, value in headers.items() if name.startswith(HEADERS_OF_ERRORS)}
            self._say_error(rung, head.status, passed_on(head.status, body), kept)
        elif verdict.follow == "too_long":
            self._too_long = self._too_long or said
            message = "the request is longer than its context"
            self._failed(attempt, "context_length", message, Verdict("next_rung"))
        else:
            what = f"a {head.status} that is no answer" if head.status < 400 else f"HTTP {head.status}"
            self._failed(attempt, f"http_{head.status}", what, verdict)

    def _refuses_ids(self, attempt: _Attempt, head: Head, said: str) -> bool:
        """Is the error about a field that only we asked for?"""
        asked = "return_token_ids" in attempt.plan.request.body and "return_token_ids" not in self._call.body
        is_about_it = head.status in (400, 422) and "return_token_ids" in said
        return asked and is_about_it and attempt.is_fresh and attempt.plan.level is None

    def _whole(self, attempt: _Attempt, head: Head, body: bytes) -> None:
        try:
            label = self._label(attempt.plan, head)
            commands, usage = self._face.whole(body, label, self._headers(attempt.rung))
        except ValueError as exc:
            verdict = Verdict("no_answer", "model")
            self._failed(attempt, "malformed", f"a 200 that is no answer: {exc}", verdict)
            return
        self._do += commands
        self._health.answered(attempt.rung, None, self._now)
        self._drop(attempt, closes=False)
        self._answered_by(attempt.rung)
        self._complete(usage)

    def _drop_silent(self) -> None:
        for attempt in list(self._attempts.values()):
            if self._now >= min(attempt.silent_at, self._deadline):
                patience_s = self._now - attempt.opened_at
                what = "first token" if attempt.plan.request.stream else "answer"
                message = f"no {what} within {patience_s:g} s"
                self._was_seen = True
                self._silent.add(attempt.rung.backend.name)
                if self._now >= attempt.silent_at:  # else the deadline cut its patience short
                    self._health.silent(attempt.rung, patience_s, message, self._now)
                self._failed(attempt, "silent", message, self._policy.lost("timeout", before_a_byte=False))

    # Hedging: the next rung is asked too, and the first to answer is kept

    def _hedge_at(self, plan: Plan) -> float:
        if not self._model.hedges or plan.level is not None or self._call.body.get("store"):
            return math.inf
        slow_s = self._health.first_token_p95_s(plan.rung.backend.name)
        return math.inf if slow_s is None else self._now + slow_s

    def _hedge(self, plan: Plan) -> None:
        """Ask the next rung of the route that speaks with the same voice."""
        after = self._model.rungs[self._model.rungs.index(plan.rung) + 1 :]
        for rung in after:
            if not rung.is_degraded and self._health.rest(rung, self._now) is None:
                hedge = self._first_plan(rung)
                if self._may_be_asked(hedge):
                    self._open(hedge)
                    self.report.hedges += 1
                    return

    # The one that answers, until its end

    def _relay(self, attempt: _Attempt) -> Generator[Step, Incoming, _Cut | None]:
        """Let an answer flow; how it broke off, or None when the request is over."""
        assert attempt.head is not None  # noqa: S101 - it has its first token
        rung, relay = attempt.rung, self._relay_for(attempt, attempt.head)
        self._answered_by(rung)
        first_token_s = None if self._is_probe else self._now - attempt.opened_at
        self._health.answered(rung, first_token_s, self._now, relay)
        self._do += [*self._face.begin(relay, self._headers(rung)), RelayCommand(attempt.id, relay)]
        relay.fed_at = self._now
        patience_s = self._clocks.stall_s
        self._is_relaying = True
        budget_s = self._deadline - self._now
        try:
            while True:
                incoming = yield from self._wait(relay.fed_at + patience_s)
                match incoming:
                    case Event(event=Finishing()):
                        patience_s = self._clocks.finish_s
                    case Event(event=Finished(usage)):
                        self._end(attempt, relay, b"", usage)
                        return None
                    case Lost() | Alarm() | Event(event=FailedInBand()) if relay.is_finished and not (
                        isinstance(incoming, Alarm) and relay.is_blocked
                    ):
                        rest = relay.finish()
                        self._end(attempt, relay, rest, relay.usage)
                        return None
                    case Event(event=FailedInBand() as failure):
                        return _Cut(rung, _reason(failure), failure.message, relay)
                    case Lost(why=why):
                        return _Cut(rung, why, LOST_IN_WORDS[why], relay)
                    case Alarm(at=at) if relay.is_blocked:
                        relay.fed_at = at  # time blocked on a slow caller is nobody's stall
                    case Alarm(at=at) if at >= relay.fed_at + patience_s:
                        return _Cut(rung, "stall", f"no token for {patience_s:g} s", relay)
                    case _:
                        pass
        finally:
            self._is_relaying = False
            self._deadline = self._now + budget_s  # only time in which the caller gets nothing counts
            self._beat_at = self._now + self._clocks.head_s
            self.report.chunks += relay.chunks
            self.report.malformed += relay.malformed
            self._drop(attempt, relay=relay)

    def _relay_for(self, attempt: _Attempt, head: Head) -> Relay:
        """What the chunks of this attempt pass through on their way to the caller."""
        plan, call = attempt.plan, self._call
        label = self._label(plan, head)
        if plan.level is None and not plan.keeps_stop:
            asked = bool(plan.request.body.get("return_token_ids"))
            self._learn_ids(attempt, asked=asked)
            return StreamRelay(
                label,
                wants_usage=self._voice.wants_usage,
                choices=plan.request.choices,
                strips_ids=asked and not self._voice.wants_ids,
                holds_back=bool(plan.request.body.get("stop")),
                keeps=self._can.tokens or self._can.text or self._can.none,
            )
        if plan.keeps_stop and self._voice.finder is None and (stops := resume.stops(call)):
            self._voice.finder = StopFinder(stops)
            self._voice.finder.prime(self._voice.transcript.text)
        had = self._voice.transcript
        resumed = {
            "tokens": had.carried_on_by_ids,
            "text": had.carried_on_by_text,
            "none": had.started_over,
        }
        return RewritingRelay(
            label,
            self._voice,
            had if plan.level is None else resumed[plan.level](),
            swallow={"tokens": had.unsettled, "none": had.text}.get(plan.level or "", ""),
            before=plan.before,
            resumes=plan.level is not None,
            is_limited=plan.is_limited,
        )

    def _learn_ids(self, attempt: _Attempt, *, asked: bool) -> None:
        choices = (attempt.first or {}).get("choices") or [{}]
        if asked and choices[0].get("finish_reason") is None:
            gives = isinstance(choices[0].get("token_ids"), list)
            self._health.learn_token_ids(attempt.rung.backend.name, self._now, gives=gives)

    def _end(self, attempt: _Attempt, relay: Relay, rest: bytes, usage: Json | None) -> None:
        self._drop(attempt, relay=relay)
        self._finish(attempt.rung, rest, usage)

    def _finish(self, rung: Rung, rest: bytes, usage: Json | None) -> None:
        try:
            self._do += self._face.end(rest, self._headers(rung))
        except ValueError as exc:
            self._fail(rung, "malformed", f"an answer that cannot be read: {exc}")
            self._say_broken_off(rung, "an answer that cannot be read")
            return
        self._complete(usage)

    # Carrying on, when it broke off

    def _carry_on(self, cut: _Cut) -> Asking:
        """Ask whoever can go on with an answer; whom none can, the caller is told."""
        self._note_cut(cut)
        said = cut.relay.transcript()
        if said is not None:
            self._voice.transcript = said
            self._voice.has_role = True
            if resume.has_all(self._call, said):
                self._conclude(cut.rung)
                return None
            winner = yield from self._ask_in_turn(self._counted(self._ways_on(said, cut.rung)))
            if winner is not None:
                self.report.resumes.append((str(winner.plan.level), "ok"))
                return winner
        if self._face.has_said or self._is_over:
            self._say_broken_off(cut.rung, cut.message)
            return None
        return (yield from self._start_over(cut))

    def _forget_open_cut(self) -> None:
        """A cut that was being mended when the request was ended is neither mended nor not."""
        mended = sum(outcome == "ok" for _, outcome in self.report.resumes)
        del self.report.cuts[mended:]

    def _note_cut(self, cut: _Cut) -> None:
        self._fail(cut.rung, cut.reason, cut.message)
        if cut.reason == "diverged":  # nothing of it was shown: it never carried the answer on
            self.report.resumes[-1] = (self.report.resumes[-1][0], "failed")
            return
        self.report.cuts.append(self.report.failures[-1])
        self._was_seen = True
        if cut.reason == "limited":
            pass  # it did as it was told
        elif cut.reason == "stall":
            self._silent.add(cut.rung.backend.name)
            self._health.silent(cut.rung, self._clocks.stall_s, cut.message, self._now)
        else:
            blame: Blame = "model" if cut.reason == "in_band_error" else "host"
            self._health.failed(cut.rung, blame, cut.message, self._now)

    def _ways_on(self, said: Transcript, cut: Rung) -> Iterator[Plan]:
        """The ways to carry on: first those whose backends do not rest."""
        wants_own = self._call.requires_adapter or self._model.refuses_degraded
        rungs = [rung for rung in self._model.rungs if not (rung.is_degraded and wants_own)]
        ready = [rung for rung in rungs if self._health.rest(rung, self._now) is None]
        resting = [r for r in rungs if r not in ready and not self._health.is_out_of_order(r)]
        for group in (ready, resting):
            yield from resume.plans(
                self._call,
                self._model,
                said,
                cut,
                can=self._can,
                gives_ids=lambda rung: self._health.gives_token_ids(rung.backend, self._now),
                rungs=group,
                seed=self._seed,
            )

    def _counted(self, plans: Iterable[Plan]) -> Iterator[Plan]:
        """The plans; each that is given back for the next one has failed."""
        for plan in plans:
            tries = self._tries[plan.rung.backend.name]
            yield plan
            if self._tries[plan.rung.backend.name] > tries:
                self.report.resumes.append((str(plan.level), "failed"))

    def _conclude(self, rung: Rung) -> None:
        """The caller has all that was asked for; only the end was lost."""
        label = Label(self._model_name(rung), self._said(rung, [], is_truncated=False, is_resumed=True))
        relay = RewritingRelay(label, self._voice, self._voice.transcript, resumes=True)
        rest = relay.conclude("length")
        self.report.resumes.append(("length", "ok"))
        self._finish(rung, rest, relay.usage)

    def _start_over(self, cut: _Cut) -> Asking:
        """Nothing was shown yet, so another answer may begin."""
        self._face.start_over()
        self._voice = self._new_voice()
        self.report.first_token_at = None
        winner = yield from self._ask_in_turn(self._first_plans())
        if winner is not None or (self._is_over and self.report.is_complete):
            self.report.resumes.append(("restart", "ok"))
        elif not self._is_over:
            self._say_broken_off(cut.rung, cut.message)
        return winner

    # What the caller is told

    def _label(self, plan: Plan, head: Head) -> Label:
        is_truncated = head.headers.get("x-sive-truncated") == "1"
        said = self._said(
            plan.rung, plan.dropped, is_truncated=is_truncated, is_resumed=plan.level is not None
        )
        return Label(self._model_name(plan.rung), said)

    def _model_name(self, rung: Rung) -> str | None:
        return None if rung.is_degraded or self._policy.strict else self._model.name

    def _said(self, rung: Rung, dropped: list[str], *, is_truncated: bool, is_resumed: bool) -> Json:
        return {
            "backend": rung.backend.name,
            "degraded": rung.is_degraded,
            "resumed": is_resumed,
            "truncated": is_truncated,
            "dropped": dropped,
        }

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
        self._is_over = True
        self.report.status = status
        if rung is not None:
            self.report.backend, self.report.is_degraded = rung.backend.name, rung.is_degraded

    def _say_broken_off(self, rung: Rung, message: str) -> None:
        what = f"the answer broke off: backend {rung.backend.name!r}: {message}"
        self.report.is_broken_off = True
        self._say_error(rung, 502, error(what, type="server_error", code="stream_interrupted"))

    def _say_cancelled(self, why: Cancelled) -> None:
        self.report.is_cancelled = True
        payload = error(why.message, type="server_error", code=why.code)
        self._say_error(None, why.status, payload, {"x-should-retry": "false"})

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

    def _is_put_together(self) -> bool:
        return self._model.guards_json and not self._policy.strict and resume.streams_whole(self._call)

    def _new_voice(self) -> Voice:
        return Voice(
            endpoint=self._call.endpoint,
            wants_usage=self._call.wants_usage or not self._call.stream,
            wants_ids=bool(self._call.body.get("return_token_ids")),
            transcript=Transcript(),
            shows_stop=bool(self._call.body.get("include_stop_str_in_output")),
        )

    def _drawn_seed(self) -> int | None:
        """For a sampled request without a seed, one of ours: its noise is then the same on the next pod."""
        if not self._can.tokens or self._call.body.get("seed") is not None:
            return None
        if self._call.body.get("temperature") == 0:
            return None
        if not any(rung.backend.position_seeds for rung in self._model.rungs):
            return None
        return secrets.randbelow(2**31)

    def _open(self, plan: Plan) -> None:
        self.report.attempts += 1
        self._tries[plan.rung.backend.name] += 1
        # The CPU model is never dead and silent: who waits there stands in its queue.
        sees_tokens = plan.request.stream and not plan.rung.backend.is_local
        patience_s = self._clocks.first_token_s if sees_tokens else self._clocks.whole_s
        self._start(plan, self._now + patience_s, is_fresh=True)

    def _start(self, plan: Plan, silent_at: float, *, is_fresh: bool) -> None:
        self._opens += 1
        self._attempts[self._opens] = _Attempt(self._opens, plan, self._now, silent_at, is_fresh=is_fresh)
        self._health.opened(plan.rung)
        self._do.append(Open(self._opens, plan.rung, plan.request))

    def _reopen(self, attempt: _Attempt, plan: Plan | None = None) -> None:
        """Once more at once, on a fresh connection; it counts for nothing."""
        self._drop(attempt)
        self._start(plan or attempt.plan, attempt.silent_at, is_fresh=False)

    def _drop(self, attempt: _Attempt, *, closes: bool = True, relay: Relay | None = None) -> None:
        """An attempt is over."""
        if self._attempts.pop(attempt.id, None) is not None:
            self._health.closed(attempt.rung, relay)
            if closes:
                self._do.append(Close(attempt.id))

    def _close_all(self, but: _Attempt | None = None) -> None:
        for attempt in list(self._attempts.values()):
            if attempt is not but:
                self._drop(attempt)

    def _fail(self, rung: Rung, reason: str, message: str, retry_after_s: float | None = None) -> None:
        self.report.failures.append(Failure(rung.backend.name, reason, message, retry_after_s))

    def _failed(self, attempt: _Attempt, reason: str, message: str, verdict: Verdict) -> None:
        """Close a failed attempt and note why; when nobody else may be asked the request is over."""
        self._drop(attempt)
        rung = attempt.rung
        self._fail(rung, reason, message, verdict.retry_after_s)
        if reason != "silent":
            self._health.failed(rung, verdict.blame, message, self._now, rest_s=verdict.retry_after_s)
        self._again_s = verdict.wait_s if verdict.follow == "again" and not self._attempts else None
        if verdict.follow == "no_answer" and self._policy.strict and attempt.plan.level is None:
            what = f"backend {rung.backend.name!r}: {message}"
            self._say_error(rung, 502, error(what, type="server_error", code="bad_gateway"))

    def _answered_by(self, rung: Rung) -> None:
        self.report.status = 200
        self.report.backend = rung.backend.name
        self.report.is_degraded = self.report.is_degraded or rung.is_degraded
        if self.report.first_token_at is None:
            self.report.first_token_at = self._now

    def _complete(self, usage: Json | None) -> None:
        self._is_over = True
        self.report.usage = usage
        self.report.is_complete = True

    # Waiting

    def _pause(self, seconds: float) -> Generator[Step, Incoming, None]:
        until = self._now + seconds
        while self._now < until:
            yield from self._wait(until)

    def _wait(self, until: float) -> Waiting:
        """Yield what is to be done until an event comes that is not the heartbeat's."""
        while True:
            do, self._do = tuple(self._do), []
            beats = not self._is_relaying
            incoming = yield Step(do, min(until, self._beat_at) if beats else until)
            self._now = incoming.at
            if isinstance(incoming, CallerLeft):
                raise _CallerIsGoneError
            if isinstance(incoming, Cancelled):
                raise _CancelledError(incoming)
            if isinstance(incoming, Head | Event | Lost) and incoming.id not in self._attempts:
                continue  # of an attempt that is over
            if not (isinstance(incoming, Alarm) and beats and incoming.at < until):
                return incoming
            self._beat_at = incoming.at + self._clocks.head_s
            self._do += self._face.heartbeat(self._headers(None))


def _reason(failure: FailedInBand) -> str:
    match failure:
        case Diverged():
            return "diverged"
        case Limited():
            return "limited"
        case _:
            return "in_band_error"


def _message(status: int, body: bytes) -> str:
    return str(passed_on(status, body)["error"].get("message") or "")
