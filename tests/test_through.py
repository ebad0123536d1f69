"""Requests that pass through: what is written into them and their answers, and what may be asked twice."""

import json
from typing import Any

import pytest
from sive.events import End
from sive.protocol import Json, loads
from sive.relay import Label
from sive.through import leaves_something, with_system_prompt
from sive.through_faces import LARGE_BODY_BYTES, whole_through

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
