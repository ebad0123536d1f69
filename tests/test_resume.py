"""Which answers can be carried on, by whom, and with which request."""

from typing import Any

import pytest
from sive.ability import NOT_AT_ALL, Ability, ability, stops, streams_whole
from sive.calls import Call
from sive.resume import by_text, by_tokens, has_all, plans
from sive.routes import Model, Rung
from sive.transcript import Transcript

from tests.chain_play import Json, call, cpu, rung

SAID = Transcript(
    id="i", created=1, prompt_ids=[5, 6], ids=[1, 2], settled=2, settled_chars=2, text="ab", pieces=2
)
ALL = Ability(tokens=True, text=True, none=True)
A, B, OTHER = (rung(name, weights=weights) for name, weights in (("a", "w"), ("b", "w"), ("other", "v")))


def ways(
    *rungs: Rung, can: Ability = ALL, gives: bool | None = True, **body: Any
) -> list[tuple[str, str | None]]:
    """Whom, and how, in order, after the first rung broke off."""
    found = plans(
        call(**body),
        Model("spinoza", rungs),
        SAID,
        rungs[0],
        can=can,
        gives_ids=lambda rung: gives,
        rungs=rungs,
        seed=None,
    )
    return [(plan.rung.backend.name, plan.level) for plan in found]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"n": 1},
        {"stop": ["x"]},
        {"tools": []},
        {"logprobs": False},
        {"response_format": {"type": "text"}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    ],
)
def test_a_plain_text_can_be_carried_on(body: Json) -> None:
    """By ids and by text; started over only where it would come out the same."""
    assert ability(call(**body)) == Ability(tokens=True, text=True, none=False)
    assert ability(call(**body, temperature=0)) == ALL


@pytest.mark.parametrize(
    "body",
    [
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"functions": [{}]},
        {"logprobs": True},
        {"top_logprobs": 2},
        {"echo": True},
        {"suffix": "x"},
        {"modalities": ["audio"]},
        {"prediction": {"type": "content"}},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    ],
)
def test_what_is_more_than_one_text_cannot(body: Json) -> None:
    """Not even a greedy one."""
    assert ability(call(**body, temperature=0)) == NOT_AT_ALL


@pytest.mark.parametrize(
    "name", ["response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice"]
)
def test_a_grammar_can_only_start_over(name: str) -> None:
    """It would begin anew in the middle of what it describes."""
    assert ability(call(**{name: {"type": "json_object"}}, temperature=0)) == Ability(False, False, True)


def test_several_prompts_cannot_be_carried_on() -> None:
    """Each would be an answer of its own; one prompt of ids can, but not by text."""
    assert ability(call("completions", prompt=["a", "b"])) == NOT_AT_ALL
    assert ability(call("completions", prompt=[1, 2])) == Ability(tokens=True, text=False, none=False)


def test_asked_for_log_probabilities_of_nothing_but_the_token_it_is_no_plain_text() -> None:
    """``logprobs: 0`` of a completion gives each token's own: they would be missing behind the cut."""
    assert ability(call("completions", logprobs=0)) == NOT_AT_ALL


def test_a_stop_that_may_not_come_yet_is_left_to_the_engine() -> None:
    """With min_tokens only it knows from when on a stop string counts."""
    assert not ability(call(stop=["x"], min_tokens=5)).tokens


@pytest.mark.parametrize("name", ["best_of", "prompt_logprobs", "use_beam_search", "audio"])
def test_what_cannot_be_streamed_is_not(name: str) -> None:
    """The rest of the JSON answers are streamed upstream."""
    assert streams_whole(call(tools=[{}], n=3, logprobs=True))
    assert not streams_whole(call(**{name: 2}))


def test_the_ways_on_best_first() -> None:
    """Equal weights, then itself, by ids; started over there; then by text; then over elsewhere."""
    assert ways(A, B, OTHER) == [
        ("b", "tokens"),
        ("a", "tokens"),
        ("b", "none"),
        ("a", "none"),
        ("a", "text"),
        ("b", "text"),
        ("other", "text"),
        ("other", "none"),
    ]


def test_by_text_only_where_it_is_declared_or_known() -> None:
    """The CPU model counts as declared, an engine that gives ids is one."""
    can = Ability(tokens=True, text=True, none=False)
    declared = rung("said", resume="text")
    assert ways(A, OTHER, declared, cpu(), can=can, gives=False) == [("said", "text"), ("local", "text")]


def test_unknown_weights_are_equal_to_none() -> None:
    """Not even to other unknown ones; itself it equals."""
    can = Ability(tokens=True, text=False, none=False)
    assert ways(rung("a"), rung("b"), can=can) == [("a", "tokens")]


def test_who_was_never_asked_for_ids_may_be() -> None:
    """Equal weights are an engine's; who is known not to give them is left out."""
    can = Ability(tokens=True, text=False, none=False)
    assert ways(A, B, can=can, gives=None) == [("b", "tokens"), ("a", "tokens")]
    assert ways(A, B, can=can, gives=False) == []


def tokens(asked: Call, said: Transcript = SAID, **options: Any) -> Json:
    """The request that carries on by ids."""
    return by_tokens(asked, Model("spinoza", (A,)), rung("a", **options), said, seed=None).request.body


def test_the_prompt_is_all_ids_so_far_and_the_limits_are_less() -> None:
    """What was generated is not generated again."""
    body = tokens(call(max_tokens=10, min_tokens=5, temperature=0.5, stop=["x"], messages=[{"role": "user"}]))
    assert body["prompt"] == [5, 6, 1, 2]
    assert (body["max_tokens"], body["min_tokens"]) == (8, 3)
    assert body["temperature"] == 0.5
    assert "messages" not in body
    assert "stop" not in body


def test_the_newer_name_of_the_limit_is_known_too() -> None:
    """Chat calls it max_completion_tokens."""
    assert tokens(call(max_completion_tokens=10))["max_tokens"] == 8


def test_without_a_limit_it_gets_the_room_that_is_left() -> None:
    """Never null: that is 16 to vLLM; never more than the context, which it would refuse."""
    assert tokens(call(), context_tokens=100)["max_tokens"] == 96
    assert tokens(call())["max_tokens"] >= 1


def test_fields_that_only_chat_knows_are_left_out() -> None:
    """A completion has no template."""
    asked = call(
        chat_template_kwargs={}, tool_choice="none", parallel_tool_calls=True, repetition_penalty=1.5
    )
    body = tokens(asked)
    assert body["repetition_penalty"] == 1.5
    assert not {"chat_template_kwargs", "tool_choice", "parallel_tool_calls"} & body.keys()


def test_by_text_the_answer_so_far_is_the_last_message() -> None:
    """And the limit is less by its tokens, by whichever name it came."""
    model = Model("spinoza", (A,), system_prompt="You are Spinoza.")
    plan = by_text(call(max_completion_tokens=10, stop=["x"]), model, A, SAID, seed=None, asks_ids=False)
    body = plan.request.body
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant"]
    assert body["messages"][-1]["content"] == "ab"
    assert body["max_tokens"] == 8
    assert "max_completion_tokens" not in body
    assert "stop" not in body
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert plan.before == 2


def test_all_that_was_asked_for_is_there() -> None:
    """Only where every token is known, and its text too."""
    assert has_all(call(max_tokens=2), SAID)
    assert not has_all(call(max_tokens=3), SAID)
    assert not has_all(call(), SAID)
    torn = Transcript(prompt_ids=[5], ids=[1, 2], settled=1, text="a", pieces=1)
    assert not has_all(call(max_tokens=2), torn)
    assert has_all(call("completions"), Transcript(prompt_ids=[5], ids=[1] * 16, settled=16))


@pytest.mark.parametrize(
    ("stop", "found"), [("x", ("x",)), (["x", "", "y"], ("x", "y")), ([], ()), (None, ())]
)
def test_stop_strings_in_every_spelling(stop: Any, found: tuple[str, ...]) -> None:
    """One, several or none; an empty one never stops."""
    assert stops(call(stop=stop)) == found


def test_a_backend_that_knows_its_weights_is_told_whose_tokens_these_are() -> None:
    """By now it may have others; where the configuration says what they are, it would not understand."""
    said = Transcript(prompt_ids=[1], ids=[2], settled=1, settled_chars=1, text="a")
    learned = rung("a", weights="w1", says_weights=True)
    written = rung("a", weights="w1")
    model = Model("spinoza", (A,))
    headers = [by_tokens(call(), model, one, said, seed=None).request.headers for one in (learned, written)]
    assert [one.get("x-sive-weights") for one in headers] == ["w1", None]
