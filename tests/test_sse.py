"""Server-sent events cut out of bytes that arrive in pieces of any size."""

import pytest
from sive.protocol import event
from sive.sse import Splitter, backwards, split


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
def test_an_event_is_found_wherever_it_was_torn(end: str) -> None:
    """Its end may lie across pieces; what was searched before is not searched again."""
    whole = f"data: é{end}data: œ{end}".encode()
    for first in range(len(whole) + 1):
        for second in range(first, len(whole) + 1):
            splitter = Splitter()
            pieces = (whole[:first], whole[first:second], whole[second:])
            assert b"".join(splitter.feed(piece) for piece in pieces) == whole
            assert splitter.rest == b""
    byte_by_byte = Splitter()
    assert [out for at in range(len(whole)) if (out := byte_by_byte.feed(whole[at : at + 1]))] == [
        f"data: é{end}".encode(),
        f"data: œ{end}".encode(),
    ]


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r", "\n\n\n\n"])
def test_events_are_the_same_from_the_last_on(end: str) -> None:
    """Whatever ends them, and where nothing but ends is there."""
    whole = f"data: é{end}: a comment{end}event: œ\ndata: œ{end}".encode()
    assert list(backwards(whole)) == split(whole)[::-1]
    assert len(split(whole)) == 3
    assert list(backwards(end.encode())) == list(backwards(b"")) == []


def test_only_line_ends_end_what_an_event_says() -> None:
    """JSON may hold what Unicode calls a line's end; what is no object is no payload."""
    splitter = Splitter()
    said = {"prompt": "Sois\u2028bref,\u0085vraiment."}
    raw = b": waiting\n\n" + event(said)
    assert [one for at in range(len(raw)) for one in splitter.payloads(raw[at : at + 1])] == [said]
    with pytest.raises(ValueError, match="no object"):
        list(splitter.payloads(b"data: 1\n\n"))
