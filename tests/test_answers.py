"""One JSON answer put together from the chunks of its stream: the same as one that never was a stream."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sive import sse
from sive.answers import PORTION_BYTES, Answer
from sive.protocol import Endpoint

from tests.chain_play import DONE, Json, event

TEXT = st.text(max_size=6)
PIECES = st.lists(TEXT, max_size=5)
ENDPOINTS = st.sampled_from(["chat/completions", "completions"])
LOGPROB = st.fixed_dictionaries(
    {"token": TEXT, "logprob": st.floats(-9, 0), "bytes": st.none(), "top_logprobs": st.just([])}
)


@st.composite
def choices(draw: st.DrawFn) -> tuple[Json, list[Json]]:
    """A choice of a chat answer, and the parts in which it is streamed."""
    texts = {key: draw(PIECES) for key in ("content", "reasoning_content", "refusal") if draw(st.booleans())}
    calls = draw(st.lists(st.tuples(st.text("ab", min_size=1), PIECES), max_size=3))
    counted = draw(st.none() | st.lists(LOGPROB, max_size=4))
    reason = draw(st.sampled_from(["stop", "length", "tool_calls"]))
    message: Json = {"role": "assistant", "content": None}
    message |= {key: "".join(pieces) for key, pieces in texts.items() if pieces}
    deltas: list[Json] = [{"role": "assistant"}]
    deltas += [{key: piece} for key, pieces in texts.items() for piece in pieces]
    if calls:
        message["tool_calls"] = [
            _call(number, name, "".join(parts)) for number, (name, parts) in enumerate(calls)
        ]
        message["content"] = message["content"] or None
        deltas += [delta for number, one in enumerate(calls) for delta in _call_deltas(number, *one)]
    parts: list[Json] = [{"delta": delta, "finish_reason": None} for delta in deltas]
    parts += [{"delta": {}, "logprobs": {"content": [one]}} for one in counted or ()]
    parts.append({"delta": {}, "finish_reason": reason, "stop_reason": None})
    logprobs = {"content": counted} if counted else None
    return {"message": message, "logprobs": logprobs, "finish_reason": reason}, parts


def _call(number: int, name: str, arguments: str) -> Json:
    return {"id": f"call-{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _call_deltas(number: int, name: str, parts: list[str]) -> Iterator[Json]:
    begins = {"id": f"call-{number}", "type": "function", "function": {"name": name, "arguments": ""}}
    yield {"tool_calls": [{"index": number, **begins}]}
    for part in parts:
        yield {"tool_calls": [{"index": number, "function": {"arguments": part}}]}


@st.composite
def completions(draw: st.DrawFn) -> tuple[Json, list[Json]]:
    """A choice of a completion, and its parts."""
    pieces = draw(PIECES)
    has_logprobs = draw(st.booleans())
    parts: list[Json] = [{"text": piece, "finish_reason": None} for piece in pieces]
    if has_logprobs:
        for number, part in enumerate(parts):
            part["logprobs"] = {"tokens": [pieces[number]], "token_logprobs": [-1.0], "text_offset": [number]}
    parts.append({"text": "", "finish_reason": "stop"})
    logprobs = {
        "tokens": pieces,
        "token_logprobs": [-1.0] * len(pieces),
        "text_offset": list(range(len(pieces))),
    }
    whole = {"text": "".join(pieces), "finish_reason": "stop"}
    return whole | {"logprobs": logprobs if has_logprobs and pieces else None}, parts


def put_together(endpoint: Endpoint, chunks: list[Json]) -> Json:
    """The answer of these chunks."""
    answer = Answer(endpoint)
    for one in chunks:
        answer.append(event(one))
    answer.append(DONE)
    return answer.json()


@given(st.data(), ENDPOINTS)
def test_it_is_the_answer_that_was_never_streamed(data: st.DataObject, endpoint: Endpoint) -> None:
    """Texts, reasoning, tool calls and log probabilities of every choice, however they interleave."""
    made = choices() if endpoint == "chat/completions" else completions()
    spoken = data.draw(st.lists(made, min_size=1, max_size=3))
    head = {"id": "x", "created": 5, "model": "m", "system_fingerprint": "f"}
    queues = [[{"index": index, **part} for part in parts] for index, (_, parts) in enumerate(spoken)]
    chunks = []
    while any(queues):
        queue = data.draw(st.sampled_from([queue for queue in queues if queue]))
        chunks.append(head | {"object": "chunk", "choices": [queue.pop(0)]})
    chunks.append(head | {"choices": [], "usage": {"total_tokens": 3}})
    whole = put_together(endpoint, chunks)
    got = [
        {key: choice[key] for key in expected}
        for choice, (expected, _) in zip(whole["choices"], spoken, strict=True)
    ]
    assert got == [expected for expected, _ in spoken]
    assert [choice["index"] for choice in whole["choices"]] == list(range(len(spoken)))
    assert whole["usage"] == {"total_tokens": 3}
    assert {key: whole[key] for key in head} == head
    assert whole["object"] == ("chat.completion" if endpoint == "chat/completions" else "text_completion")


def test_ids_that_were_asked_for_are_joined() -> None:
    """A list in each chunk is one list in the answer."""
    parts = [{"index": 0, "delta": {"content": "a"}, "token_ids": [number]} for number in range(3)]
    whole = put_together("chat/completions", [{"choices": [part]} for part in parts])
    assert whole["choices"][0]["token_ids"] == [0, 1, 2]
    assert whole["choices"][0]["message"]["content"] == "aaa"


def test_a_function_call_of_old_is_joined() -> None:
    """Its arguments come in pieces too."""
    deltas = [
        {"function_call": {"name": "f", "arguments": ""}},
        *({"function_call": {"arguments": a}} for a in "xy"),
    ]
    whole = put_together(
        "chat/completions", [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    )
    assert whole["choices"][0]["message"]["function_call"] == {"name": "f", "arguments": "xy"}


def test_a_long_answer_is_read_on_its_way() -> None:
    """What waits to be read stays small, so that the end is not a long pause."""
    answer, piece = Answer("completions"), event({"choices": [{"index": 0, "text": "x" * 100}]})
    for _ in range(3 * PORTION_BYTES // len(piece)):
        answer.append(piece)
        assert answer._waiting_bytes <= PORTION_BYTES
    assert set(answer.json()["choices"][0]["text"]) == {"x"}


def test_no_chunks_are_no_answer() -> None:
    """Never an empty object."""
    with pytest.raises(ValueError, match="without an answer"):
        put_together("completions", [])


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "index",
                    "delta",
                    "text",
                    "content",
                    "tool_calls",
                    "function",
                    "arguments",
                    "logprobs",
                    "function_call",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(ENDPOINTS, st.lists(VALUES, max_size=3))
def test_chunks_of_another_shape_are_a_value_error(endpoint: Endpoint, odd: list[Any]) -> None:
    """Nothing else ever comes out of it, whatever a backend writes."""
    first = (
        {"index": 0, "delta": {"content": "a"}}
        if endpoint == "chat/completions"
        else {"index": 0, "text": "a"}
    )
    try:
        whole = put_together(endpoint, [{"choices": [first]}, {"choices": odd}])
    except ValueError:
        return
    assert whole["choices"]
    assert sse.read(event(whole)) is not None
