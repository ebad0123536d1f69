"""The chain on a fake clock: a slow first token makes the next rung be asked as well."""

from sive.events import Close
from sive.health import SAMPLES, Health
from sive.routes import Rung

from tests.chain_play import DONE, Play, call, chunk, cpu, policy, rung, text_of

SLOW_S = 2.0
"""The 95th percentile of what the rung is known for."""


def known(*names: str) -> Health:
    """Rungs whose times to first token are known."""
    health = Health(policy())
    for name in names:
        for _ in range(SAMPLES):
            health.answered(rung(name), SLOW_S, 0)
    return health


def play(*rungs: Rung, **options: object) -> Play:
    """A hedged model whose first rung is known."""
    health = known("a")
    return Play(*rungs, health=health, hedges=True, **options)  # type: ignore[arg-type]


def test_the_next_rung_is_asked_after_the_percentile_of_the_first() -> None:
    """Not before it; both run."""
    hedged = play(rung("a"), rung("b"), rung("c"))
    hedged.passes(SLOW_S - 0.5)
    assert hedged.opened == ["a"]
    hedged.passes(0.5)
    assert hedged.opened == ["a", "b"]
    assert hedged.open_now == {1, 2}
    assert hedged.chain.report.hedges == 1
    hedged.passes(5)
    assert hedged.opened == ["a", "b"]


def test_the_first_token_wins_and_the_other_is_closed() -> None:
    """Whichever it is; one answer, from one of them."""
    for winner, loser in ((1, 2), (2, 1)):
        hedged = play(rung("a"), rung("b"))
        hedged.passes(SLOW_S)
        hedged.streams(winner, chunk("x"), chunk(finish="stop"), DONE)
        assert Close(loser) in hedged.done
        assert text_of(hedged.heard) == "x"
        assert hedged.begun.headers["x-sive-backend"] == "ab"[winner - 1]
        assert hedged.adds_up()


def test_an_answer_in_one_piece_is_not_hedged() -> None:
    """It has no first token that could be late: nearly all of them would be asked for twice."""
    hedged = play(rung("a"), rung("b"), asked=call(), guards_json=False)
    hedged.passes(SLOW_S * 5)
    assert hedged.opened == ["a"]


def test_one_that_fails_leaves_the_other() -> None:
    """No third is asked while one of the two still may answer."""
    hedged = play(rung("a"), rung("b"), rung("c"))
    hedged.passes(SLOW_S)
    hedged.replies(1, 503)
    assert hedged.open_now == {2}
    hedged.streams(2, chunk("x"), chunk(finish="stop"), DONE)
    assert text_of(hedged.heard) == "x"
    assert hedged.adds_up()


def test_when_both_fail_it_is_the_next_rungs_turn() -> None:
    """The hedge has had its try: a 503 hands over."""
    hedged = play(rung("a"), rung("b"), rung("c"))
    hedged.passes(SLOW_S)
    hedged.replies(1, 503)
    hedged.replies(2, 503)
    assert hedged.opened == ["a", "b", "c"]
    assert hedged.adds_up() is False  # the third still runs
    hedged.leaves()
    assert hedged.adds_up()


def test_a_refused_hedge_is_not_the_firsts_retry() -> None:
    """A first rung that handed over is not asked again because the hedge was refused."""
    hedged = play(rung("a"), rung("b"), rung("c"))
    hedged.passes(SLOW_S)
    hedged.replies(1, 401)
    hedged.loses(2, "refused")
    hedged.passes(1)
    assert hedged.opened.count("a") == 1


def test_both_silent_are_both_left() -> None:
    """Each has its own patience."""
    hedged = play(rung("a"), rung("b"), cpu())
    hedged.passes(10)
    assert hedged.open_now == {2}
    hedged.passes(SLOW_S)
    assert hedged.opened == ["a", "b", "local"]


def test_another_voice_is_no_hedge() -> None:
    """Only who speaks with the same voice is asked for speed's sake."""
    hedged = play(rung("a"), rung("other", is_degraded=True), rung("b"), cpu())
    hedged.passes(SLOW_S)
    assert hedged.opened == ["a", "b"]


def test_without_numbers_or_without_the_wish_there_is_no_hedge() -> None:
    """An unknown rung has no percentile; a model has to ask for it."""
    for hedged in (Play(rung("a"), rung("b"), hedges=True), Play(rung("a"), rung("b"), health=known("a"))):
        hedged.passes(9)
        assert hedged.opened == ["a"]


def test_what_is_stored_is_not_hedged() -> None:
    """It would be stored twice."""
    hedged = play(rung("a"), rung("b"), asked=call(stream=True, store=True))
    hedged.passes(9)
    assert hedged.opened == ["a"]


def test_a_hedge_that_is_cut_is_carried_on_like_any_other() -> None:
    """The first rung, closed for being slow, may be the one who goes on."""
    pods = [rung(name, weights="w", resume="tokens") for name in ("a", "b")]
    hedged = play(*pods)
    hedged.passes(SLOW_S)
    hedged.streams(2, chunk("x", ids=[1], prompt_token_ids=[5]))
    hedged.loses(2)
    assert hedged.opened == ["a", "b", "a"]
    assert hedged.asked.body["prompt"] == [5, 1]
    hedged.streams(3, chunk("y", ids=[2]), chunk(finish="stop", ids=[3]), DONE)
    assert text_of(hedged.heard) == "xy"
    assert hedged.adds_up()


def test_the_callers_own_error_ends_both() -> None:
    """A 400 of either is the answer."""
    hedged = play(rung("a"), rung("b"))
    hedged.passes(SLOW_S)
    hedged.replies(2, 422)
    assert hedged.is_over
    assert hedged.begun.status == 422
    assert hedged.adds_up()
