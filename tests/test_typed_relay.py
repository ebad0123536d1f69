"""The relay of events that have types: bytes as they came, but for those that name the model."""

import pytest
from sive import sse
from sive.protocol import Json
from sive.relay import FailedInBand, Finished, Finishing, Label
from sive.typed_relay import TypedRelay, counted, typed_event

SIVE: Json = {"backend": "b0", "degraded": False, "dropped": []}
BEGUN: Json = {
    "type": "message_start",
    "message": {"model": "theirs", "usage": {"input_tokens": 7, "output_tokens": 1}},
}
WORD: Json = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "œuvre — é"}}
LAST: Json = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}
STREAM = b"".join(map(typed_event, (BEGUN, {"type": "ping"}, WORD, LAST, {"type": "message_stop"})))


def relay() -> TypedRelay:
    """A relay under the caller's name for the model."""
    return TypedRelay(Label("ours", SIVE))


def payloads(out: bytes) -> list[Json]:
    """What events say."""
    return [data.json() for one in sse.split(out) if (data := sse.read(one)) is not None]


def test_a_stream_is_the_same_wherever_it_was_torn() -> None:
    """Also in the middle of a character; only who speaks is written into it."""
    whole = relay().feed(STREAM, 0.0)
    begun, *rest = payloads(whole)
    assert (begun["message"]["model"], begun["message"]["sive"]) == ("ours", SIVE)
    assert rest == [{"type": "ping"}, WORD, LAST, {"type": "message_stop"}]
    for at in range(1, len(STREAM)):
        torn = relay()
        assert torn.feed(STREAM[:at], 0.0) + torn.feed(STREAM[at:], 1.0) == whole
        assert torn.is_finished
        assert isinstance(torn.take(), Finishing)
        assert torn.usage == {"prompt_tokens": 7, "completion_tokens": 3}


def test_a_host_that_only_says_that_it_lives_is_silent() -> None:
    """Pings are passed on, and put no clock off."""
    seen = relay()
    seen.feed(typed_event(BEGUN), 1.0)
    assert seen.feed(typed_event({"type": "ping"}), 5.0)
    assert seen.fed_at == 1.0
    seen.feed(typed_event(WORD), 6.0)
    assert seen.fed_at == 6.0


@pytest.mark.parametrize(
    "failure",
    [
        {"type": "error", "error": {"type": "overloaded_error", "message": "http://inner"}},
        {"type": "error", "message": "http://inner", "sequence_number": 3},
        {"type": "response.failed", "response": {"error": {"message": "http://inner"}}},
    ],
)
def test_a_failure_is_not_shown_as_it_came(failure: Json) -> None:
    """What hosts write there may hold addresses: the face says it in its own words."""
    seen = relay()
    assert seen.feed(typed_event(BEGUN) + typed_event(failure), 0.0).count(b"inner") == 0
    assert isinstance(seen.take(), FailedInBand)


def test_another_protocols_end_mark_ends_nothing_by_itself() -> None:
    """[DONE] after the last event is left out; instead of it the answer broke off."""
    done = b"data: [DONE]\n\n"
    ended = relay()
    assert b"[DONE]" not in ended.feed(STREAM + done, 0.0)
    assert not isinstance(ended.take(), FailedInBand | Finished)
    broken = relay()
    broken.feed(typed_event(BEGUN) + typed_event(WORD) + done, 0.0)
    assert isinstance(broken.take(), FailedInBand)


def test_what_cannot_be_read_is_skipped_and_counted() -> None:
    """As in a chat: what follows may still be whole."""
    seen = relay()
    out = seen.feed(b'event: x\ndata: {"type": "content\n\n' + STREAM, 0.0)
    assert len(payloads(out)) == 5
    assert seen.malformed == 1


def test_tokens_are_counted_in_one_language() -> None:
    """Metrics know prompt and completion; details that are no counts are left out."""
    usage = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10, "input_tokens_details": {}}
    assert counted(usage) == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert counted({"prompt_tokens": 5, "total_tokens": 5}) == {"prompt_tokens": 5, "total_tokens": 5}
