"""Conversations of old clients, and the calls they make: pure."""

from typing import Any

import pytest
from sive.config import FunctionSettings
from sive.errors import RequestError
from sive_serve.doors.gradio_turn import named, turn
from sive_serve.doors.history import messages, with_answer

USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
LAST = {"role": "user", "content": "now"}
CHAT = FunctionSettings(name="/chat_function")
CHOICE = FunctionSettings(name="chat", model="kant", philosopher=True)


@pytest.mark.parametrize(
    ("history", "said"),
    [
        (None, []),
        ([], []),
        ([["a", "b"]], [USER, ASSISTANT]),
        ([[None, "b"], ["a", None]], [ASSISTANT, USER]),
        ([USER, ASSISTANT], [USER, ASSISTANT]),
        ([USER | {"metadata": {"title": None}, "options": None}], [USER]),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], [USER]),
        ([{"role": "user", "content": ["a"]}], [USER]),
    ],
    ids=["none", "empty", "pairs", "greeting", "messages", "gradio's extras", "parts", "strings"],
)
def test_a_history_is_read_in_both_forms(history: Any, said: list[Any]) -> None:
    """Pairs and messages, with what Gradio adds to them; the message is last."""
    assert messages(history, "now") == [*said, LAST]


@pytest.mark.parametrize(
    ("history", "where"),
    [
        ("x", "history"),
        ({"a": 1}, "history"),
        ([["a", "b"], USER], "history"),
        ([["a"]], r"history\[0\]"),
        ([["a", "b"], ["a", 5]], r"history\[1\]"),
        ([5], r"history\[0\]"),
        ([{"role": "robot", "content": "a"}], r"history\[0\]"),
        ([{"role": "user"}], r"history\[0\].content"),
        ([USER, {"role": "user", "content": [{"type": "file", "file": {}}]}], r"history\[1\].content"),
    ],
)
def test_a_history_of_another_shape_is_named(history: Any, where: str) -> None:
    """A 422 that says which entry is wrong."""
    with pytest.raises(RequestError, match=f"^{where}: ") as caught:
        messages(history, "now")
    assert caught.value.status == 422


def test_the_answer_joins_the_history_in_its_own_form() -> None:
    """Pairs for those who keep pairs or nothing yet, messages for the others; theirs is not changed."""
    pairs, kept = [["a", "b"]], [USER, ASSISTANT]
    assert with_answer(None, "now", "text") == [["now", "text"]]
    assert with_answer(pairs, "now", "text") == [["a", "b"], ["now", "text"]]
    assert with_answer(kept, "now", "text") == [USER, ASSISTANT, LAST, ASSISTANT | {"content": "text"}]
    assert (len(pairs), len(kept)) == (1, 2)


@pytest.mark.parametrize("history", [[], [["a", "b"]], [USER, ASSISTANT]], ids=["empty", "pairs", "messages"])
def test_edits_lead_from_one_output_to_the_next(history: list[Any]) -> None:
    """What a client makes of the edits is what a call's own stream would have said."""
    made = turn(CHAT, ["now", history])
    message, kept = made.outputs("Deus ")
    for output, edits in zip((message, kept), made.growth("sive"), strict=True):
        for action, path, more in edits:
            assert action == "append"
            if not path:
                message = output + more
                continue
            *way, last = path
            target = output
            for step in way:
                target = target[step]
            target[last] += more
    assert [message, kept] == made.outputs("Deus sive")


@pytest.mark.parametrize(
    ("function", "data", "where"),
    [
        (CHAT, None, "data"),
        (CHAT, "x", "data"),
        (CHAT, [], "message"),
        (CHAT, [5, []], "message"),
        (CHAT, ["  ", []], "message"),
        (CHAT, ["a", [], "kant"], "data"),
        (CHAT, ["a", "b"], "history"),
        (CHOICE, ["a", [], 5], "philosopher"),
    ],
)
def test_a_call_with_wrong_arguments_is_refused(function: FunctionSettings, data: Any, where: str) -> None:
    """A 422 whose ``param`` names the argument."""
    with pytest.raises(RequestError) as caught:
        turn(function, data)
    assert (caught.value.status, caught.value.param) == (422, where)


def test_the_third_argument_names_a_philosopher() -> None:
    """Where a function takes one; else the function's own model answers."""
    assert turn(CHOICE, ["a", [], "spinoza"]).philosopher == "spinoza"
    assert turn(CHOICE, ["a", []]).philosopher == "kant"
    assert turn(CHAT, ["a"]).philosopher == ""


def test_named_arguments_are_put_in_order() -> None:
    """As ``call/v2`` sends them; one that the function does not take is refused."""
    assert named(CHOICE, {"philosopher": "kant", "message": "a"}) == ["a", None, "kant"]
    assert named(CHAT, {"history": [], "message": "a", "session_hash": "s"}) == ["a", []]
    with pytest.raises(RequestError, match=r"philosopher: the function takes message, history"):
        named(CHAT, {"message": "a", "philosopher": "kant"})
