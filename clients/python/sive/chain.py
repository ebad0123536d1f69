"""The chain: a generator of one request, from its route to an answer. No I/O, no clock, no sockets.

It is sent events, which carry their time, and yields steps; `drive` does what they say. Who speaks is found
in a `race`; here an answer flows until its end, and is carried on when it breaks off. Whoever wants to know
what became of the request reads ``report`` when it is over.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from sive import ability, resume, words
from sive.attempts import Attempt
from sive.budget import Budget
from sive.calls import Call
from sive.candidates import Candidates
from sive.errors import LOST_IN_WORDS
from sive.events import Alarm, Event, Incoming, Lost, Step, Unavailable
from sive.events import Relay as RelayCommand
from sive.faces import Face
from sive.health import Health
from sive.pass_on import StreamRelay
from sive.policy import Blame, Policy
from sive.progress import CallerIsGoneError, CancelledError, Progress
from sive.protocol import NOT_ITS_SHAPE, Json
from sive.race import Race, Racing
from sive.relay import FailedInBand, Finished, Finishing, Label, Relay
from sive.resume import Plan
from sive.rewrite import Diverged, Limited, RewritingRelay, Voice, carrying_on
from sive.routes import Model, Rung
from sive.through import THROUGH
from sive.transcript import Transcript
from sive.typed_relay import TypedRelay


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
        self.limits = policy.limits
        self.budget = Budget(policy.limits.held_bytes)
        self._progress = Progress(call, model, face, policy, health=health, now=now, is_probe=is_probe)
        self.report = self._progress.report
        self._call = call
        self._model = model
        self._face = face
        self._clocks = policy.clocks
        self._health = health
        self._is_probe = is_probe
        self._attempts = self._progress.attempts
        self._words = self._progress.words
        self._candidates = Candidates(self._progress)
        self._race = Race(self._progress, self._candidates)
        self._gathered_bytes = 0
        self._voice = Voice.of(call)
        self._speaker: Rung | None = None
        self._diverged: set[str] = set()
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
            if not self._progress.is_over:
                reads = self._candidates.longest_context() if self._model.rungs else 0
                self._progress.say(None, self._words.nobody(self._race.too_long, reads))
        except CallerIsGoneError:
            self.report.caller_left = True
            self.report.forget_open_cut()
        except CancelledError as cancelled:
            self.report.is_cancelled = True
            self.report.forget_open_cut()
            self._attempts.drop_all()
            self._progress.say(None, words.cancelled(cancelled.why))
        finally:
            self._attempts.drop_all()
        self.report.ended_at = self._progress.now
        # Returned, not yielded: a generator left suspended would keep the whole request alive in a cycle.
        return Step(tuple(self._progress.do))

    def _answer(self) -> Generator[Step, Incoming, None]:
        """Find who answers; when an answer breaks off, who carries it on."""
        attempt = yield from self._race.in_turn(self._candidates.in_turn())
        while attempt is not None:
            cut = yield from self._relay(attempt)
            if cut is None or self._progress.is_over:
                return
            attempt = yield from self._carry_on(cut)

    # The one that answers, until its end

    def _relay(self, attempt: Attempt) -> Generator[Step, Incoming, _Cut | None]:
        """Let an answer flow; how it broke off, or None when the request is over."""
        relay = self._begin(attempt)
        budget_s = self._progress.deadline - self._progress.now
        self._progress.is_relaying = True
        try:
            cut = yield from self._flow(attempt.rung, relay)
        finally:
            self._progress.is_relaying = False
            # Only time in which the caller gets nothing counts, and not what a slow caller took.
            self._progress.deadline = relay.waits_since + budget_s
            self._progress.put_off_heartbeat()
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
        self.report.answered_by(rung, self._progress.now)
        first_token_s = None if self._is_probe else self._progress.now - attempt.opened_at
        self._health.answered(rung, first_token_s, self._progress.now, relay)
        self._progress.do += self._face.begin(relay, self._words.headers(rung))
        self._progress.do.append(RelayCommand(attempt.id, relay))
        relay.fed_at = relay.waits_since = self._progress.now
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
            self._health.learn_token_ids(attempt.rung.backend.name, self._progress.now, gives=gives)
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
            incoming = yield from self._progress.wait(relay.waits_since + patience_s)
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
                    raise CallerIsGoneError  # one who never reads must not hold a backend for ever
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
            self._progress.do += self._face.end(rest, self._words.headers(rung))
        except NOT_ITS_SHAPE as exc:
            return _Cut(rung, "malformed", f"an answer that cannot be read: {exc}", None)
        if not self._is_probe:  # one token says nothing of the next hundred
            self._health.completed(rung)
        self._progress.complete(usage)
        return None

    # Carrying on, when it broke off

    def _carry_on(self, cut: _Cut) -> Racing:
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
            winner = yield from self._race.in_turn(self._ways_on(said, self._speaker or cut.rung))
            if winner is not None:
                self.report.resumes.append((str(winner.plan.level), "ok"))
            if winner is not None or self._progress.is_over:
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
            self._health.silent(cut.rung, self._clocks.stall_s, cut.message, self._progress.now)
        elif cut.reason != "limited":  # that one did as it was told
            blame: Blame = "model" if cut.reason == "in_band_error" else "host"
            self._health.failed(cut.rung, blame, cut.message, self._progress.now)

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

    def _start_over(self, cut: _Cut) -> Racing:
        """Nothing was shown yet, so another answer may begin."""
        self._face.start_over()
        self.budget.give_back(self._gathered_bytes)
        self._gathered_bytes = 0
        self._voice = Voice.of(self._call)
        self.report.first_token_at = None
        winner = yield from self._race.in_turn(self._candidates.in_turn())
        if winner is not None or self.report.is_complete:
            self.report.resumes.append(("restart", "ok"))
        elif self._progress.is_over:  # with somebody's error
            self.report.is_broken_off = True
        else:
            self._break_off(cut)
        return winner

    def _break_off(self, cut: _Cut) -> None:
        self.report.is_broken_off = True
        self._progress.say(cut.rung, words.broken_off(cut.rung, cut.message))


def _reason(failure: FailedInBand) -> str:
    match failure:
        case Diverged():
            return "diverged"
        case Limited():
            return "limited"
        case _:
            return "in_band_error"
