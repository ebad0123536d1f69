"""A request for a response as one for a chat completion: pure, field by field."""

from typing import Any

import pytest
from sive.errors import RequestError
from sive.responses.request import chat_body
from sive.resume import SAMPLING_FIELDS

HI = [{"role": "user", "content": "hi"}]


def test_a_string_is_what_the_user_says() -> None:
    """And nothing else is put in."""
    assert chat_body({"model": "m", "input": "hi"}) == {"model": "m", "messages": HI}


@pytest.mark.parametrize("role", ["user", "assistant", "system", "developer"])
def test_roles_are_those_that_templates_know(role: str) -> None:
    """``developer`` is OpenAI's word for the system's."""
    (said,) = chat_body({"input": [{"role": role, "content": "hi"}]})["messages"]
    assert said["role"] == ("system" if role == "developer" else role)


def test_parts_of_text_are_one_text() -> None:
    """Whichever way they are called; small models' templates read strings."""
    parts = [{"type": kind, "text": kind} for kind in ("input_text", "output_text", "text")]
    (said,) = chat_body({"input": [{"role": "user", "content": parts}]})["messages"]
    assert said["content"] == "input_text\noutput_text\ntext"


@pytest.mark.parametrize("field", [*SAMPLING_FIELDS, "stop", "stream", "model"])
def test_what_is_spelled_alike_is_passed_on(field: str) -> None:
    """As it came."""
    assert chat_body({"input": "hi", field: 7})[field] == 7


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tool_calls", 3),
        ("prompt", {"id": "p"}),
        ("reasoning", {"effort": "high"}),
        ("text", {"verbosity": "low"}),
        ("tools", [{"type": "web_search"}]),
        ("top_logprobs", 3),
        ("a_field_of_tomorrow", "x"),
        ("instructions", [{"role": "user", "content": "hi"}]),
    ],
)
def test_what_changes_an_answer_is_not_left_out(field: str, value: Any) -> None:
    """A field that is not understood is refused by name, rather than dropped in silence."""
    with pytest.raises(RequestError) as caught:
        chat_body({"input": "hi", field: value})
    assert (caught.value.status, caught.value.param) == (501, field)


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_what_is_not_asked_for_is_no_reason(value: Any) -> None:
    """SDKs spell defaults out."""
    assert "a_field_of_tomorrow" not in chat_body({"input": "hi", "a_field_of_tomorrow": value})


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ("text", "input[0]"),
        ({"type": "reasoning", "summary": []}, "input[0]"),
        ({"type": "item_reference", "id": "msg_1"}, "input[0]"),
        ({"content": "hi"}, "input[0].role"),
        ({"role": "user", "content": None}, "input[0].content"),
        ({"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}, "input[0].content"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[0].content"),
    ],
)
def test_items_that_are_no_text_are_named(item: Any, param: str) -> None:
    """By their place."""
    with pytest.raises(RequestError) as caught:
        chat_body({"input": [item]})
    assert caught.value.param == param
