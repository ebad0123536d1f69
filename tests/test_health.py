"""Breakers and traffic of the backends, on a clock passed in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sive.health import SAMPLES, Health
from sive.pass_on import StreamRelay
from sive.policy import Clocks, Policy
from sive.relay import Label
from sive.routes import Rest, Rung

from tests.chain_play import policy, rung

POD = rung("pod")
OTHER_MODEL = Rung(POD.backend, "other-model", "test")


def health(**options: bool) -> Health:
    """Nothing is known yet."""
    return Health(policy(Clocks(rest_s=5, refusal_s=300)), **options)


def failed(times: int, at: float = 0.0, blame: str = "host") -> Health:
    """After so many failures of the pod in a row."""
    known = health()
    for _ in range(times):
        known.failed(POD, blame, "it failed", at)  # type: ignore[arg-type]
    return known


def test_three_failures_in_a_row_open_it() -> None:
    """Two do not; the third does, and the reason is told."""
    assert failed(2).rest(POD, 0) is None
    rest = failed(3).rest(POD, 0)
    assert rest is not None
    assert "it failed" in rest.why
    assert rest.retry_after_s == 1


def test_one_failure_is_one() -> None:
    """Who rests after a single silence is not said to have failed several times."""
    known = health()
    known.silent(POD, 10, "no first token", 20)
    rest = known.rest(POD, 20)
    assert rest is not None
    assert rest.why == "rests after a failure: no first token"
    again = failed(3).rest(POD, 0)
    assert again is not None
    assert again.why == "rests after 3 failures, the last: it failed"


def test_a_success_begins_the_count_anew() -> None:
    """Failures count in a row."""
    known = failed(2)
    known.answered(POD, 0.1, 1)
    known.completed(POD)
    known.failed(POD, "host", "it failed", 2)
    known.failed(POD, "host", "it failed", 2)
    assert known.rest(POD, 2) is None


def test_first_tokens_alone_are_no_success() -> None:
    """A backend that begins every answer and ends none is left alone after three."""
    known = health()
    for at in range(3):
        assert known.rest(POD, at) is None
        known.answered(POD, 0.1, at)
        known.failed(POD, "host", "it broke off", at)
    assert known.rest(POD, 2.5) is not None


def test_nobodys_fault_counts_for_nothing() -> None:
    """Busy is not broken."""
    assert failed(9, blame="nobody").rest(POD, 0) is None


def test_one_silence_opens_it() -> None:
    """Who says nothing at all is not asked three times."""
    known = health()
    assert known.silent(POD, 10, "no first token", 20)
    assert known.rest(POD, 20) is not None


@pytest.mark.parametrize(("token_at", "is_broken"), [(11.0, False), (19.0, False), (9.0, True)])
def test_silent_while_others_get_tokens_is_busy(token_at: float, is_broken: bool) -> None:
    """A token to anybody within the time of the silence: it works, and is only full."""
    known = health()
    known.answered(POD, 0.1, token_at)
    assert known.silent(POD, 10, "no first token", 20) == is_broken
    assert (known.rest(POD, 20) is not None) == is_broken


def test_a_stream_that_flows_is_a_sign_of_life() -> None:
    """Also while its chunks never come near the books."""
    known, relay = health(), StreamRelay(Label(None), wants_usage=False)
    known.opened(POD)
    known.answered(POD, 0.1, 1, relay)
    relay.fed_at = 18
    assert known.gave_token_at("pod") == 18
    assert not known.silent(POD, 10, "no first token", 20)
    known.closed(POD, relay)
    assert known.gave_token_at("pod") == 18


def test_it_rests_longer_each_time_and_never_longer_than_said() -> None:
    """1, 2, 4 and then 5 seconds."""
    known, now, rests = failed(3), 0.0, []
    for _ in range(6):
        rest = known.rest(POD, now)
        assert rest is not None
        rests.append(rest.retry_after_s)
        now += rest.retry_after_s
        assert known.rest(POD, now) is None
        known.failed(POD, "host", "it failed", now)
    assert rests == [1, 2, 4, 5, 5, 5]


@given(st.lists(st.floats(0, 4000) | st.none(), min_size=3, max_size=20))
def test_no_retry_after_makes_it_rest_longer_than_said(asked: list[float | None]) -> None:
    """Whatever a backend asks for, it is tried again after ``rest_s`` at most."""
    known = health()
    for rest_s in asked:
        known.failed(POD, "host", "it failed", 0, rest_s=rest_s)
    rest = known.rest(POD, 0)
    assert rest is None or rest.retry_after_s <= 5


def test_a_refusal_rests_long() -> None:
    """A wrong key is not tried every few seconds; one refusal is enough."""
    rest = failed(1, blame="refusal").rest(POD, 0)
    assert rest is not None
    assert rest.retry_after_s == 300


def test_a_failure_after_a_refusal_does_not_shorten_its_rest() -> None:
    """Somebody who was asked before is lost: the key is no better for it."""
    known = failed(1, blame="refusal")
    known.failed(POD, "host", "it failed", 1)
    rest = known.rest(POD, 1)
    assert rest is not None
    assert rest.retry_after_s > 200


def test_a_models_trouble_is_not_its_neighbours() -> None:
    """(backend, model) rests; the host's other models do not."""
    known = failed(3, blame="model")
    assert known.rest(POD, 0) is not None
    assert known.rest(OTHER_MODEL, 0) is None


def test_a_hosts_trouble_is_all_its_models() -> None:
    """The whole backend rests."""
    assert failed(3, blame="host").rest(OTHER_MODEL, 0) is not None


def test_an_answer_of_one_model_closes_the_hosts_breaker_not_its_neighbours() -> None:
    """What works is known to work, and no more."""
    known = failed(3, blame="host")
    known.failed(OTHER_MODEL, "refusal", "no", 0)
    known.answered(POD, 0.1, 1)
    assert known.rest(POD, 1) is None
    for _ in range(3):
        known.failed(OTHER_MODEL, "model", "no", 1)
    known.answered(POD, 0.1, 2)
    assert known.rest(OTHER_MODEL, 1) is not None


def test_after_its_rest_exactly_one_caller_tries_it() -> None:
    """Half open: while one request is on its way nobody else is sent there; its answer closes it."""
    known = failed(3)
    assert known.rest(POD, 1) is None
    known.opened(POD)
    assert known.rest(POD, 1) is not None
    known.answered(POD, 0.1, 2)
    assert known.rest(POD, 2) is None
    assert known.open_keys() == {}


def test_who_tries_it_and_leaves_makes_room_for_the_next() -> None:
    """A trial that ends without a verdict is no verdict."""
    known = failed(3)
    is_trial = known.opened(POD)
    assert is_trial
    known.closed(POD, None, was_trial=is_trial)
    assert known.rest(POD, 1) is None


def test_an_older_request_that_ends_is_not_the_trial() -> None:
    """Only when the one that tries it is over may another."""
    known = health()
    known.opened(POD)
    for _ in range(3):
        known.failed(POD, "host", "it failed", 0)
    known.opened(POD)
    known.closed(POD, None)
    assert known.rest(POD, 1) is not None


def test_with_a_prober_no_caller_has_to_try() -> None:
    """A backend that may be probed waits for the probe; a passive one for a caller."""
    known = health(is_probed=True)
    probed, passive = rung("probed", probe="token"), rung("passive", probe="passive")
    for one in (probed, passive):
        for _ in range(3):
            known.failed(one, "host", "it failed", 0)
    assert known.rest(probed, 9) is not None
    assert known.rest(passive, 9) is None
    assert not known.may_probe(("probed", ""), 0.5)
    assert known.may_probe(("probed", ""), 1)
    known.answered(probed, None, 9)
    assert known.rest(probed, 9) is None


def test_a_backend_that_rests_for_its_own_reason_is_out_of_order() -> None:
    """An engine that boots says so itself."""
    rests = {("pod", ""): Rest("the engine is loading", 12)}
    known = Health(Policy(), rests=lambda: rests)
    assert known.rest(POD, 0) == known.own_rest(POD) == rests["pod", ""]
    assert known.own_rest(rung("other")) is None


def test_a_single_model_may_rest_for_its_own_reason() -> None:
    """An adapter that is not what it should be says nothing about the others there."""
    rests = {("pod", "spinoza"): Rest("adapter 'spinoza' is not served", 60)}
    known = Health(Policy(), rests=lambda: rests)
    assert known.rest(rung("pod", model="spinoza"), 0) == rests["pod", "spinoza"]
    assert known.rest(rung("pod", model="kant"), 0) is None


def test_it_counts_what_runs() -> None:
    """Every request that was opened and not closed, and as many as the backend may run."""
    known, small = health(), rung("small", max_in_flight=2)
    known.opened(small)
    assert not known.is_full(small.backend)
    known.opened(small)
    assert known.is_full(small.backend)
    assert known.in_flight() == {"small": 2}
    known.closed(small, None)
    assert not known.is_full(small.backend)
    assert not known.is_full(POD.backend)


def test_the_95th_percentile_is_trusted_from_a_quarter_of_the_samples_on() -> None:
    """Too few times say nothing; old ones are forgotten."""
    known = health()
    for number in range(SAMPLES // 4 - 1):
        known.answered(POD, float(number), 0)
    assert known.first_token_p95_s("pod") is None
    for _ in range(SAMPLES * 95 // 100):
        known.answered(POD, 0.5, 0)
    for _ in range(SAMPLES - SAMPLES * 95 // 100):
        known.answered(POD, 9, 0)
    assert known.first_token_p95_s("pod") in (0.5, 9)
    for _ in range(SAMPLES):
        known.answered(POD, 0.25, 0)
    assert known.first_token_p95_s("pod") == 0.25


def test_what_an_answer_showed_is_believed_for_a_while() -> None:
    """Token ids: declared, or learned for a minute; a declaration is not believed against the facts."""
    known, declared, none = health(), rung("declared", resume="tokens"), rung("none", resume="none")
    assert known.gives_token_ids(POD.backend, 0) is None
    assert known.gives_token_ids(declared.backend, 0) is True
    assert known.gives_token_ids(none.backend, 0) is False
    for name in ("pod", "declared"):
        known.learn_token_ids(name, 0, gives=False)
    assert known.gives_token_ids(POD.backend, 59) is False
    assert known.gives_token_ids(declared.backend, 59) is False
    assert known.gives_token_ids(POD.backend, 61) is None
    assert known.gives_token_ids(declared.backend, 61) is True


@given(st.floats(1, 1e6), st.floats(0.1, 100))
def test_who_stalls_is_not_its_own_sign_of_life(fed_at: float, stall_s: float) -> None:
    """The token after which it fell silent is no token given meanwhile."""
    known, relay = health(), StreamRelay(Label(None), wants_usage=False)
    known.opened(POD)
    known.answered(POD, 0.1, fed_at, relay)
    relay.fed_at = fed_at
    known.closed(POD, relay)
    assert known.silent(POD, stall_s, "no token", fed_at + stall_s)
