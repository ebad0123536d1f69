"""Requests that pass through: what is written into them and their answers, and what may be asked twice."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sive.calls import parse
from sive.chunks import has_token
from sive.errors import RequestError
from sive.events import End
from sive.protocol import Endpoint, Json, dumps, loads
from sive.relay import Label
from sive.through import THROUGH, is_about_the_past, leaves_something, with_system_prompt
from sive.through_faces import LARGE_BODY_BYTES, whole_through
from sive.typed_relay import TypedRelay, typed_event

LABEL = Label("ours", {"backend": "b0", "degraded": False, "dropped": []})


def passed(body: bytes) -> Json:
    """What becomes of a reply with embeddings."""
    *_, last = whole_through("embeddings", body, LABEL, {})[0]
    assert isinstance(last, End)
    answer: Json = loads(last.data)
    return answer


def embeddings(count: int, **more: Any) -> Json:
    """A reply with so many vectors."""
    vectors = [{"object": "embedding", "index": at, "embedding": [0.5, -1e-05] * 20} for at in range(count)]
    usage = {"prompt_tokens": 5, "total_tokens": 5}
    return {"object": "list", "data": vectors, "model": "theirs", "usage": usage, **more}


@pytest.mark.parametrize("more", [{}, {"more": [1, 2]}, {"sive": {"degraded": True}}])
@pytest.mark.parametrize("spaced", [True, False])
def test_large_vectors_go_on_as_they_came(spaced: bool, more: Json) -> None:
    """The same answer as of small ones, without reading them."""
    separators = None if spaced else (",", ":")
    small, large = embeddings(1, **more), embeddings(2000, **more)
    raw = json.dumps(large, separators=separators).encode()
    assert len(raw) > LARGE_BODY_BYTES
    assert passed(raw) == passed(json.dumps(small).encode()) | {"data": large["data"]}
    assert passed(raw)["model"] == "ours"
    assert whole_through("embeddings", raw, LABEL, {})[1] == large["usage"]


def test_large_vectors_go_through_one_sive_after_another() -> None:
    """What a sive says beside them has lists of its own."""
    once, twice = (raw := json.dumps(embeddings(1000)).encode()), b""
    for _ in range(2):
        *_, last = whole_through("embeddings", once, LABEL, {})[0]
        assert isinstance(last, End)
        assert b'"dropped":[]}}' in last.data
        assert b'"embedding": [0.5, -1e-05, ' in last.data  # spaced as they came: nobody wrote them anew
        once, twice = last.data, once
    assert loads(once) == loads(twice) == passed(raw)


def test_large_vectors_that_are_cut_are_no_answer() -> None:
    """Wherever the reply ends too early."""
    raw = json.dumps(embeddings(1000)).encode()
    for at in (len(raw) - 1, len(raw) - 30, len(raw) // 2, raw.rfind(b"]") + 1, raw.find(b"[") + 1):
        with pytest.raises(ValueError, match=r".+"):
            whole_through("embeddings", raw[:at] + b" " * LARGE_BODY_BYTES, LABEL, {})


@pytest.mark.parametrize("kept", [{"system": "mine"}, {"system": [{"type": "text", "text": "mine"}]}])
def test_a_requests_own_system_prompt_is_kept(kept: Json) -> None:
    """The model's own is for requests without."""
    assert with_system_prompt("messages", kept, "ours") is kept
    assert with_system_prompt("messages", {}, "ours") == {"system": "ours"}
    assert with_system_prompt("responses", {}, "ours") == {"instructions": "ours"}
    turns: Json = {"input": [{"role": "developer", "content": "mine"}]}
    assert with_system_prompt("responses", turns, "ours") is turns
    assert with_system_prompt("embeddings", {}, "ours") == {}
    assert with_system_prompt("messages", {}, None) == {}


@pytest.mark.parametrize(
    ("body", "leaves"),
    [
        ({}, False),
        ({"store": False}, False),
        ({"store": True}, True),
        ({"background": True}, True),
        ({"conversation": {"id": "conv_1"}}, True),
        ({"tools": [{"name": "f", "input_schema": {}}]}, False),
        ({"tools": [{"type": "custom", "name": "f"}]}, False),
        ({"tools": [{"type": "function"}, {"type": "web_search"}]}, True),
    ],
)
def test_what_a_request_leaves_behind(body: Json, leaves: bool) -> None:
    """What is stored, and what a host does by itself; a function is its caller's to run."""
    assert leaves_something(body) is leaves


@pytest.mark.parametrize(
    ("kind", "says_something"),
    [
        ("response.created", False),
        ("response.output_item.added", False),
        ("ping", False),
        ("response.web_search_call.searching", True),
        ("response.code_interpreter_call.in_progress", True),
        ("response.mcp_list_tools.in_progress", True),
        ("response.output_text.delta", True),
        ("response.completed", True),
    ],
)
def test_a_tool_that_the_host_runs_is_a_sign_of_work(kind: str, says_something: bool) -> None:
    """A search may take longer than anybody waits for a first word."""
    assert has_token({"type": kind}) is says_something


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "id", "name"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)
FIELDS = ("input", "messages", "instructions", "tools", "text", "conversation", "system", "stream", "store")


@given(st.sampled_from(sorted(THROUGH)), st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=5))
def test_whatever_is_asked_is_a_request_or_a_clear_error(endpoint: Endpoint, body: Json) -> None:
    """Never anything else, however odd its parts are."""
    try:
        call = parse(endpoint, dumps({"model": "m", **body}), {})
    except RequestError:
        return
    assert call.asked.endpoint == endpoint
    assert isinstance(leaves_something(call.asked.body), bool)
    is_about_the_past(call.asked.body, b"{}")
    with_system_prompt(endpoint, call.asked.body, "ours")


@given(st.dictionaries(st.sampled_from(["type", "response", "message", "usage", "error"]), ANYTHING))
def test_whatever_an_event_says_is_read_or_skipped(event: Json) -> None:
    """A host may write anything there."""
    relay = TypedRelay(LABEL)
    relay.feed(typed_event(event), 0.0)
    assert has_token(event) in (True, False)
