"""The chain on a fake clock: how often, how long and whom it asks before anybody has answered."""

from typing import Any

import pytest
from sive.errors import Why
from sive.health import Health
from sive.policy import Clocks
from sive.protocol import loads
from sive.routes import Rest

from tests.chain_play import (
    BACKOFF_S,
    CLOCKS,
    DONE,
    Play,
    call,
    chunk,
    cpu,
    event,
    policy,
    rung,
    text_of,
)

BUSY = b'{"error":{"message":"The engine is currently busy","type":"Service Unavailable","code":503}}'


def health(clocks: Clocks = CLOCKS) -> Health:
    """What several requests know together."""
    return Health(policy(clocks))


def refuse(known: Health, name: str, times: int = 1, now: float = 0.0) -> None:
    """Requests that find this backend refusing connections."""
    for _ in range(times):
        play = Play(rung(name), cpu(), health=known, now=now)
        while play.opened[-1] == name:
            play.loses(len(play.opens), "refused")
            play.passes(BACKOFF_S)
        play.leaves()


# Once more on the same backend


@pytest.mark.parametrize("why", ["refused", "reset"])
def test_who_refused_is_asked_once_more_after_a_pause(why: Why) -> None:
    """A pod that just restarts may be there a moment later; then it is the next rung's turn."""
    play = Play(rung("pod"), rung("other"))
    play.loses(1, why)
    assert play.opened == ["pod"]
    assert play.until == BACKOFF_S
    play.alarm()
    assert play.opened == ["pod", "pod"]
    play.loses(2, why)
    assert play.opened == ["pod", "pod", "other"]


@pytest.mark.parametrize(
    ("status", "body"), [(500, b'{"error":{}}'), (502, b"{}"), (429, b"{}"), (503, BUSY)]
)
def test_a_status_that_may_pass_is_asked_once_more_after_a_pause(status: int, body: bytes) -> None:
    """500, 502, 429 and a full queue: one pause, one retry there, then the next rung."""
    play = Play(rung("pod"), rung("other"))
    play.replies(1, status, body)
    assert play.opened == ["pod"]
    play.passes(BACKOFF_S)
    play.replies(2, status, body)
    play.passes(BACKOFF_S)
    assert play.opened == ["pod", "pod", "other"]


def test_a_retry_that_answers_is_the_answer() -> None:
    """The caller sees nothing of the first try but its count."""
    play = Play(rung("pod"), rung("other"))
    play.replies(1, 502)
    play.passes(BACKOFF_S)
    play.streams(2, chunk("a"), chunk(finish="stop"), DONE)
    assert text_of(play.heard) == "a"
    assert play.begun.headers["x-sive-backend"] == "pod"
    assert play.begun.headers["x-sive-attempts"] == "2"
    assert play.adds_up()


def test_a_reset_on_an_idle_connection_counts_for_nothing() -> None:
    """Nobody has seen that request: at once a fresh connection, and only what happens there counts."""
    play = Play(rung("pod"), cpu())
    play.loses(1, "reset_reused")
    assert play.opened == ["pod", "pod"]
    assert play.chain.report.attempts == 1
    play.loses(2, "reset_reused")
    play.passes(BACKOFF_S)
    assert play.opened == ["pod", "pod", "pod"]
    play.loses(3, "reset")
    assert play.opened == ["pod", "pod", "pod", "local"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_short_retry_after_is_waited_for_once(status: int) -> None:
    """Three seconds at most; the same backend, and if it says so again the next one."""
    play = Play(rung("pod"), rung("other"))
    play.replies(1, status, retry_after="2")
    assert play.until == 2
    play.passes(2)
    assert play.opened == ["pod", "pod"]
    play.replies(2, status, retry_after="2")
    assert play.opened == ["pod", "pod", "other"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_long_retry_after_is_not_waited_for(status: int) -> None:
    """The next rung at once; when there is none the caller is told how long."""
    play = Play(rung("pod"), rung("other"))
    play.replies(1, status, retry_after="30")
    assert play.opened == ["pod", "other"]
    play.replies(2, status, retry_after="20")
    assert play.begun.headers["retry-after"] == "20"


def test_a_retry_after_beyond_the_deadline_is_not_waited_for() -> None:
    """There would be no time left to answer."""
    play = Play(rung("pod"), rung("other"), clocks=Clocks(deadline_s=11, first_token_s=10))
    play.passes(9)
    play.replies(1, 503, retry_after="3")
    assert play.opened == ["pod", "other"]


def test_the_pause_before_a_retry_is_no_silence_for_the_caller() -> None:
    """A stream gets its heartbeat while its backend is waited for."""
    play = Play(rung("pod"))
    play.passes(4)
    play.replies(1, 503, retry_after="3")
    play.passes(1)
    assert play.heard == b": waiting\n\n"


def test_no_backend_is_asked_more_than_twice() -> None:
    """Two names of one host in a route share its two attempts."""
    one = rung("pod")
    play = Play(one, one, one, rung("other"))
    for number in (1, 2):
        play.loses(number, "refused")
        play.passes(BACKOFF_S)
    assert play.opened == ["pod", "pod", "other"]


# Silence and the deadline


def test_a_silent_backend_is_left_after_its_clock_and_never_asked_again() -> None:
    """No first token within first_token_s closes it; in this request it has no second chance."""
    play = Play(rung("pod"), rung("pod"), cpu())
    play.passes(9.5)
    assert play.opened == ["pod"]
    play.passes(0.5)
    assert play.open_now == {2}
    assert play.opened == ["pod", "local"]
    assert play.chain.report.failures[0].reason == "silent"


def test_the_deadline_ends_the_search() -> None:
    """One deadline over all attempts: no rung is asked after it, and the last one's patience is cut short."""
    play = Play(*(rung(f"pod{number}") for number in range(20)))
    play.passes(120)
    assert play.is_over
    assert play.opened == [f"pod{number}" for number in range(12)]
    assert play.error["code"] == "no_backend"
    assert play.adds_up()


def test_an_answer_in_one_piece_may_take_longer() -> None:
    """Without a stream no first token can be seen: whole_s is its patience, and the deadline its end."""
    play = Play(*(rung(f"pod{number}") for number in range(20)), asked=call(), guards_json=False)
    play.passes(120)
    assert play.opened == ["pod0", "pod1"]  # 100 s, then 20 s are left
    assert play.begun.status == 503


def test_time_in_which_an_answer_flows_does_not_count() -> None:
    """A long answer leaves as much of the deadline as it began with."""
    play = Play(*(rung(name, weights="w", resume="tokens") for name in ("a", "b")))
    play.passes(9)
    play.streams(1, chunk("a", ids=[1], prompt_token_ids=[5]))
    for _ in range(100):
        play.passes(7)
        play.reads(1, [chunk("a", ids=[1])])
    play.loses(1)
    assert play.opened == ["a", "b"]
    assert not play.is_over


# Breakers


def test_a_backend_that_failed_three_times_rests() -> None:
    """The next request goes straight to the next rung, and says why."""
    known = health()
    refuse(known, "pod", times=2)
    play = Play(rung("pod"), cpu(), health=known)
    assert play.opened == ["local"]
    assert play.chain.report.failures[0].reason == "resting"


def test_one_silence_makes_it_rest() -> None:
    """The next request does not wait ten seconds for it."""
    known = health()
    first = Play(rung("pod"), cpu(), health=known)
    first.passes(10)
    assert Play(rung("pod"), cpu(), health=known, now=10.0).opened == ["local"]


def test_silence_while_others_get_tokens_is_busy() -> None:
    """The rung is left for this request alone."""
    known = health()
    flowing = Play(rung("pod"), cpu(), health=known)
    waiting = Play(rung("pod"), cpu(), health=known)
    flowing.passes(6)
    flowing.begins(1)
    waiting.passes(10)
    assert waiting.opened == ["pod", "local"]
    assert Play(rung("pod"), cpu(), health=known, now=10.0).opened == ["pod"]


def test_the_last_rung_is_asked_although_it_rests() -> None:
    """Better a try than a certain error: one backend and one request a minute works."""
    known = health()
    refuse(known, "pod", times=4)
    play = Play(rung("pod"), health=known)
    assert play.opened == ["pod"]
    play.streams(1, chunk("a"), chunk(finish="stop"), DONE)
    assert Play(rung("pod"), cpu(), health=known, now=1.0).opened == ["pod"]


def test_when_all_rest_the_one_that_rested_longest_is_tried() -> None:
    """After the last rung has failed too."""
    known = health()
    for number, name in enumerate(("b", "a", "c")):
        refuse(known, name, times=2, now=number / 4)
    play = Play(rung("a"), rung("b"), rung("c"), health=known, now=1.0)
    assert play.opened == ["c"]
    play.replies(1, 401)
    assert play.opened == ["c", "b"]
    play.replies(2, 401)
    assert play.begun.status == 503
    assert play.adds_up()


def test_a_backend_out_of_order_is_not_even_asked_last() -> None:
    """An engine that boots has said when it will be there."""
    play = Play(rung("pod"), rests={("pod", ""): Rest("the engine is loading", 12)})
    assert play.opened == []
    assert play.begun.headers["retry-after"] == "12"


def test_one_callers_request_tries_a_rested_backend() -> None:
    """While it does, others go on to the next rung; its answer opens the door for all."""
    known = health()
    refuse(known, "pod", times=2)
    tries = Play(rung("pod"), cpu(), health=known, now=6.0)
    assert tries.opened == ["pod"]
    assert Play(rung("pod"), cpu(), health=known, now=6.0).opened == ["local"]
    tries.begins(1)
    assert Play(rung("pod"), cpu(), health=known, now=6.0).opened == ["pod"]


def test_a_refusal_rests_long_and_is_tried_again_after_it() -> None:
    """A wrong key costs one request in five minutes."""
    known = health()
    Play(rung("pod"), cpu(), health=known).replies(1, 401)
    assert Play(rung("pod"), cpu(), health=known, now=299.0).opened == ["local"]
    assert Play(rung("pod"), cpu(), health=known, now=300.0).opened == ["pod"]


def test_all_refused_is_worth_another_try_in_a_few_seconds() -> None:
    """The jitter of our own retry is not what the caller is told to wait."""
    play = Play(rung("pod"))
    play.loses(1, "refused")
    play.passes(BACKOFF_S)
    play.loses(2, "refused")
    assert play.begun.status == 503
    assert play.begun.headers["retry-after"] == "5"


# Requests that may run only once, backends that run only so many


@pytest.mark.parametrize("why", ["reset", "reset_reused", "eof", "malformed"])
def test_what_is_stored_is_never_sent_twice(why: Why) -> None:
    """After it may have been seen it is not sent again, to nobody."""
    play = Play(rung("pod"), rung("other"), asked=call(stream=True, store=True))
    play.loses(1, why)
    assert play.is_over
    assert play.opened == ["pod"]
    assert play.begun.status == 503


@pytest.mark.parametrize("why", ["refused", "dns", "tls", "timeout"])
def test_what_nobody_can_have_seen_may_be_sent_to_another(why: Why) -> None:
    """A connection that never came about stored nothing."""
    play = Play(rung("pod"), rung("other"), asked=call(stream=True, store=True))
    play.loses(1, why)
    play.passes(BACKOFF_S)
    assert play.opened[1:]


def test_what_is_stored_is_not_sent_again_after_an_error_in_band() -> None:
    """A 200 with an error event has been seen."""
    play = Play(rung("pod"), rung("other"), asked=call(stream=True, store=True))
    play.streams(1, event({"error": {"message": "died"}}))
    assert play.opened == ["pod"]


def test_what_is_stored_is_not_carried_on() -> None:
    """Half of it is stored already: an honest error."""
    rungs = [rung(name, weights="w", resume="tokens") for name in ("a", "b")]
    play = Play(*rungs, asked=call(stream=True, store=True, temperature=0))
    play.streams(1, chunk("a", ids=[1], prompt_token_ids=[5]))
    play.loses(1)
    assert play.opened == ["a"]
    assert play.error["code"] == "stream_interrupted"
    assert play.adds_up()


@pytest.mark.parametrize("status", [500, 503])
def test_what_is_stored_is_not_sent_again_after_a_server_error(status: int) -> None:
    """Nobody knows what became of it; a 429 turned it away."""
    play = Play(rung("pod"), rung("other"), asked=call(stream=True, store=True))
    play.replies(1, status)
    play.passes(BACKOFF_S)
    assert play.opened == ["pod"]
    turned_away = Play(rung("pod"), rung("other"), asked=call(stream=True, store=True))
    turned_away.replies(1, 429, retry_after="60")
    assert turned_away.opened == ["pod", "other"]


def test_a_full_backend_is_passed_over() -> None:
    """No more than max_in_flight run there; the first that ends makes room."""
    known, small = health(), rung("small", max_in_flight=1)
    first = Play(small, cpu(), health=known)
    second = Play(small, cpu(), health=known)
    assert (first.opened, second.opened) == (["small"], ["local"])
    assert second.chain.report.failures[0].reason == "full"
    first.streams(1, chunk("a"), chunk(finish="stop"), DONE)
    assert Play(small, cpu(), health=known).opened == ["small"]


def test_when_all_are_full_the_caller_hears_it() -> None:
    """A 503 that says how many run there."""
    known, small = health(), rung("small", max_in_flight=1)
    runs = Play(small, health=known)
    play = Play(small, health=known, asked=call())
    assert runs.opened == ["small"]
    assert play.begun.status == 503
    assert "max_in_flight" in loads(play.heard)["error"]["message"]


# Callers who leave


def leaving_points() -> list[Any]:
    """Phases of a request, each as what happens before the caller leaves."""

    def after_head(play: Play) -> None:
        play.streams(1, b": hello\n\n")

    def in_a_pause(play: Play) -> None:
        play.loses(1, "refused")

    def after_a_retry(play: Play) -> None:
        play.loses(1, "refused")
        play.passes(BACKOFF_S)

    def in_the_stream(play: Play) -> None:
        play.streams(1, chunk("a", ids=[1], prompt_token_ids=[5]))

    def while_resuming(play: Play) -> None:
        in_the_stream(play)
        play.loses(1)

    def resumed(play: Play) -> None:
        while_resuming(play)
        play.streams(2, chunk("b", ids=[2]))

    def finishing(play: Play) -> None:
        play.streams(1, chunk("a"), chunk(finish="stop"))

    return [
        lambda play: None,
        after_head,
        in_a_pause,
        after_a_retry,
        in_the_stream,
        while_resuming,
        resumed,
        finishing,
    ]


@pytest.mark.parametrize("happens", leaving_points(), ids=lambda happens: happens.__name__)
@pytest.mark.parametrize("ends", ["leaves", "cancel", "drop"])
@pytest.mark.parametrize("streams", [True, False])
def test_whenever_a_request_is_ended_nothing_runs_on(happens: Any, ends: str, streams: bool) -> None:
    """In each of its phases: what is open is closed, the counters are back, and nothing adds up wrongly."""
    asked = call(stream=True) if streams else call()
    play = Play(*(rung(name, weights="w", resume="tokens") for name in ("a", "b")), asked=asked)
    happens(play)
    if ends == "drop":
        play.chain.close()
        assert not any(play.health.in_flight().values())
        return
    play.leaves() if ends == "leaves" else play.cancel()
    assert play.is_over
    assert play.open_now == set()
    assert play.adds_up()
    assert DONE not in play.heard


# The shim without a sive.toml


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_strict_shows_a_wrong_key_rather_than_another_voice(status: int) -> None:
    """What the host says is the caller's answer."""
    play = Play(rung("host"), cpu(), strict=True)
    play.replies(1, status)
    assert play.opened == ["host"]
    assert play.begun.status == status


@pytest.mark.parametrize("status", [502, 503, 504])
def test_strict_falls_when_the_host_is_gone(status: int) -> None:
    """502, 503 and 504 hand over."""
    play = Play(rung("host"), cpu(), strict=True)
    play.replies(1, status)
    play.passes(BACKOFF_S)
    if status == 502:
        play.replies(2, status)
    assert play.opened[-1] == "local"


def test_strict_keeps_what_a_429_says_of_time() -> None:
    """The SDK's back-off sees the host's Retry-After."""
    play = Play(rung("host"), cpu(), strict=True)
    play.replies(1, 429, retry_after="7", server="secret")
    assert play.begun.headers["retry-after"] == "7"
    assert "server" not in play.begun.headers


# Fields that only we asked for


def test_a_host_that_refuses_token_ids_is_asked_without_them_once() -> None:
    """A 400 about a field that the caller did not send is not his; the lesson is kept."""
    play = Play(rung("pod", resume="tokens"), rung("other"))
    said = b'{"error":{"message":"Extra inputs are not permitted: return_token_ids"}}'
    play.replies(1, 400, said)
    assert play.opened == ["pod", "pod"]
    assert "return_token_ids" not in play.asked.body
    assert play.chain.report.attempts == 1
    play.replies(2, 400, said)
    assert play.is_over or play.opened[-1] == "other"
    assert "return_token_ids" not in Play(rung("pod", resume="tokens"), health=play.health).asked.body
