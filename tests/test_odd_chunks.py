"""Chunks of another shape than OpenAI's: whatever a host writes, its request goes on without it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sive.answers import Answer
from sive.errors import LostError
from sive.pass_on import StreamRelay
from sive.relay import Label, Relay
from sive.responses.events import ResponseEvents
from sive.rewrite import RewritingRelay, Voice
from sive.transcript import Transcript

from tests.chain_play import call, chunk, event
from tests.lab import upstream
from tests.lab.asking import ask
from tests.lab.callers import rung_of
from tests.lab.hosts import Hosts

Json = dict[str, Any]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.sampled_from(["", "a", "stop", "abort"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["content", "tool_calls", "index", "function"]), inner, max_size=2)
    ),
    max_leaves=5,
)
CHOICE_FIELDS = ("index", "delta", "text", "message", "finish_reason", "token_ids", "logprobs", "stop_reason")
FIELDS = ("id", "created", "model", "usage", "prompt_token_ids", "error", "sive", "choices")
CHOICES = st.dictionaries(st.sampled_from(CHOICE_FIELDS), ANYTHING, max_size=4)
CHUNKS = st.builds(
    lambda choices, more: {"choices": choices, **more},
    st.lists(CHOICES, min_size=1, max_size=2),
    st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=3),
)


def relays() -> list[Relay]:
    """Every way of a chat to its caller."""
    label, asked = Label("ours", {"backend": "b"}), call(stream=True)
    made = [
        StreamRelay(label, wants_usage=True, keeps=True, strips_ids=True),
        RewritingRelay(label, Voice.of(asked), Transcript()),
        StreamRelay(label, wants_usage=True),
        StreamRelay(label, wants_usage=True),
    ]
    made[2].rewrites = ResponseEvents({}).feed
    made[3].gathered = Answer("chat/completions")
    return made


@given(st.lists(CHUNKS, min_size=1, max_size=3))
def test_whatever_a_chunk_says_is_read_or_refused(chunks: list[Json]) -> None:
    """No relay breaks otherwise than it says."""
    for relay in relays():
        try:
            relay.feed(chunk("a"), 0.0)
            for one in chunks:
                relay.feed(event(one), 0.0)
                if relay.take() is not None:
                    break
            relay.transcript()
        except (ValueError, LostError):
            continue


def odd_first(**choice: Any) -> upstream.Manner:
    """Streams one chunk, which says all, and the end mark."""

    async def manner(exchange: upstream.Exchange) -> None:
        await exchange.head()
        await exchange.event({"choices": [{"index": 0, "delta": {"content": "hello"}} | choice]})
        await exchange.done()

    return manner


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "choice",
    [
        {"index": None, "finish_reason": "stop"},
        {"index": "0", "finish_reason": "stop"},
        {"index": []},
        {"index": {}},
    ],
)
def test_an_odd_first_chunk_is_the_next_rungs(choice: Json, stream: bool) -> None:
    """It is skipped as one that cannot be read, and nothing else came."""
    with Hosts() as hosts:
        odd = rung_of("odd", hosts.add(odd_first(**choice))).backend
        well = rung_of("well", hosts.add(upstream.answers("good"))).backend
        heard = ask(odd, well, stream=stream)
    assert (heard.status, heard.headers["x-sive-backend"]) == (200, "well")
    assert [reason for reason, _ in heard.failures] == ["eof"]


def test_an_answer_that_cannot_be_put_together_is_the_next_rungs() -> None:
    """Its chunks pass; only at its end it shows that they are none of one message."""
    with Hosts() as hosts:
        odd = rung_of("odd", hosts.add(odd_first(message="hello", finish_reason="stop"))).backend
        well = rung_of("well", hosts.add(upstream.answers("good"))).backend
        heard = ask(odd, well, stream=False)
    assert (heard.status, heard.headers["x-sive-backend"]) == (200, "well")
    assert {reason for reason, _ in heard.failures} == {"malformed"}


@pytest.mark.parametrize("stream", [True, False])
def test_whatever_breaks_on_a_first_chunk_it_is_the_backends(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay that fails over what was held for it has its attempt lost, not its request."""
    feed = StreamRelay.feed

    def breaks(self: StreamRelay, raw: bytes, at: float) -> bytes:
        if b"hello" in raw:
            raise TypeError("of a kind that nobody thought of")
        return feed(self, raw, at)

    monkeypatch.setattr(StreamRelay, "feed", breaks)
    with Hosts() as hosts:
        odd = rung_of("odd", hosts.add(odd_first(finish_reason="stop"))).backend
        well = rung_of("well", hosts.add(upstream.answers("good")), resume="text").backend
        heard = ask(odd, well, stream=stream)
    assert heard.status == 200
    assert heard.failures[0][0] == "malformed"
    assert b"good" in heard.body
