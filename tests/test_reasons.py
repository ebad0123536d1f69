"""What another sive's error says of itself, and what is never shown of a stranger's."""

import pytest
from sive.protocol import dumps, error
from sive.reasons import MAX_CHARS, NOBODY, reason_in_body

OURS = {"x-sive-attempts": "2"}


def told(message: str, code: str = "no_backend") -> bytes:
    """An error's body."""
    return dumps(error(message, type="server_error", code=code))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (f"{NOBODY} 'm': engine: the engine is not ready (loading)", "the engine is not ready (loading)"),
        (f"{NOBODY} 'm': pod: no first token within 10 s", "pod: no first token within 10 s"),
        (f"{NOBODY} 'm': a: HTTP 500; b: HTTP 502", "a: HTTP 500; b: HTTP 502"),
        (f"{NOBODY} 'other': a: HTTP 500", f"{NOBODY} 'other': a: HTTP 500"),
        ("two\nlines", "two lines"),
        ("x" * 1000, "x" * (MAX_CHARS - 1) + "…"),
        ("asked http://10.0.0.5:8000/v1", ""),
    ],
)
def test_a_sives_own_words_are_kept(message: str, reason: str) -> None:
    """Without what the reader knows already, on one line, of a bounded length, and never an address."""
    assert reason_in_body(OURS, told(message), "m") == reason


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, told("nobody")),
        (OURS, told("Incorrect API key provided: sk-1234", "invalid_api_key")),
        (OURS, b"<html>no_backend</html>"),
        (OURS, b'"no_backend"'),
        (OURS, b'{"error": "no_backend"}'),
        (OURS, b'{"error": {"code": "no_backend", "message": 5}}'),
        (OURS, b'{"error": {"code": ["no_backend"], "message": "x"}}'),
    ],
)
def test_a_strangers_are_not(headers: dict[str, str], body: bytes) -> None:
    """Other shapes, other codes, and replies without a sive's header say nothing."""
    assert reason_in_body(headers, body, "m") == ""
