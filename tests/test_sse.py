"""Server-sent events cut out of bytes that arrive in pieces of any size."""

import pytest
from sive.sse import Splitter


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
