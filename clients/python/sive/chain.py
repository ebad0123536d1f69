"""The chain: a generator of one request, from its route to an answer. No I/O, no clock, no sockets.

It is sent events, which carry their time, and yields steps; `drive` does what they say. Whoever wants to
know what became of the request reads ``report`` when it is over.
"""

import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

from sive import ability, resume, words
from sive.attempts import Attempt, Attempts
from sive.budget import Budget
from sive.calls import Call
from sive.candidates import LACKS, Candidates
from sive.chunks import finish_reasons, is_error, refusal_status
from sive.errors import LOST_IN_WORDS, UnavailableError
from sive.events import (
    Alarm,
    CallerLeft,
    Cancelled,
    Command,
    Event,
    First,
    Head,
    Incoming,
    Lost,
    Step,
    Unavailable,
    Waiting,
    Whole,
)
from sive.events import Relay as RelayCommand
from sive.faces import Face
from sive.health import Health
from sive.pass_on import StreamRelay
from sive.policy import UNSEEN, Blame, Policy, Verdict, retry_after_s
from sive.protocol import JSON_HEADERS, NOT_ITS_SHAPE, Json, dumps, passed_on
from sive.reasons import reason_in, reason_in_body
from sive.relay import ERROR_IN_BAND, FailedInBand, Finished, Finishing, Label, Relay
from sive.report import Report
from sive.resume import Plan
from sive.rewrite import Diverged, Limited, RewritingRelay, Voice, carrying_on
from sive.routes import Model, Rung
from sive.through import THROUGH, is_about_the_past
from sive.transcript import Transcript
from sive.typed_relay import TypedRelay
from sive.words import Told, Words

Wait = Generator[Step, Incoming, Incoming]
Asking = Generator[Step, Incoming, Attempt | None]
"""Ends with the attempt that has its first token, or with None: nobody has, or the request is over."""


class _CallerIsGoneError(Exception):
    """The caller left: everything open is closed and nothing more is said."""


class _CancelledError(Exception):
    """The request is ended from outside: everything open is closed and the caller is told."""

    def __init__(self, why: Cancelled) -> None:
        super().__init__(why.message)
        self.why = why


@dataclass(frozen=True, slots=True)
class _Cut:
    """How an answer broke off, and, if that can be carried on, what of it there was."""

    rung: Rung
    reason: str
    message: str
    relay: Relay | None


class Chain:
    """Asks the rungs of a model in order until one answers, and others to carry on when it breaks off.

    ``health``: what is known of the backends; it is told how they do. ``now``: when the request came.
    ``is_probe``: nobody waits for this answer, so its speed says nothing about answers. ``limits``: how much
    may be kept in memory; whoever keeps something takes it from ``budget``.
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
        self.limits = policy.limits
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
        self.budget = Budget(policy.limits.held_bytes)
        self._gathered_bytes = 0
        self._do: list[Command] = []
        self._attempts = Attempts(call, policy, health, self.report, self._do, is_probe=is_probe)
        # It is told the time: a function of ours in it would be a cycle, which only the collector frees.
        self._candidates = Candidates(call, model, policy, health, self.report, now)
        self._words = Words(call, model, policy, self.report)
        self._voice = Voice.of(call)
        self._speaker: Rung | None = None
        self._again: list[tuple[Plan, float]] = []
        self._too_long = ""
        self._diverged: set[str] = set()
        self._is_relaying = False
        self._is_over = False
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
                reads = self._candidates.longest_context() if self._model.rungs else 0
                self._say(None, self._words.nobody(self._too_long, reads))
        except _CallerIsGoneError:
            self.report.caller_left = True
            self.report.forget_open_cut()
        except _CancelledError as cancelled:
            self.report.is_cancelled = True
            self.report.forget_open_cut()
            self._attempts.drop_all()
            self._say(None, words.cancelled(cancelled.why))
        finally:
            self._attempts.drop_all()
        self.report.ended_at = self._now
        # Returned, not yielded: a generator left suspended would keep the whole request alive in a cycle.
        return Step(tuple(self._do))

    def _answer(self) -> Generator[Step, Incoming, None]:
        """Find who answers; when an answer breaks off, who carries it on."""
        attempt = yield from self._ask_in_turn(self._candidates.in_turn())
        while attempt is not None:
            cut = yield from self._relay(attempt)
            if cut is None or self._is_over:
                return
            attempt = yield from self._carry_on(cut)

    # Asking, until one has its first token

    def _ask_in_turn(self, plans: Iterable[Plan]) -> Asking:
        for plan in plans:
            if self._now >= self._deadline or not self._attempts.may_ask(plan):
                continue
            winner = yield from self._ask(plan)
            if winner is not None or self._is_over:
                return winner
        return None

    def _ask(self, plan: Plan) -> Asking:
        """Ask one backend, and if its failure invites it once more."""
        self._again.clear()
        winner = yield from self._race(plan)
        if winner is not None or self._is_over or not self._again:
            return winner
        again, wait_s = self._again.pop()
        if self._now + wait_s >= self._deadline or not self._attempts.may_ask(again):
            return None
        yield from self._pause(wait_s)
        return (yield from self._race(again))

    def _race(self, plan: Plan) -> Asking:
        """Open an attempt, and a hedge when it is slow, until one has its first token."""
        self._attempts.open(plan, self._now)
        hedge_at = self._hedge_at(plan)
        while self._attempts:
            silent_at = min(attempt.silent_at for attempt in self._attempts)
            incoming = yield from self._wait(min(silent_at, hedge_at, self._deadline))
            if isinstance(incoming, Alarm):
                if self._now >= hedge_at:
                    hedge_at = math.inf
                    self._hedge(plan)
                self._give_up_on_silent()
            elif (attempt := self._attempts.of(incoming)) and self._wins(attempt, incoming):
                self._attempts.drop_all(but=attempt)
                return attempt
            if self._is_over:
                self._attempts.drop_all()
        return None

    def _wins(self, attempt: Attempt, incoming: Incoming) -> bool:
        """Take news of an attempt in; has it its first token?"""
        match incoming:
            case Head():
                attempt.head = incoming
            case Event(event=Whole(body)) if attempt.head is not None:
                self._judge(attempt, attempt.head, body)
            case Event(event=First(chunk)) if attempt.head is not None:
                self._attempts.was_seen = True
                if not is_error(chunk) and "abort" not in finish_reasons(chunk).values():
                    attempt.first = chunk
                    return True
                if status := refusal_status(chunk):  # vLLM looks at some fields only after its 200
                    head = Head(attempt.id, self._now, status, JSON_HEADERS)
                    self._judge(attempt, head, dumps(chunk))
                else:
                    own = reason_in(attempt.head.headers, chunk, attempt.rung.model)
                    what = f"{ERROR_IN_BAND}: {own}" if own else ERROR_IN_BAND
                    self._failed(attempt, "in_band_error", what, Verdict("no_answer", "model"))
            case Event(event=Waiting(what)):
                attempt.waits_for = what
            case Event(event=Unavailable(error)):
                self._failed(attempt, error.reason, error.message, _verdict(error))
            case Lost(why="reset_reused") if attempt.is_fresh and self._attempts.may_repeat:
                self._attempts.reopen(attempt, self._now)
            case Lost(why=why):
                self._attempts.was_seen |= attempt.head is not None or why not in UNSEEN
                verdict = self._policy.lost(why, before_a_byte=attempt.head is None)
                self._failed(attempt, why, LOST_IN_WORDS[why], verdict)
            case _:
                pass
        return False

    def _judge(self, attempt: Attempt, head: Head, body: bytes) -> None:
        """A reply in one piece: an answer, the caller's own error, or a failure."""
        headers = dict(head.headers)
        verdict = self._policy.judge(head.status, headers, body)
        rung, said = attempt.rung, "" if head.status < 400 else _message(head.status, body)
        lacks_endpoint = self._lacks_endpoint(attempt, head, body)
        self._attempts.was_seen |= head.status < 400 or (head.status >= 500 and not lacks_endpoint)
        if verdict.follow == "answer" and attempt.plan.level is None and not attempt.plan.keeps_stop:
            self._whole(attempt, head, body)
        elif verdict.follow == "answer":
            what = "an answer in one piece where a stream was asked for"
            self._failed(attempt, "malformed", what, Verdict("next_rung", "model"))
        elif rung.backend.is_local and rung.is_degraded:
            # Standing in for another: what it says of itself is why it cannot, not the request's fault.
            verdict = Verdict("next_rung", retry_after_s=retry_after_s(headers))
            self._failed(attempt, f"http_{head.status}", said, verdict)
        elif lacks_endpoint:
            self._ask_otherwise(attempt, head, body)
        elif self._refuses_ids(attempt, head, body):
            self._health.learn_token_ids(rung.backend.name, self._now, gives=False)
            self._attempts.reopen(attempt, self._now, self._candidates.first(rung))
        elif verdict.follow == "callers_answer" and attempt.plan.level is None:
            self._callers_own(attempt, head, body)
        elif verdict.follow == "too_long":
            self._too_long = self._too_long or said
            self._candidates.was_too_long_for(rung)
            message = "the request is longer than its context"
            self._failed(attempt, "context_length", message, Verdict("next_rung"))
        else:
            what = f"a {head.status} that is no answer" if head.status < 400 else f"HTTP {head.status}"
            own = said if rung.backend.is_local else reason_in_body(headers, body, rung.model)
            self._failed(attempt, f"http_{head.status}", f"{what}: {own}" if own else what, verdict)

    def _callers_own(self, attempt: Attempt, head: Head, body: bytes) -> None:
        """Their request is wrong: the error goes back as it came."""
        self._attempts.drop(attempt)
        kept = words.of_the_callers_own_error(head.headers)
        self._say(attempt.rung, (head.status, passed_on(head.status, body), kept))

    def _lacks_endpoint(self, attempt: Attempt, head: Head, body: bytes) -> bool:
        """Is there no such page, or nothing there to go on from?"""
        is_through = attempt.plan.request.endpoint in THROUGH
        return is_through and self._policy.lacks_endpoint(head.status, dict(head.headers), body)

    def _ask_otherwise(self, attempt: Attempt, head: Head, body: bytes) -> None:
        """It has no such endpoint: a chat completion may do as well."""
        rung, asked = attempt.rung, self._call.asked
        if is_about_the_past(asked.body, body):
            self._callers_own(attempt, head, body)
            return
        self._health.learn_lack(rung, asked.endpoint, self._now)
        if self._call.origin is not None:
            self._attempts.reopen(attempt, self._now, self._candidates.first(rung))
        else:
            self._failed(attempt, LACKS, f"has no /v1/{asked.endpoint}", Verdict("next_rung"))

    def _refuses_ids(self, attempt: Attempt, head: Head, body: bytes) -> bool:
        """Is the error about a field that only we asked for?"""
        asked = "return_token_ids" in attempt.plan.request.body and not self._voice.wants_ids
        is_about_it = head.status in (400, 422) and b"return_token_ids" in body
        return asked and is_about_it and attempt.is_fresh and attempt.plan.level is None

    def _whole(self, attempt: Attempt, head: Head, body: bytes) -> None:
        try:
            label, headers = self._words.label(attempt.plan, head), self._words.headers(attempt.rung)
            strips_ids = "return_token_ids" in attempt.plan.request.body and not self._voice.wants_ids
            commands, usage = self._face.whole(body, label, headers, strips_ids=strips_ids)
        except NOT_ITS_SHAPE as exc:
            what = f"a 200 that is no answer: {exc}"
            self._failed(attempt, "malformed", what, Verdict("no_answer", "model"))
            return
        self._do += commands
        self._health.answered(attempt.rung, None, self._now)
        self._health.completed(attempt.rung)
        self._attempts.drop(attempt, closes=False)
        self.report.answered_by(attempt.rung, self._now)
        self._complete(usage)

    def _give_up_on_silent(self) -> None:
        for attempt in self._attempts:
            if self._now < min(attempt.silent_at, self._deadline):
                continue
            patience_s = self._now - attempt.opened_at
            what = "first token" if attempt.plan.request.stream else "answer"
            waits_for = f": {attempt.waits_for}" if attempt.waits_for else ""
            message = f"no {what} within {patience_s:g} s{waits_for}"
            self._attempts.never_again(attempt.rung)
            if self._now >= attempt.silent_at:  # else the deadline cut its patience short
                is_boot = bool(attempt.waits_for)  # of the model that is asked; others there may be warm
                self._health.silent(attempt.rung, patience_s, message, self._now, of_model=is_boot)
            verdict = self._policy.lost("timeout", before_a_byte=False)
            self._failed(attempt, "silent", message, Verdict(verdict.follow))

    def _failed(self, attempt: Attempt, reason: str, message: str, verdict: Verdict) -> None:
        """Close a failed attempt and note why; when nobody else may be asked the request is over."""
        self._attempts.drop(attempt)
        rung, rest_s = attempt.rung, verdict.retry_after_s
        self.report.fail(rung, reason, message, rest_s)
        self._health.failed(rung, verdict.blame, message, self._now, rest_s=rest_s, of_model=verdict.of_model)
        self._again.clear()
        if verdict.follow == "again" and verdict.wait_s is not None and not self._attempts:
            self._again.append((attempt.plan, verdict.wait_s))
        if verdict.follow == "no_answer" and self._policy.strict and attempt.plan.level is None:
            self._say(rung, words.bad_gateway(rung, message))

    # Hedging: the next rung is asked too, and the first to answer is kept

    def _hedge_at(self, plan: Plan) -> float:
        if not (self._model.hedges and plan.request.stream and self._attempts.may_repeat) or plan.level:
            return math.inf
        slow_s = self._health.first_token_p95_s(plan.rung.backend.name)
        return math.inf if slow_s is None else self._now + slow_s

    def _hedge(self, plan: Plan) -> None:
        hedge = next((one for one in self._candidates.hedges(plan) if self._attempts.may_ask(one)), None)
        if hedge is not None:
            self._attempts.open(hedge, self._now)
            self._candidates.was_hedge(hedge.rung)
            self.report.hedges += 1

    # The one that answers, until its end

    def _relay(self, attempt: Attempt) -> Generator[Step, Incoming, _Cut | None]:
        """Let an answer flow; how it broke off, or None when the request is over."""
        relay = self._begin(attempt)
        budget_s = self._deadline - self._now
        self._is_relaying = True
        try:
            cut = yield from self._flow(attempt.rung, relay)
        finally:
            self._is_relaying = False
            # Only time in which the caller gets nothing counts, and not what a slow caller took.
            self._deadline = relay.waits_since + budget_s
            self._beat_at = self._now + self._clocks.head_s
            self.report.count(relay)
            self._gathered_bytes += relay.gathered_bytes
            self._attempts.drop(attempt, relay=relay)
        return cut if isinstance(cut, _Cut) else self._finish(attempt.rung, cut, relay.usage)

    def _begin(self, attempt: Attempt) -> Relay:
        assert attempt.head is not None  # noqa: S101 - it has its first token
        rung, label = attempt.rung, self._words.label(attempt.plan, attempt.head)
        if attempt.plan.level is None:
            self._speaker = rung
        if attempt.plan.level is None and not attempt.plan.keeps_stop:
            relay = self._passing_on(attempt, label)
        else:
            relay = carrying_on(attempt.plan, label, self._voice, ability.stops(self._call))
        self.report.answered_by(rung, self._now)
        first_token_s = None if self._is_probe else self._now - attempt.opened_at
        self._health.answered(rung, first_token_s, self._now, relay)
        self._do += [*self._face.begin(relay, self._words.headers(rung)), RelayCommand(attempt.id, relay)]
        relay.fed_at = relay.waits_since = self._now
        relay.budget = self.budget
        return relay

    def _passing_on(self, attempt: Attempt, label: Label) -> Relay:
        """For an answer that goes out as it comes."""
        if attempt.plan.request.endpoint in THROUGH:
            return TypedRelay(label)
        body, can = attempt.plan.request.body, self._candidates.can
        asks_ids = bool(body.get("return_token_ids"))
        choices = (attempt.first or {}).get("choices") or [{}]
        gives = isinstance(choices[0].get("token_ids"), list)
        if gives or (asks_ids and choices[0].get("finish_reason") is None):
            self._health.learn_token_ids(attempt.rung.backend.name, self._now, gives=gives)
        return StreamRelay(
            label,
            wants_usage=self._voice.wants_usage,
            choices=attempt.plan.request.choices,
            strips_ids=asks_ids and not self._voice.wants_ids,
            keeps=can.tokens or can.text or can.none,
            holds_back=bool(body.get("stop")),
        )

    def _flow(self, rung: Rung, relay: Relay) -> Generator[Step, Incoming, _Cut | bytes]:
        """Wait for the end: how the answer broke off, or what is left to say when it is complete."""
        patience_s = self._clocks.stall_s
        while True:
            incoming = yield from self._wait(relay.waits_since + patience_s)
            match incoming:
                case Event(event=Finished(usage)):
                    relay.usage = usage
                    return b""
                case Event(event=Finishing()):
                    patience_s = self._clocks.finish_s
                case Lost() | Event(event=FailedInBand()) if relay.is_finished:
                    return relay.finish()
                case Event(event=FailedInBand() as failure):
                    return _Cut(rung, _reason(failure), failure.message, relay)
                case Event(event=Unavailable(error)):
                    return _Cut(rung, error.reason, error.message, relay)
                case Lost(why=why):
                    return _Cut(rung, why, LOST_IN_WORDS[why], relay)
                case Alarm(at=at) if relay.is_blocked and at >= relay.fed_at + self._clocks.deadline_s:
                    raise _CallerIsGoneError  # one who never reads must not hold a backend for ever
                case Alarm(at=at) if relay.is_blocked:
                    relay.waits_since = at  # time blocked on a slow caller is nobody's stall
                case Alarm(at=at) if at >= relay.waits_since + patience_s:
                    if relay.is_finished:
                        return relay.finish()
                    return _Cut(rung, "stall", f"no token for {patience_s:g} s", relay)
                case _:
                    pass

    def _finish(self, rung: Rung, rest: bytes, usage: Json | None) -> _Cut | None:
        """Say the end; an answer that cannot be put together broke off, in a way."""
        try:
            self._do += self._face.end(rest, self._words.headers(rung))
        except NOT_ITS_SHAPE as exc:
            return _Cut(rung, "malformed", f"an answer that cannot be read: {exc}", None)
        if not self._is_probe:  # one token says nothing of the next hundred
            self._health.completed(rung)
        self._complete(usage)
        return None

    # Carrying on, when it broke off

    def _carry_on(self, cut: _Cut) -> Asking:
        """Ask whoever can go on with an answer; when nobody can, the caller is told."""
        self._note(cut)
        relay = cut.relay
        said = relay.transcript() if relay is not None and not relay.has_gaps else None
        if said is not None:
            if cut.reason == "limited" and said.settled_chars > self._voice.transcript.settled_chars:
                self._attempts.forgive(cut.rung)
            if said is not self._voice.transcript:  # else nothing of what was cut was shown
                self._speaker = cut.rung
            self._voice.transcript = said
            self._voice.has_role = True
            if resume.has_all(self._call, said):
                self._conclude(cut.rung)
                return None
            winner = yield from self._ask_in_turn(self._ways_on(said, self._speaker or cut.rung))
            if winner is not None:
                self.report.resumes.append((str(winner.plan.level), "ok"))
            if winner is not None or self._is_over:
                return winner
        if not self._face.has_said:
            return (yield from self._start_over(cut))
        self._break_off(cut)
        return None

    def _note(self, cut: _Cut) -> None:
        self.report.fail(cut.rung, cut.reason, cut.message)
        if cut.reason == "diverged":  # nothing of it was shown: it never carried the answer on
            self.report.resumes[-1] = (self.report.resumes[-1][0], "failed")
            self._diverged.add(cut.rung.backend.name)
            return
        self.report.cuts.append(self.report.failures[-1])
        self._attempts.was_seen = True
        if cut.reason == "stall":
            self._attempts.never_again(cut.rung)
            self._health.silent(cut.rung, self._clocks.stall_s, cut.message, self._now)
        elif cut.reason != "limited":  # that one did as it was told
            blame: Blame = "model" if cut.reason == "in_band_error" else "host"
            self._health.failed(cut.rung, blame, cut.message, self._now)

    def _ways_on(self, said: Transcript, cut: Rung) -> Iterator[Plan]:
        """The ways on; one that is given back for the next, and was tried, has failed."""
        for plan in self._candidates.to_carry_on(said, cut):
            if plan.level != "tokens" and not self._face.has_said:
                continue  # nothing was shown: what is not exact had better start over
            if plan.level == "none" and plan.rung.backend.name in self._diverged:
                continue
            tries = self._attempts.tries(plan)
            yield plan
            if self._attempts.tries(plan) > tries:
                self.report.resumes.append((str(plan.level), "failed"))

    def _conclude(self, rung: Rung) -> None:
        """The caller has all that was asked for; only the end was lost."""
        relay = RewritingRelay(
            self._words.last_label(rung), self._voice, self._voice.transcript, resumes=True
        )
        rest = relay.conclude("length")
        self.report.resumes.append(("length", "ok"))
        self._finish(rung, rest, relay.usage)

    def _start_over(self, cut: _Cut) -> Asking:
        """Nothing was shown yet, so another answer may begin."""
        self._face.start_over()
        self.budget.give_back(self._gathered_bytes)
        self._gathered_bytes = 0
        self._voice = Voice.of(self._call)
        self.report.first_token_at = None
        winner = yield from self._ask_in_turn(self._candidates.in_turn())
        if winner is not None or self.report.is_complete:
            self.report.resumes.append(("restart", "ok"))
        elif self._is_over:  # with somebody's error
            self.report.is_broken_off = True
        else:
            self._break_off(cut)
        return winner

    def _break_off(self, cut: _Cut) -> None:
        self.report.is_broken_off = True
        self._say(cut.rung, words.broken_off(cut.rung, cut.message))

    # The end

    def _say(self, rung: Rung | None, told: Told) -> None:
        """An error is the request's end."""
        status, payload, headers = told
        self._do += self._face.error(status, payload, self._words.headers(rung) | headers)
        self._is_over = True
        self.report.status = status
        if rung is not None:
            self.report.backend, self.report.is_degraded = rung.backend.name, rung.is_degraded

    def _complete(self, usage: Json | None) -> None:
        self._is_over = True
        self.report.usage = usage
        self.report.is_complete = True

    # Waiting

    def _pause(self, seconds: float) -> Generator[Step, Incoming, None]:
        until = self._now + seconds
        while self._now < until:
            yield from self._wait(until)

    def _wait(self, until: float) -> Wait:
        """Yield what is to be done until an event comes that is not the heartbeat's."""
        while True:
            do = tuple(self._do)
            self._do.clear()
            beats = not self._is_relaying
            incoming = yield Step(do, min(until, self._beat_at) if beats else until)
            self._now = self._candidates.now = incoming.at
            if isinstance(incoming, CallerLeft):
                raise _CallerIsGoneError
            if isinstance(incoming, Cancelled):
                raise _CancelledError(incoming)
            if isinstance(incoming, Head | Event | Lost) and self._attempts.of(incoming) is None:
                continue  # of an attempt that is over
            if not (isinstance(incoming, Alarm) and beats and incoming.at < until):
                return incoming
            self._beat_at = incoming.at + self._clocks.head_s
            self._do += self._face.heartbeat(self._words.headers(None), self._whats_up())

    def _whats_up(self) -> str:
        """Why the voice that is wanted is not the one that is waited for, or what that one waits for."""
        for attempt in self._attempts:
            if attempt.waits_for:
                return f"{attempt.rung.backend.name}: {attempt.waits_for}"
        rests = ((rung, self._health.own_rest(rung)) for rung in self._model.rungs)
        return next((f"{rung.backend.name}: {rest.why}" for rung, rest in rests if rest is not None), "")


def _reason(failure: FailedInBand) -> str:
    match failure:
        case Diverged():
            return "diverged"
        case Limited():
            return "limited"
        case _:
            return "in_band_error"


def _verdict(error: UnavailableError) -> Verdict:
    if error.is_well:
        return Verdict("next_rung")
    blame: Blame = "host" if error.rest_s is None else "away"
    if error.needs_owner:
        blame = "refusal"
    return Verdict("next_rung", blame, retry_after_s=error.rest_s, of_model=error.of_model)


def _message(status: int, body: bytes) -> str:
    return str(passed_on(status, body)["error"].get("message") or "")
