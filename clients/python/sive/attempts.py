"""The attempts of one request: those that are open, and whether somebody may be asked once more."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from sive.calls import Call
from sive.events import Close, Command, Event, Head, Incoming, Lost, Open
from sive.health import Health
from sive.policy import Policy
from sive.protocol import Json
from sive.relay import Relay
from sive.report import Report
from sive.resume import Plan
from sive.routes import Rung
from sive.through import leaves_something


@dataclass(slots=True, eq=False)
class Attempt:
    """One request to one backend. Times are the events' own.

    ``silent_at``: when its patience ends. ``is_fresh``: it was not opened again. ``is_trial``: it tries a
    backend that had rested. ``first``: its first chunk. ``waits_for``: what its silence means.
    """

    id: int
    plan: Plan
    opened_at: float
    silent_at: float
    is_fresh: bool
    is_trial: bool
    head: Head | None = None
    first: Json | None = None
    waits_for: str = ""

    @property
    def rung(self) -> Rung:
        """Who is asked."""
        return self.plan.rung


class Attempts:
    """Opens and closes attempts by commands added to ``do``; ``health`` hears of each.

    ``was_seen``: a backend may have begun to work on the request. ``is_probe``: it takes no caller's place.
    """

    def __init__(
        self,
        call: Call,
        policy: Policy,
        health: Health,
        report: Report,
        do: list[Command],
        *,
        is_probe: bool = False,
    ) -> None:
        self.was_seen = False
        self._call = call
        self._policy = policy
        self._health = health
        self._report = report
        self._do = do
        self._open: dict[int, Attempt] = {}
        self._opens = 0
        self._tries: Counter[str] = Counter()
        self._silent: set[str] = set()
        self._is_probe = is_probe

    def __bool__(self) -> bool:
        """Is any open?"""
        return bool(self._open)

    def __iter__(self) -> Iterator[Attempt]:
        """Those that are open now."""
        return iter(tuple(self._open.values()))

    def of(self, incoming: Incoming) -> Attempt | None:
        """The open attempt that this is news of."""
        return self._open.get(incoming.id) if isinstance(incoming, Head | Event | Lost) else None

    def may_ask(self, plan: Plan) -> bool:
        """Not too often, not after silence, not beside too many others, and some requests only once."""
        backend = plan.rung.backend
        if self._tries[backend.name] >= self._policy.attempts or backend.name in self._silent:
            return False
        if self.was_seen and not self.may_repeat:
            return False
        if self._health.is_full(backend) and not self._is_probe:
            message = f"runs {backend.max_in_flight} requests, its max_in_flight"
            self._report.fail(plan.rung, "full", message)
            return False
        return True

    @property
    def may_repeat(self) -> bool:
        """May the request be sent again when it was seen? Not when it leaves something behind."""
        return not leaves_something(self._call.asked.body)

    def tries(self, plan: Plan) -> int:
        """How often this backend was asked."""
        return self._tries[plan.rung.backend.name]

    def open(self, plan: Plan, now: float) -> None:
        """Ask."""
        self._report.attempts += 1
        self._tries[plan.rung.backend.name] += 1
        # The CPU model is never dead and silent: who waits there stands in its queue.
        backend, clocks = plan.rung.backend, self._policy.clocks
        sees_tokens = plan.request.stream and backend.streams and not backend.is_local
        patience_s = (backend.first_token_s or clocks.first_token_s) if sees_tokens else clocks.whole_s
        self._start(plan, now, now + min(patience_s, clocks.silence_s), is_fresh=True)

    def reopen(self, attempt: Attempt, now: float, plan: Plan | None = None) -> None:
        """Once more at once, on a fresh connection; it counts for nothing."""
        self.drop(attempt)
        self._start(plan or attempt.plan, now, attempt.silent_at, is_fresh=False)

    def drop(self, attempt: Attempt, *, closes: bool = True, relay: Relay | None = None) -> None:
        """It is over; ``closes``: its backend may still be at work."""
        if self._open.pop(attempt.id, None) is None:
            return
        self._health.closed(attempt.rung, relay, was_trial=attempt.is_trial, counts=not self._is_probe)
        if closes:
            self._do.append(Close(attempt.id))

    def drop_all(self, but: Attempt | None = None) -> None:
        """All are over."""
        for attempt in self:
            if attempt is not but:
                self.drop(attempt)

    def forgive(self, rung: Rung) -> None:
        """That attempt does not count."""
        self._tries[rung.backend.name] -= 1

    def never_again(self, rung: Rung) -> None:
        """Who was silent once is not asked again for this request."""
        self.was_seen = True
        self._silent.add(rung.backend.name)

    def _start(self, plan: Plan, now: float, silent_at: float, *, is_fresh: bool) -> None:
        self._opens += 1
        is_trial = self._health.opened(plan.rung, counts=not self._is_probe)
        self._open[self._opens] = Attempt(self._opens, plan, now, silent_at, is_fresh, is_trial)
        self._do.append(Open(self._opens, plan.rung, plan.request))
