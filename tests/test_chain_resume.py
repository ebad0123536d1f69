"""The chain on a fake clock: an answer that breaks off, and who carries it on."""

from typing import Any

import pytest
from sive.health import Health
from sive.policy import Clocks, Policy
from sive.protocol import dumps, loads
from sive.routes import Rung

from tests.chain_play import (
    BACKOFF_S,
    CLOCKS,
    DONE,
    JSON,
    Json,
    Play,
    call,
    chunk,
    completion,
    cpu,
    event,
    payloads,
    role,
    rung,
    text_of,
    twins,
)

PROMPT = [5, 6, 7]


def begun(*rungs: Rung, asked: Any = None, **options: Any) -> Play:
    """The first rung has said "ab" in two tokens."""
    play = Play(*rungs, asked=asked, **options)
    play.streams(1, role(prompt_token_ids=PROMPT), chunk("a", ids=[1]), chunk("b", ids=[2]))
    return play


def ends(play: Play, number: int, text: str = "c") -> None:
    """Attempt ``number`` says the rest, as a completion, and ends well."""
    play.streams(number, completion(text, ids=[3]), completion(finish="stop", ids=[9]), DONE)


def greedy(**body: Any) -> Any:
    """A request whose answer is always the same."""
    return call(**({"stream": True, "temperature": 0} | body))


# By tokens


def test_an_engine_of_equal_weights_goes_on_from_the_ids() -> None:
    """The prompt's ids and the answer's are its prompt; the caller hears one answer."""
    asked = call(stream=True, max_tokens=9, top_p=0.5, min_tokens=4, seed=3, user="u")
    play = begun(*twins("a", "b"), asked=asked)
    play.loses(1)
    assert play.opened == ["a", "b"]
    assert play.asked.endpoint == "completions"
    assert play.asked.body == {
        "model": "b-model",
        "prompt": [5, 6, 7, 1, 2],
        "max_tokens": 7,
        "min_tokens": 2,
        "top_p": 0.5,
        "seed": 3,
        "user": "u",
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    ends(play, 2)
    assert text_of(play.heard) == "abc"
    assert play.heard.endswith(DONE)
    assert play.chain.report.resumes == [("tokens", "ok")]
    assert play.adds_up()


def test_what_was_carried_on_looks_like_one_answer() -> None:
    """One id, one date, one kind of chunk, one name; ``sive`` says who goes on, and no token id is shown."""
    play = begun(*twins("a", "b"))
    play.loses(1)
    ends(play, 2)
    chunks = payloads(play.heard)
    assert {(one["id"], one["created"], one["model"]) for one in chunks} == {("up", 7, "spinoza")}
    said = [one["sive"] for one in chunks if "sive" in one]
    assert [(one["backend"], one["resumed"]) for one in said] == [("a", False), ("b", True), ("b", True)]
    assert b"token_ids" not in play.heard
    assert sum("role" in one["choices"][0]["delta"] for one in chunks) == 1


def test_what_a_slow_caller_took_is_not_charged_to_the_next() -> None:
    """The deadline counts only time in which nothing came: after two slow minutes there is time to resume."""
    play = begun(*twins("a", "b"))
    play.relay.is_blocked = True
    play.passes(CLOCKS.deadline_s - 1)
    play.relay.is_blocked = False
    play.loses(1)
    assert play.opened == ["a", "b"]
    play.passes(5)
    assert play.open_now == {2}


def test_one_piece_is_not_the_rest_of_an_answer() -> None:
    """Who was asked to go on and answers whole has not gone on: JSON is never half an answer."""
    play = begun(*twins("a", "b"), asked=call())
    play.loses(1)
    whole = {"object": "text_completion", "choices": [{"index": 0, "text": "c", "finish_reason": "stop"}]}
    play.replies(2, 200, dumps(whole))
    assert not play.chain.report.is_complete
    assert b'"c"' not in play.heard


def test_ids_of_a_torn_character_are_not_carried_on() -> None:
    """Tokens whose text has not come yet are generated again."""
    play = begun(*twins("a", "b"))
    play.reads(1, [chunk(ids=[31]), chunk(ids=[32])])
    play.loses(1)
    assert play.asked.body["prompt"] == [5, 6, 7, 1, 2]


def test_a_chat_without_a_limit_is_not_given_the_limit_of_a_completion() -> None:
    """Null would mean 16 tokens to vLLM: it is given what its context has room for."""
    play = begun(*twins("a", "b", context_tokens=100))
    play.loses(1)
    assert play.asked.body["max_tokens"] == 95


def test_a_limit_that_only_we_set_is_no_end() -> None:
    """Where the context is not known the answer is carried on again when it reaches that limit."""
    play = begun(*twins("a", "b", "c"))
    play.loses(1)
    assert play.asked.body["max_tokens"] >= 1
    play.streams(2, completion("c", ids=[3]), completion(finish="length", ids=[4]), DONE)
    assert len(play.opened) == 3
    ends(play, 3, "d")
    assert text_of(play.heard) == "abcd"
    assert [chunk["choices"][0]["finish_reason"] for chunk in payloads(play.heard)][-1] == "stop"
    assert play.adds_up()


def test_an_answer_that_had_all_its_tokens_ends_with_length() -> None:
    """Only the end was lost: nobody has to be asked for no tokens."""
    asked = call(stream=True, max_tokens=2, stream_options={"include_usage": True})
    play = begun(*twins("a", "b"), asked=asked)
    play.loses(1)
    assert play.opened == ["a"]
    assert [one["choices"][0]["finish_reason"] for one in payloads(play.heard) if one["choices"]][
        -1
    ] == "length"
    assert payloads(play.heard)[-1]["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
    }
    assert play.heard.endswith(DONE)
    assert play.chain.report.resumes == [("length", "ok")]
    assert play.adds_up()


def test_the_bill_is_one() -> None:
    """The prompt once, and all the tokens that the caller got, whoever generated them."""
    play = begun(*twins("a", "b"), asked=call(stream=True, stream_options={"include_usage": True}))
    play.loses(1)
    counted = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    play.streams(
        2,
        completion("c", ids=[3]),
        completion(finish="stop", ids=[9]),
        event({"choices": [], "usage": counted}),
        DONE,
    )
    bills = [one["usage"] for one in payloads(play.heard) if one.get("usage")]
    assert bills == [{"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}]
    assert play.chain.report.usage == bills[0]


def test_a_caller_who_asked_for_ids_gets_each_once() -> None:
    """Also those of a character that was torn and generated again."""
    play = begun(*twins("a", "b"), asked=call(stream=True, return_token_ids=True))
    play.reads(1, [chunk(ids=[31])])
    play.loses(1)
    play.streams(2, completion(ids=[31]), completion("é", ids=[32]), completion(finish="stop", ids=[9]), DONE)
    ids = [one for payload in payloads(play.heard) for one in payload["choices"][0].get("token_ids") or ()]
    assert ids == [1, 2, 31, 32, 9]
    assert play.heard.count(b'"prompt_token_ids":[') == 1


# Whom


def test_the_order_of_those_who_carry_on() -> None:
    """Equal weights by ids, then itself once, then whoever goes on by text; at last an error event."""
    rungs = [*twins("a", "b"), rung("other", weights="v", resume="text"), cpu()]
    play = begun(*rungs)
    play.loses(1)
    play.loses(2)
    assert play.opened == ["a", "b", "a"]
    play.loses(3)
    assert play.opened[3:] == ["b"]
    assert play.asked.body["messages"][-1] == {"role": "assistant", "content": "ab"}
    play.replies(4, 400)
    assert play.opened[4:] == ["other"]
    play.replies(5, 400)
    assert play.opened[5:] == ["local"]
    play.replies(6, 503)
    while not play.is_over:
        play.passes(1)
    assert play.error["code"] == "stream_interrupted"
    assert DONE not in play.heard
    assert play.chain.report.is_broken_off
    assert play.adds_up()


def test_a_greedy_answer_starts_over_before_another_voice_goes_on() -> None:
    """Equal weights say the same again, what the caller has is left out; only then text, then all others."""
    plain = [rung(name, weights="w", resume="none") for name in ("a", "b")]
    play = Play(*plain, rung("other", resume="text"), rung("third"), asked=greedy())
    play.streams(1, role(), chunk("a"), chunk("b"))
    play.loses(1)
    opened = []
    while not play.is_over:
        opened.append((play.opened[-1], "continue_final_message" in play.asked.body))
        play.replies(len(play.opens), 503)
        play.passes(1)
    assert opened == [("b", False), ("a", False), ("other", True), ("other", False), ("third", False)]
    assert play.adds_up()


def test_what_started_over_is_shown_from_where_the_caller_is() -> None:
    """The identical beginning is swallowed, in whatever pieces it comes."""
    play = Play(*(rung(name, weights="w", resume="none") for name in ("a", "b")), asked=greedy())
    play.streams(1, role(), chunk("a"), chunk("b"))
    play.loses(1)
    play.streams(2, role(), chunk("abc"), chunk("d"), chunk(finish="stop"), DONE)
    assert text_of(play.heard) == "abcd"
    assert sum(b'"role"' in one for one in play.heard.split(b"\n\n")) == 1
    assert play.chain.report.resumes == [("none", "ok")]


@pytest.mark.parametrize("other", [[chunk("ax")], [chunk("a"), chunk(finish="stop")]])
def test_what_began_another_answer_is_not_shown(other: list[bytes]) -> None:
    """Another text, or a shorter one: nothing of it is heard, and it mended nothing."""
    play = Play(*(rung(name, weights="w", resume="none") for name in ("a", "b")), asked=greedy())
    play.streams(1, role(), chunk("a"), chunk("b"))
    play.loses(1)
    play.streams(2, role(), *other, DONE)
    assert play.opened == ["a", "b", "a"]
    play.replies(3, 401)
    while not play.is_over:
        play.replies(len(play.opens), 401)
    assert text_of(play.heard) == "ab"
    assert play.error["code"] == "stream_interrupted"
    assert ("none", "ok") not in play.chain.report.resumes
    assert play.adds_up()


def test_a_sampled_answer_is_not_begun_again() -> None:
    """Another one would come out: an error event, honest about who broke off."""
    play = Play(*(rung(name, weights="w", resume="none") for name in ("a", "b")))
    play.streams(1, role(), chunk("a"))
    play.loses(1, "reset")
    assert play.opened == ["a"]
    assert play.error["code"] == "stream_interrupted"
    assert "'a'" in play.error["message"]
    assert not play.chain.report.is_complete
    assert play.adds_up()


def test_other_weights_never_get_the_ids() -> None:
    """They mean nothing to another tokenizer."""
    play = begun(*twins("a"), rung("other", weights="v", resume="tokens"), rung("unknown", resume="tokens"))
    play.loses(1)
    play.loses(2)
    assert play.opened == ["a", "a", "other"]
    assert play.asked.endpoint == "chat/completions"
    assert play.asked.body["continue_final_message"] is True
    assert play.asked.body["add_generation_prompt"] is False


@pytest.mark.parametrize("wants", [{"asked": call(stream=True, require=True)}, {"refuses_degraded": True}])
def test_another_voice_never_carries_on_where_it_may_not(wants: Json) -> None:
    """x-sive-require, or degrade = "refuse": an error rather than the CPU in mid-sentence."""
    play = begun(*twins("a"), cpu(), **wants)
    play.loses(1)
    play.loses(2)
    assert play.opened == ["a", "a"]
    assert play.error["code"] == "stream_interrupted"


def test_another_voice_that_carries_on_is_named() -> None:
    """The chunks say who speaks, and that it is another."""
    play = begun(*twins("a"), cpu())
    play.loses(1)
    play.loses(2)
    more = [chunk("c", model="sive-embedded"), chunk(finish="stop", model="sive-embedded"), DONE]
    play.streams(3, *more)
    assert text_of(play.heard) == "abc"
    last = payloads(play.heard)[-1]
    assert last["model"] == "theirs" or last["model"] == "sive-embedded"
    assert last["sive"]["degraded"] is True
    assert last["sive"]["resumed"] is True
    assert play.chain.report.is_degraded


def test_a_backend_that_rests_is_asked_last() -> None:
    """Those that are known to work come first; better a resting one than an error."""
    health = Health(Policy(Clocks()))
    for _ in range(3):
        health.failed(rung("b"), "host", "it failed", 0)
    play = begun(*twins("a", "b", "c"), health=health)
    play.loses(1)
    assert play.opened == ["a", "c"]
    for number in (2, 3, 4):
        play.loses(number)
    assert play.opened == ["a", "c", "a", "c", "b"]


def test_a_stalled_backend_is_not_asked_to_carry_on() -> None:
    """It is silent: never again in this request."""
    play = begun(*twins("a", "b"))
    play.passes(8)
    while not play.is_over:
        play.loses(len(play.opens))
    assert play.opened == ["a", "b", "b"]
    assert play.error["code"] == "stream_interrupted"
    assert play.chain.report.cuts[0].reason == "stall"
    assert play.adds_up()


def test_cut_again_while_it_carries_on() -> None:
    """Each backend goes on from all that was said before it."""
    play = begun(*twins("a", "b", "c"))
    play.loses(1)
    play.streams(2, completion("c", ids=[3]))
    play.loses(2, "reset")
    assert play.asked.body["prompt"] == [5, 6, 7, 1, 2, 3]
    ends(play, 3, "d")
    assert text_of(play.heard) == "abcd"
    assert play.chain.report.resumes == [("tokens", "ok")] * 2
    assert play.adds_up()


def test_no_backend_carries_on_more_than_its_attempts() -> None:
    """Two engines that always break off end in an error, not in a game of ping-pong."""
    play = begun(*twins("a", "b"))
    while not play.is_over:
        play.loses(len(play.opens))
        if not play.is_over:
            play.streams(len(play.opens), completion("c", ids=[3]))
    assert play.opened == ["a", "b", "a", "b"]
    assert play.error["code"] == "stream_interrupted"
    assert play.adds_up()


# How it broke off


@pytest.mark.parametrize(
    "last",
    [
        [chunk(finish="abort"), DONE],
        [event({"error": {"message": "died sk-1"}}), DONE],
        [DONE],
    ],
)
def test_an_abort_an_error_and_an_end_without_reason_are_cuts(last: list[bytes]) -> None:
    """All of them are half an answer; nothing of them is shown."""
    play = begun(*twins("a", "b"))
    play.reads(1, last)
    assert play.opened == ["a", "b"]
    assert play.chain.report.cuts[0].reason == "in_band_error"
    ends(play, 2)
    assert text_of(play.heard) == "abc"
    assert b"sk-1" not in play.heard
    assert play.adds_up()


def test_heartbeats_come_while_somebody_is_looked_for() -> None:
    """The caller's and the proxies' clocks see life in the gap."""
    play = begun(*twins("a", "b"))
    play.loses(1)
    before = play.heard
    play.passes(5)
    assert play.heard == before + b": waiting\n\n"
    ends(play, 2)
    assert text_of(play.heard) == "abc"


def test_a_gap_is_inside_the_deadline() -> None:
    """Who waits in vain for somebody to carry on is told so in time."""
    names = [f"pod{number}" for number in range(30)]
    play = begun(*twins(*names))
    play.loses(1)
    play.passes(121)
    assert play.is_over
    assert play.error["code"] == "stream_interrupted"
    assert play.adds_up()


@pytest.mark.parametrize(
    "body",
    [
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"logprobs": True},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"response_format": {"type": "json_object"}},
        {"guided_regex": "a*"},
    ],
)
def test_what_is_more_than_a_text_is_not_carried_on(body: Json) -> None:
    """Not by ids, not by text: an honest error."""
    play = begun(*twins("a", "b"), asked=call(stream=True, **body))
    assert "return_token_ids" not in play.opens[0].request.body
    play.loses(1)
    assert play.opened == ["a"]
    assert play.error["code"] == "stream_interrupted"


def test_reasoning_is_not_carried_on() -> None:
    """Its text is not the answer's: an engine without its parser would show it."""
    play = Play(*twins("a", "b"))
    thinks = {"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None, "token_ids": [1]}
    play.streams(1, role(prompt_token_ids=PROMPT), event({"id": "up", "choices": [thinks]}))
    play.loses(1)
    assert play.error["code"] == "stream_interrupted"


# Stop strings


def test_stop_strings_are_kept_here_where_ids_are_known() -> None:
    """An engine that looks for them holds text back whose ids it gives."""
    play = Play(*twins("a", "b"), asked=call(stream=True, stop=["END"]))
    assert "stop" not in play.asked.body
    play.streams(1, role(prompt_token_ids=PROMPT), chunk("abE", ids=[1]), chunk("N", ids=[2]))
    assert text_of(play.heard) == "ab"
    play.loses(1)
    assert "stop" not in play.asked.body
    play.streams(2, completion("Dc", ids=[3]))
    assert text_of(play.heard) == "ab"
    assert payloads(play.heard)[-1]["choices"][0]["finish_reason"] == "stop"
    assert play.heard.endswith(DONE)
    assert play.open_now == set()
    assert play.adds_up()


def test_text_that_was_held_for_a_stop_is_not_lost() -> None:
    """It was none: it is shown with what follows, and at the end."""
    play = Play(*twins("a", "b"), asked=call(stream=True, stop=["END"]))
    play.streams(1, role(prompt_token_ids=PROMPT), chunk("abE", ids=[1]), chunk("N", ids=[2]))
    play.loses(1)
    play.streams(2, completion("VE", ids=[3]), completion(finish="stop", ids=[9]), DONE)
    assert text_of(play.heard) == "abENVE"


def test_held_back_text_of_an_engine_is_not_skipped() -> None:
    """Where it got the stop strings its ids run ahead of its text: by text, not by ids."""
    unknown = [rung(name, weights="w") for name in ("a", "b")]
    play = Play(*unknown, asked=call(stream=True, stop=["END"]))
    assert play.asked.body["stop"] == ["END"]
    play.streams(1, role(prompt_token_ids=PROMPT), chunk("a", ids=[1]), chunk("b", ids=[2]))
    play.loses(1)
    assert play.asked.endpoint == "chat/completions"
    assert play.asked.body["messages"][-1]["content"] == "ab"


def test_what_was_shown_is_not_shown_again_for_a_stop() -> None:
    """Shown text that might begin a stop string is remembered, not repeated."""
    play = Play(rung("a", resume="text"), rung("b", resume="text"), asked=call(stream=True, stop=["bcd"]))
    play.streams(1, role(), chunk("ab"))
    play.loses(1)
    play.streams(2, chunk("x"), chunk(finish="stop"), DONE)
    assert text_of(play.heard) == "abx"


# By text


def test_a_prefilled_answer_is_carried_on_in_its_own_message() -> None:
    """A caller who had begun the assistant's turn gets that turn continued."""
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well, "}]
    asked = call(stream=True, messages=messages, continue_final_message=True, add_generation_prompt=False)
    play = Play(rung("a", resume="text"), rung("b", resume="text"), asked=asked)
    play.streams(1, role(), chunk("ab"))
    play.loses(1)
    assert play.asked.body["messages"] == [messages[0], {"role": "assistant", "content": "Well, ab"}]


def test_a_completion_is_carried_on_behind_its_prompt() -> None:
    """The text so far is part of the prompt, and the limit is smaller by it."""
    asked = call("completions", stream=True, max_tokens=9, min_tokens=4)
    play = Play(rung("a", resume="text"), rung("b", resume="text"), asked=asked)
    play.streams(1, completion("a"), completion("b"))
    play.loses(1)
    assert play.asked.body["prompt"] == "hiab"
    assert play.asked.body["max_tokens"] == 7
    assert play.asked.body["min_tokens"] == 2


def test_undeclared_hosts_never_carry_on_by_text() -> None:
    """A host that ignores a prefill answers 200 all the same: never guessed."""
    play = Play(rung("a"), rung("b"), rung("c", resume="none"))
    play.streams(1, role(), chunk("a"))
    play.loses(1)
    assert play.opened == ["a"]
    assert play.error["code"] == "stream_interrupted"


def test_a_refusal_to_carry_on_is_never_the_callers_answer() -> None:
    """A 400 about our own request is no news for a caller in mid-sentence."""
    play = begun(*twins("a", "b"), cpu())
    play.loses(1)
    play.replies(2, 400, b'{"error":{"message":"unknown field return_token_ids"}}')
    play.replies(3, 422)
    play.replies(4, 422)
    assert play.opened == ["a", "b", "a", "b", "local"]
    assert b"unknown field" not in play.heard


# JSON


def test_json_is_carried_on_too() -> None:
    """The caller sees one object, and one bill."""
    play = begun(*twins("a", "b"), asked=call())
    play.loses(1)
    ends(play, 2)
    answer = loads(play.heard)
    assert answer["choices"][0]["message"]["content"] == "abc"
    assert answer["id"] == "up"
    assert answer["sive"]["resumed"] is True
    assert play.adds_up()


@pytest.mark.parametrize("body", [{"n": 2}, {"tools": [{"type": "function"}]}, {"logprobs": True}])
def test_json_that_cannot_be_carried_on_starts_over(body: Json) -> None:
    """Nothing was shown, so another answer may begin; nothing of the first is in it."""
    play = begun(*twins("a", "b"), asked=call(**body))
    play.loses(1)
    last = len(play.opens)
    play.streams(last, role(), chunk("x"), chunk(finish="stop"), DONE)
    assert loads(play.heard)["choices"][0]["message"]["content"] == "x"
    assert play.chain.report.resumes == [("restart", "ok")]
    assert play.adds_up()


def test_json_that_nobody_finishes_has_an_honest_status() -> None:
    """Never a 200 with half an answer."""
    play = begun(*twins("a"), asked=call(n=2))
    play.loses(1)
    play.loses(2)
    while not play.is_over:
        play.passes(BACKOFF_S)
    assert play.begun.status == 502
    assert play.error["code"] == "stream_interrupted"
    assert play.adds_up()


def test_json_that_starts_over_and_is_refused_adds_up() -> None:
    """Another rung's 400 is the caller's answer, and the cut is told in the books."""
    play = begun(*twins("a", "b"), asked=call(n=2))
    play.loses(1)
    play.replies(2, 422)
    assert play.is_over
    assert play.begun.status >= 400
    assert play.begun.headers["content-type"] == JSON["content-type"]
    assert play.adds_up()


# Seeds


def test_a_sampled_request_is_given_a_seed_where_noise_goes_by_position() -> None:
    """So the next pod draws the same; a caller's own seed, and a greedy request, are left alone."""
    pods = twins("a", "b", position_seeds=True)
    play = begun(*pods)
    seed = play.asked.body["seed"]
    play.loses(1)
    assert play.asked.body["seed"] == seed
    assert Play(*pods, asked=call(stream=True, seed=3)).asked.body["seed"] == 3
    assert "seed" not in Play(*pods, asked=greedy()).asked.body
    assert "seed" not in Play(*twins("a", "b")).asked.body
