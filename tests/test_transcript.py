"""What one answer has said so far, over all who said it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sive import sse
from sive.transcript import Transcript

from tests.chain_play import Json, chunk, completion, role


def said(*events: bytes) -> Transcript:
    """A transcript of these events."""
    transcript = Transcript()
    for one in events:
        data = sse.read(one)
        assert data is not None
        transcript.add(data.json())
    return transcript


def test_both_shapes_are_read() -> None:
    """Chat has its prompt's ids at the top of a chunk, a completion in its choice."""
    chat = said(role(prompt_token_ids=[5, 6]), chunk("a", ids=[1]), chunk("b", ids=[2]))
    text = Transcript()
    text.add({"id": "up", "choices": [{"text": "ab", "token_ids": [1, 2], "prompt_token_ids": [5, 6]}]})
    for one in (chat, text):
        assert (one.text, one.ids, one.prompt_ids) == ("ab", [1, 2], [5, 6])
        assert one.can_go_on_by_ids
        assert one.usage() == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


def test_ids_without_text_wait_for_theirs() -> None:
    """Parts of a character are not carried on; they are counted."""
    torn = said(role(prompt_token_ids=[5]), chunk("a", ids=[1]), chunk(ids=[2]), chunk(ids=[3]))
    assert torn.carried_on_by_ids().ids == [1]
    assert torn.tokens == 3
    assert not torn.is_settled
    whole = said(role(prompt_token_ids=[5]), chunk("a", ids=[1]), chunk(ids=[2]), chunk("é", ids=[3]))
    assert whole.carried_on_by_ids().ids == [1, 2, 3]
    assert whole.is_settled


def test_several_tokens_in_a_piece_are_not_sure_to_be_whole() -> None:
    """The last of them may be part of a character: they are said again."""
    merged = said(role(prompt_token_ids=[5]), chunk("a", ids=[1]), chunk("bc", ids=[2, 3]))
    assert merged.carried_on_by_ids().ids == [1]
    assert merged.unsettled == "bc"


def test_the_last_token_before_a_limit_is_not_sure_to_be_whole() -> None:
    """An engine that has to end gives what it can of a torn character's text."""
    limited = said(role(prompt_token_ids=[5]), chunk("a", ids=[1]), chunk("b", "length", ids=[2]))
    assert limited.carried_on_by_ids().ids == [1]
    assert limited.unsettled == "b"
    assert said(role(prompt_token_ids=[5]), chunk("b", "stop", ids=[2])).is_settled


def test_text_without_ids_cannot_go_on_by_ids() -> None:
    """Nor what is not only text."""
    assert not said(role(prompt_token_ids=[5]), chunk("a", ids=[1]), chunk("b")).can_go_on_by_ids
    assert not said(chunk("a", ids=[1])).can_go_on_by_ids
    thinks = Transcript(prompt_ids=[5])
    thinks.add({"choices": [{"delta": {"reasoning_content": "hm"}, "token_ids": [1]}]})
    assert not thinks.can_go_on_by_ids


def test_the_next_voice_counts_its_own_tokens() -> None:
    """What was said before is in its prompt, and stays on the bill as what it was."""
    first = said(role(prompt_token_ids=[5, 6]), chunk("a", ids=[1]), chunk("b", ids=[2]))
    second = first.carried_on_by_text()
    second.add({"id": "other", "prompt_token_ids": [5, 6, 77], "choices": []})
    second.add({"id": "other", "choices": [{"delta": {"content": "c"}, "token_ids": [8]}]})
    assert second.text == "abc"
    assert second.tokens == 3
    assert second.prompt_ids == [5, 6, 77]
    assert second.ids == [8]
    assert second.id == "up"
    assert second.usage() == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def test_what_is_carried_on_leaves_the_first_as_it_was() -> None:
    """A try that fails must not change what the next one goes on from."""
    first = said(role(prompt_token_ids=[5]), chunk("a", ids=[1]), chunk(ids=[2]))
    for second in (first.carried_on_by_ids(), first.carried_on_by_text(), first.started_over()):
        second.add({"choices": [{"delta": {"content": "x"}, "token_ids": [9]}]})
    assert (first.text, first.ids, first.settled) == ("a", [1, 2], 1)


def test_where_nobody_counts_pieces_are_counted() -> None:
    """And the prompt is unknown, so there is no bill."""
    transcript = said(completion("a"), completion("b"), completion())
    assert transcript.tokens == 2
    assert transcript.usage() is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["index", "delta", "text", "content", "token_ids", "prompt_token_ids", "choices", "id"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["choices", "id", "prompt_token_ids"]), VALUES))
def test_no_chunk_can_break_it(odd: Json) -> None:
    """Another shape is a ValueError, and text stays text."""
    transcript = Transcript()
    try:
        transcript.add(odd)
    except ValueError:
        return
    assert isinstance(transcript.text, str)
    with pytest.raises(ValueError, match="no"):
        transcript.add({"choices": [{"delta": "x"}]})
