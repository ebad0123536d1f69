"""Whom to ask for an answer, or to carry one on, in which order and with which request."""

import secrets
from collections.abc import Iterator

from sive import ability, resume
from sive.calls import Call
from sive.progress import Progress
from sive.resume import Plan
from sive.routes import Rung, request_for
from sive.through import LACKS, THROUGH
from sive.transcript import Transcript

PREFILL_FIELD = "continue_final_message"
MAX_BYTES_PER_TOKEN = 16
"""No tokenizer packs running text tighter; what exceeds it plainly does not fit a context."""


class Candidates:
    """The rungs of a request's model as plans; what is passed over is noted in its report.

    ``is_guarded``: the answer is streamed from its backend, whether the caller wants a stream or not.
    ``can``: how such an answer can be carried on.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._call = call = progress.call
        self._model = model = progress.model
        self._policy = policy = progress.policy
        self._health = progress.health
        self._report = progress.report
        self._too_long_for = 0
        self._hedged: list[Rung] = []
        is_chat = call.endpoint not in THROUGH
        is_put_together = model.guards_json and not policy.strict and ability.streams_whole(call)
        self.is_guarded = call.stream or (is_put_together and is_chat)
        self.can = ability.ability(call) if self.is_guarded and is_chat else ability.NOT_AT_ALL
        self._seed = self._drawn_seed()

    def in_turn(self) -> Iterator[Plan]:
        """The rungs in order; when all that rest were passed over in vain, the one that rested longest."""
        passed_over: list[Rung] = []
        rungs = [rung for rung in self._model.rungs if self._may_answer(rung)]
        if ability.wants_tools(self._call):  # those that cannot call any answer without, and say so
            rungs.sort(key=lambda rung: not rung.backend.tools)
        for rung in rungs:
            if rung in self._hedged:
                continue
            if self._reads_no_more(rung):
                message = "reads no more than the one for which it was too long"
                self._report.fail(rung, "context_length", message)
                continue
            if not self._can_be_asked(rung):
                self._report.fail(rung, LACKS, f"has no /v1/{self._call.endpoint}")
                continue
            rest = self._health.rest(rung, self._progress.now)
            is_out_of_order = self._health.own_rest(rung) is not None
            if rest is None or (rung is rungs[-1] and not is_out_of_order):
                yield self.first(rung)
                continue
            if not is_out_of_order:
                passed_over.append(rung)
            self._report.fail(rung, "resting", rest.why, rest.retry_after_s)
        if passed_over:
            yield self.first(min(passed_over, key=self._health.rests_until))

    def hedges(self, plan: Plan) -> Iterator[Plan]:
        """Who could be asked beside this one: the next rungs of the same voice, if they cost nothing."""
        after = self._model.rungs[self._model.rungs.index(plan.rung) + 1 :]
        for rung in after:
            is_wanted = not rung.is_degraded and not rung.backend.quota and self._can_be_asked(rung)
            if is_wanted and self._health.rest(rung, self._progress.now) is None:
                yield self.first(rung)

    def first(self, rung: Rung) -> Plan:
        """What this rung is asked when an answer is to begin."""
        asked = self._call.asked
        if asked.endpoint in THROUGH and self._has_endpoint(rung):
            return Plan(rung, *request_for(asked, self._model, rung))
        streams = self.is_guarded and (self._call.stream or not rung.backend.is_local)
        if not (streams and self.can.tokens) or self._policy.strict:
            return Plan(rung, *request_for(self._call, self._model, rung, streams=streams))
        gives_ids = self._gives_ids(rung)
        keeps_stop = gives_ids is True and bool(self._call.body.get("stop"))
        request, dropped = request_for(
            self._call,
            self._model,
            rung,
            streams=True,
            asks_ids=gives_ids is not False and rung.backend.known_fields is None,
            keeps_stop=keeps_stop,
            seed=self._seed,
        )
        return Plan(rung, request, dropped, keeps_stop=keeps_stop)

    def to_carry_on(self, said: Transcript, cut: Rung) -> Iterator[Plan]:
        """The ways to carry an answer on: first those whose backends do not rest."""
        wants_own = self._call.requires_adapter or self._model.refuses_degraded
        rungs = [rung for rung in self._model.rungs if not (rung.is_degraded and wants_own)]
        ready = [rung for rung in rungs if self._health.rest(rung, self._progress.now) is None]
        resting = [r for r in rungs if r not in ready and self._health.own_rest(r) is None]
        for group in (ready, resting):
            yield from resume.plans(
                self._call,
                self._model,
                said,
                cut,
                can=self.can,
                gives_ids=self._gives_ids,
                rungs=group,
                seed=self._seed,
            )

    def was_hedge(self, rung: Rung) -> None:
        """It was asked before its turn."""
        self._hedged.append(rung)

    def was_too_long_for(self, rung: Rung) -> None:
        """Only a rung that reads more can help."""
        self._too_long_for = max(self._too_long_for, rung.backend.context_tokens or 0)

    def longest_context(self) -> int:
        """How many tokens any rung reads at most."""
        return max(rung.backend.context_tokens or 0 for rung in self._model.rungs)

    def _can_be_asked(self, rung: Rung) -> bool:
        return self._call.endpoint not in THROUGH or self._has_endpoint(rung)

    def _has_endpoint(self, rung: Rung) -> bool:
        return self._health.has_endpoint(rung, self._call.asked.endpoint, self._progress.now)

    def _gives_ids(self, rung: Rung) -> bool | None:
        if self._policy.strict:  # a host we know nothing of is not asked for what OpenAI does not know
            return False
        return self._health.gives_token_ids(rung.backend, self._progress.now)

    def _may_answer(self, rung: Rung) -> bool:
        context = rung.backend.context_tokens
        if rung.is_degraded and (self._call.requires_adapter or self._model.refuses_degraded):
            self._report.fail(rung, "degraded", "another voice, and only the model's own is wanted")
        elif context is not None and self._is_plainly_too_long(rung, context):
            self._report.fail(rung, "context_length", f"reads at most {context} tokens")
        elif not goes_on(self._call, rung):
            message = "begins anew instead of going on from the assistant's message"
            self._report.fail(rung, "prefill", message)
        else:
            return True
        return False

    def _is_plainly_too_long(self, rung: Rung, context: int) -> bool:
        return not _truncates(rung) and self._call.prompt_bytes > context * MAX_BYTES_PER_TOKEN

    def _reads_no_more(self, rung: Rung) -> bool:
        """Was the request too long for one that reads as much?"""
        context = rung.backend.context_tokens
        return context is not None and context <= self._too_long_for and not _truncates(rung)

    def _drawn_seed(self) -> int | None:
        """For a sampled request without a seed, one of ours: its noise is then the same on the next pod."""
        if not self.can.tokens or self._call.body.get("seed") is not None:
            return None
        if self._call.body.get("temperature") == 0:
            return None
        if not any(rung.backend.position_seeds for rung in self._model.rungs):
            return None
        return secrets.randbelow(2**31)


def goes_on(call: Call, rung: Rung) -> bool:
    """Does this rung carry on the assistant's message that the request ends with, if it is to?

    One that does not know the field would answer 200 and begin anew: the caller would join two answers.
    """
    known = rung.backend.known_fields
    knows = known is None or PREFILL_FIELD in known or rung.backend.resume == "text"
    return knows or not call.body.get(PREFILL_FIELD)


def _truncates(rung: Rung) -> bool:
    """The CPU drops the oldest turns of what it stands in for."""
    return rung.backend.is_local and rung.is_degraded
