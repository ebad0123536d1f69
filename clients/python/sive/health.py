"""What is known of each backend: its breakers, what runs there, when it last gave a token. No I/O, no clock.

One object a process: chains read it and tell it what happened, in the gateway a prober adds what it finds.
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from sive.backends import Backend
from sive.policy import Blame, Policy
from sive.protocol import Endpoint
from sive.relay import Relay
from sive.routes import Rest, Rung

SAMPLES = 64
"""Times to first token that are remembered of a backend; its 95th percentile is trusted from a quarter on."""

FIRST_REST_S = 1.0
LESSON_S = 60.0
"""For so long what an answer showed is believed: the backend may be exchanged for another."""

ROUNDING_S = 0.001

Key = tuple[str, str]
"""A backend's name and a model's there; ``""`` is the backend as a whole."""


@dataclass(slots=True)
class _Breaker:
    """``failures`` in a row; ``rests_until`` is set while it is open; ``is_tried``: by somebody, then."""

    failures: int = 0
    rests: int = 0
    rests_until: float | None = None
    is_tried: bool = False
    why: str = ""


@dataclass(slots=True)
class _Traffic:
    """What runs on a backend now, and how its answers began."""

    in_flight: int = 0
    token_at: float = -math.inf
    relays: set[Relay] = field(default_factory=set)
    first_token_s: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))


class Health:
    """Breakers and traffic of all backends.

    ``rests``: backends, or single models there, that cannot answer for a reason of their own: an engine that
    boots, an adapter that is not what it should be.
    ``is_probed``: somebody outside asks backends with ``probe = "token"`` and closes their breakers;
    otherwise one caller's request does.
    """

    def __init__(
        self, policy: Policy, *, rests: Callable[[], Mapping[Key, Rest]] = dict, is_probed: bool = False
    ) -> None:
        self._policy = policy
        self._own_rests = rests
        self._is_probed = is_probed
        self._breakers: dict[Key, _Breaker] = {}
        self._traffic: defaultdict[str, _Traffic] = defaultdict(_Traffic)
        self._gives_ids: dict[str, tuple[float, bool | None]] = {}
        self._lacks: dict[tuple[str, str, Endpoint], float] = {}

    # What a chain asks

    def rest(self, rung: Rung, now: float) -> Rest | None:
        """Why this rung is not asked now; None when it may be."""
        if own := self.own_rest(rung):
            return own
        for key in _keys(rung):
            breaker = self._breakers.get(key)
            if breaker is not None and not self._may_be_tried(breaker, rung.backend, now):
                return self._rest(breaker, now)
        return None

    def own_rest(self, rung: Rung) -> Rest | None:
        """Why it rests for a reason of its own, so that not even the last rung is asked in vain."""
        rests = self._own_rests()
        return next((rests[key] for key in _keys(rung) if key in rests), None) if rests else None

    def rests_until(self, rung: Rung) -> float:
        """When its breakers have rested; the past when they are closed."""
        found = (self._breakers.get(key) for key in _keys(rung))
        return max((b.rests_until or -math.inf for b in found if b), default=-math.inf)

    def is_full(self, backend: Backend) -> bool:
        """Do as many requests run there as its ``max_in_flight`` allows?"""
        limit = backend.max_in_flight
        return limit is not None and self._traffic[backend.name].in_flight >= limit

    def gave_token_at(self, backend: str) -> float:
        """When this backend last gave anybody a token."""
        traffic = self._traffic[backend]
        return max([traffic.token_at, *(relay.fed_at for relay in traffic.relays)])

    def first_token_p95_s(self, backend: str) -> float | None:
        """The 95th percentile of this backend's times to first token; None while too few are known."""
        times = sorted(self._traffic[backend].first_token_s)
        return times[math.ceil(len(times) * 0.95) - 1] if len(times) >= SAMPLES // 4 else None

    def gives_token_ids(self, backend: Backend, now: float) -> bool | None:
        """Does it give the ids that exact resuming needs? None while that is unknown.

        What an answer showed is believed for LESSON_S.
        """
        learned_at, gives = self._gives_ids.get(backend.name, (-math.inf, None))
        if now - learned_at > LESSON_S:
            gives = None
        if backend.resume is not None:
            return backend.resume == "tokens" and gives is not False
        return gives

    def has_endpoint(self, rung: Rung, endpoint: Endpoint, now: float) -> bool:
        """May it be asked for this? What is not declared is found out by asking."""
        lacked_at = self._lacks.get((*_keys(rung)[1], endpoint), -math.inf)
        if now - lacked_at <= LESSON_S:
            return False
        declared = rung.backend.endpoints
        return declared is None or endpoint in declared

    # What a chain, or a prober, tells

    def opened(self, rung: Rung, *, counts: bool = True) -> bool:
        """A request is on its way there; True when it is the one that tries a backend that had rested."""
        self._traffic[rung.backend.name].in_flight += counts
        breakers = [self._breakers.get(key) for key in _keys(rung)]
        tried = [b for b in breakers if b is not None and b.rests_until is not None and not b.is_tried]
        for breaker in tried:
            breaker.is_tried = True
        return bool(tried)

    def closed(
        self, rung: Rung, relay: Relay | None, *, was_trial: bool = False, counts: bool = True
    ) -> None:
        """A request there is over, whatever became of it."""
        traffic = self._traffic[rung.backend.name]
        traffic.in_flight -= counts
        if relay is not None:
            traffic.relays.discard(relay)
            traffic.token_at = max(traffic.token_at, relay.fed_at)
        for key in _keys(rung) if was_trial else ():
            if breaker := self._breakers.get(key):
                breaker.is_tried = False

    def answered(
        self, rung: Rung, first_token_s: float | None, now: float, relay: Relay | None = None
    ) -> None:
        """It gave a first token, after so long where that is known: its breakers close."""
        traffic = self._traffic[rung.backend.name]
        traffic.token_at = now
        if first_token_s is not None:
            traffic.first_token_s.append(first_token_s)
        if relay is not None:
            traffic.relays.add(relay)
        for key in _keys(rung):
            if (breaker := self._breakers.get(key)) and breaker.rests_until is not None:
                del self._breakers[key]

    def completed(self, rung: Rung) -> None:
        """It gave a whole answer: what went wrong before is forgotten, as after a first token it is not."""
        for key in _keys(rung):
            self._breakers.pop(key, None)

    def failed(
        self,
        rung: Rung,
        blame: Blame,
        why: str,
        now: float,
        *,
        rest_s: float | None = None,
        of_model: bool = False,
    ) -> None:
        """It failed. ``rest_s``: how long it asked to be left alone; ``of_model``: only with this model."""
        if blame == "nobody":
            return
        model = rung.model if of_model or blame == "model" else ""
        breaker = self._breakers.setdefault((rung.backend.name, model), _Breaker())
        breaker.failures += 1
        breaker.why = why
        if blame == "refusal":
            breaker.rests_until = now + self._policy.clocks.refusal_s
        elif blame == "away" and rest_s is not None:
            breaker.rests_until = max(breaker.rests_until or 0.0, now + rest_s)
        elif breaker.rests_until is not None or breaker.failures >= self._policy.failures:
            self._open(breaker, now, rest_s)

    def silent(self, rung: Rung, patience_s: float, why: str, now: float, *, of_model: bool = False) -> bool:
        """It said nothing for so long. True when it is broken, False when others there get tokens: busy."""
        if now - self.gave_token_at(rung.backend.name) < patience_s - ROUNDING_S:
            return False
        breaker = self._breakers.setdefault((rung.backend.name, rung.model if of_model else ""), _Breaker())
        breaker.failures += 1
        breaker.why = why
        self._open(breaker, now)
        return True

    def learn_token_ids(self, backend: str, now: float, *, gives: bool) -> None:
        """What an answer showed."""
        self._gives_ids[backend] = now, gives

    def learn_lack(self, rung: Rung, endpoint: Endpoint, now: float) -> None:
        """It was asked, and does not have this."""
        self._lacks[(*_keys(rung)[1], endpoint)] = now

    def forget_others(self, backend: str, models: Collection[str]) -> None:
        """A backend has only these models now."""
        for key in [key for key in self._breakers if key[0] == backend and key[1] not in ("", *models)]:
            del self._breakers[key]

    # What a prober and the status page ask

    def open_keys(self) -> dict[Key, str]:
        """The breakers that are open, and why."""
        return {key: b.why for key, b in self._breakers.items() if b.rests_until is not None}

    def may_probe(self, key: Key, now: float) -> bool:
        """Has this open breaker rested long enough to be asked?"""
        breaker = self._breakers.get(key)
        return breaker is not None and breaker.rests_until is not None and now >= breaker.rests_until

    def in_flight(self) -> Counter[str]:
        """How many requests run on each backend."""
        return Counter({name: traffic.in_flight for name, traffic in self._traffic.items()})

    def _open(self, breaker: _Breaker, now: float, rest_s: float | None = None) -> None:
        longest_s = self._policy.clocks.rest_s
        rest_s = FIRST_REST_S * 2.0 ** min(breaker.rests, 10) if rest_s is None else rest_s
        breaker.rests += 1
        # A refusal that rests for longer is not shortened by what came after it.
        breaker.rests_until = max(breaker.rests_until or 0.0, now + min(longest_s, rest_s))

    def _may_be_tried(self, breaker: _Breaker, backend: Backend, now: float) -> bool:
        if breaker.rests_until is None:
            return True
        by_probe = self._is_probed and backend.probe == "token"
        return now >= breaker.rests_until and not breaker.is_tried and not by_probe

    def _rest(self, breaker: _Breaker, now: float) -> Rest:
        left_s = max(0.0, (breaker.rests_until or now) - now)
        times = "a failure" if breaker.failures == 1 else f"{breaker.failures} failures, the last"
        return Rest(f"rests after {times}: {breaker.why}", left_s)


def _keys(rung: Rung) -> tuple[Key, Key]:
    return (rung.backend.name, ""), (rung.backend.name, rung.model)
