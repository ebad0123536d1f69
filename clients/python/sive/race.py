"""The race for a first token: rungs in turn, some once more, and a hedge beside one that is slow."""

import math
from collections.abc import Generator, Iterable

from sive import words
from sive.attempts import Attempt
from sive.candidates import Candidates
from sive.chunks import finish_reasons, is_error, refusal_status
from sive.errors import LOST_IN_WORDS, UnavailableError
from sive.events import Alarm, Event, First, Head, Incoming, Lost, Step, Unavailable, Waiting, Whole
from sive.policy import UNSEEN, Blame, Verdict, retry_after_s
from sive.progress import Progress
from sive.protocol import JSON_HEADERS, NOT_ITS_SHAPE, dumps, passed_on
from sive.reasons import reason_in, reason_in_body
from sive.relay import ERROR_IN_BAND
from sive.resume import Plan
from sive.through import LACKS, THROUGH, is_about_the_past

Racing = Generator[Step, Incoming, Attempt | None]
"""Ends with the attempt that has its first token, or with None: nobody has, or the request is over."""


class Race:
    """Asks backends for one request. ``too_long``: what one said of a request that exceeds its context."""

    def __init__(self, progress: Progress, candidates: Candidates) -> None:
        self.too_long = ""
        self._progress = progress
        self._candidates = candidates
        self._call = progress.call
        self._model = progress.model
        self._policy = progress.policy
        self._health = progress.health
        self._attempts = progress.attempts
        self._words = progress.words
        self._report = progress.report
        self._wants_ids = bool(progress.call.body.get("return_token_ids"))
        self._again: list[tuple[Plan, float]] = []

    def in_turn(self, plans: Iterable[Plan]) -> Racing:
        """Ask by these plans, as they come, until one has its first token or the request is over."""
        for plan in plans:
            if not self._progress.may_go_on or not self._attempts.may_ask(plan):
                continue
            winner = yield from self._ask(plan)
            if winner is not None or self._progress.is_over:
                return winner
        return None

    def _ask(self, plan: Plan) -> Racing:
        """Ask one backend, and if its failure invites it once more."""
        self._again.clear()
        winner = yield from self._race(plan)
        if winner is not None or self._progress.is_over or not self._again:
            return winner
        again, wait_s = self._again.pop()
        if self._progress.now + wait_s >= self._progress.deadline or not self._attempts.may_ask(again):
            return None
        yield from self._progress.pause(wait_s)
        return (yield from self._race(again))

    def _race(self, plan: Plan) -> Racing:
        """Open an attempt, and a hedge when it is slow, until one has its first token."""
        self._attempts.open(plan, self._progress.now)
        hedge_at = self._hedge_at(plan)
        while self._attempts:
            silent_at = min(attempt.silent_at for attempt in self._attempts)
            incoming = yield from self._progress.wait(min(silent_at, hedge_at, self._progress.deadline))
            if isinstance(incoming, Alarm):
                if self._progress.now >= hedge_at:
                    hedge_at = math.inf
                    self._hedge(plan)
                self._give_up_on_silent()
            elif (attempt := self._attempts.of(incoming)) and self._wins(attempt, incoming):
                self._attempts.drop_all(but=attempt)
                return attempt
            if self._progress.is_over:
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
                    head = Head(attempt.id, self._progress.now, status, JSON_HEADERS)
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
                self._attempts.reopen(attempt, self._progress.now)
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
            self._health.learn_token_ids(rung.backend.name, self._progress.now, gives=False)
            self._attempts.reopen(attempt, self._progress.now, self._candidates.first(rung))
        elif verdict.follow == "callers_answer" and attempt.plan.level is None:
            self._callers_own(attempt, head, body)
        elif verdict.follow == "too_long":
            self.too_long = self.too_long or said
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
        self._progress.say(attempt.rung, (head.status, passed_on(head.status, body), kept))

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
        self._health.learn_lack(rung, asked.endpoint, self._progress.now)
        if self._call.origin is not None:
            self._attempts.reopen(attempt, self._progress.now, self._candidates.first(rung))
        else:
            self._failed(attempt, LACKS, f"has no /v1/{asked.endpoint}", Verdict("next_rung"))

    def _refuses_ids(self, attempt: Attempt, head: Head, body: bytes) -> bool:
        """Is the error about a field that only we asked for?"""
        asked = "return_token_ids" in attempt.plan.request.body and not self._wants_ids
        is_about_it = head.status in (400, 422) and b"return_token_ids" in body
        return asked and is_about_it and attempt.is_fresh and attempt.plan.level is None

    def _whole(self, attempt: Attempt, head: Head, body: bytes) -> None:
        try:
            label = self._words.label(attempt.plan, head)
            headers = self._words.headers(attempt.rung)
            strips_ids = "return_token_ids" in attempt.plan.request.body and not self._wants_ids
            commands, usage = self._progress.face.whole(body, label, headers, strips_ids=strips_ids)
        except NOT_ITS_SHAPE as exc:
            what = f"a 200 that is no answer: {exc}"
            self._failed(attempt, "malformed", what, Verdict("no_answer", "model"))
            return
        self._progress.do += commands
        self._health.answered(attempt.rung, None, self._progress.now)
        self._health.completed(attempt.rung)
        self._attempts.drop(attempt, closes=False)
        self._report.answered_by(attempt.rung, self._progress.now)
        self._progress.complete(usage)

    def _give_up_on_silent(self) -> None:
        for attempt in self._attempts:
            if self._progress.now < min(attempt.silent_at, self._progress.deadline):
                continue
            patience_s = self._progress.now - attempt.opened_at
            what = "first token" if attempt.plan.request.stream else "answer"
            waits_for = f": {attempt.waits_for}" if attempt.waits_for else ""
            message = f"no {what} within {patience_s:g} s{waits_for}"
            self._attempts.never_again(attempt.rung)
            if self._progress.now >= attempt.silent_at:  # else the deadline cut its patience short
                is_boot = bool(attempt.waits_for)  # of the model that is asked; others there may be warm
                self._health.silent(attempt.rung, patience_s, message, self._progress.now, of_model=is_boot)
            verdict = self._policy.lost("timeout", before_a_byte=False)
            self._failed(attempt, "silent", message, Verdict(verdict.follow))

    def _failed(self, attempt: Attempt, reason: str, message: str, verdict: Verdict) -> None:
        """Close a failed attempt and note why; when nobody else may be asked the request is over."""
        self._attempts.drop(attempt)
        rung, rest_s = attempt.rung, verdict.retry_after_s
        self._report.fail(rung, reason, message, rest_s)
        self._health.failed(
            rung, verdict.blame, message, self._progress.now, rest_s=rest_s, of_model=verdict.of_model
        )
        self._again.clear()
        if verdict.follow == "again" and verdict.wait_s is not None and not self._attempts:
            self._again.append((attempt.plan, verdict.wait_s))
        if verdict.follow == "no_answer" and self._policy.strict and attempt.plan.level is None:
            self._progress.say(rung, words.bad_gateway(rung, message))

    # Hedging: the next rung is asked too, and the first to answer is kept

    def _hedge_at(self, plan: Plan) -> float:
        if not (self._model.hedges and plan.request.stream and self._attempts.may_repeat) or plan.level:
            return math.inf
        slow_s = self._health.first_token_p95_s(plan.rung.backend.name)
        return math.inf if slow_s is None else self._progress.now + slow_s

    def _hedge(self, plan: Plan) -> None:
        hedge = next((one for one in self._candidates.hedges(plan) if self._attempts.may_ask(one)), None)
        if hedge is not None:
            self._attempts.open(hedge, self._progress.now)
            self._candidates.was_hedge(hedge.rung)
            self._report.hedges += 1


def _verdict(error: UnavailableError) -> Verdict:
    if error.is_well:
        return Verdict("next_rung")
    blame: Blame = "host" if error.rest_s is None else "away"
    if error.needs_owner:
        blame = "refusal"
    return Verdict("next_rung", blame, retry_after_s=error.rest_s, of_model=error.of_model)


def _message(status: int, body: bytes) -> str:
    return str(passed_on(status, body)["error"].get("message") or "")
