"""The cutting proxy of the lab does to a stream exactly what it is told, and nothing to all others."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.conftest import until
from tests.lab.answers import Answer, ask
from tests.lab.proxy import Cuts, CuttingProxy, half, tokens_of
from tests.lab.upstream import Exchange, Upstream, answers, chunk

WORDS = ("La ", "beauté", " n'est", " pas", " à ", "nous")


async def with_ids(exchange: Exchange) -> None:
    """Streams the words with a token id each, the second and third in one event."""
    await exchange.head()
    for ids, text in (([1], "a"), ([2, 3], "bc"), ([4], ""), ([5], "d")):
        event = chunk(exchange, {"content": text})
        event["choices"][0]["token_ids"] = ids
        await exchange.event(event)
    await exchange.done()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A server that says the words."""
    with Upstream(answers(*WORDS)) as server:
        yield server


@pytest.fixture
def proxy(upstream: Upstream) -> Iterator[CuttingProxy]:
    """A proxy in front of it."""
    with CuttingProxy(upstream.port, Cuts()) as server:
        yield server


def asked(proxy: CuttingProxy, user: str = "someone", **body: object) -> Answer:
    """What a caller of the proxy gets."""
    return ask(
        proxy.url, "/chat/completions", {"model": "m", "stream": True, "user": user, **body}, timeout=2
    )


def test_what_is_not_armed_passes_unchanged(proxy: CuttingProxy) -> None:
    """Streams and whole answers, one after the other on one connection."""
    with httpx2.Client() as client:
        for body in ({"stream": True}, {}, {"stream": True}):
            assert "nous" in client.post(f"{proxy.url}/chat/completions", json=body).text
    answer = asked(proxy)
    assert answer.text == "".join(WORDS)
    assert answer.is_done
    assert proxy.cuts.done == []


@pytest.mark.parametrize("tokens", range(len(WORDS)))
@pytest.mark.parametrize("how", ["fin", "rst", "half"])
def test_a_cut_comes_after_so_many_tokens(proxy: CuttingProxy, how: str, tokens: int) -> None:
    """The tokens before it arrive, none after it does, and the next request is left alone."""
    cut = proxy.cuts.arm("victim", tokens, how)  # type: ignore[arg-type]
    got: list[str] = []
    with pytest.raises(httpx2.TransportError), httpx2.Client() as client:  # noqa: PT012 - the loop raises
        body = {"model": "m", "stream": True, "user": "victim"}
        with client.stream("POST", f"{proxy.url}/chat/completions", json=body) as response:
            got.extend(response.iter_bytes())
    events = b"".join(got).split(b"\n\n")[:-1]
    assert sum(map(tokens_of, events)) == cut.passed == tokens
    assert proxy.cuts.done == [cut]
    assert asked(proxy, "victim").text == "".join(WORDS)


def test_tokens_that_come_in_one_event_are_counted_apart(upstream: Upstream, proxy: CuttingProxy) -> None:
    """An event of two ids cannot be cut between them: the log says how many passed."""
    upstream.manner = with_ids
    cut = proxy.cuts.arm("victim", 2)
    with pytest.raises(httpx2.TransportError):
        asked(proxy, "victim")
    assert cut.passed == 3


def test_a_stall_lasts_until_the_caller_leaves(proxy: CuttingProxy) -> None:
    """Nothing more is said, and it is logged when the caller gave up."""
    cut = proxy.cuts.arm("victim", 2, "stall")
    with pytest.raises(httpx2.ReadTimeout):
        asked(proxy, "victim")
    until(lambda: cut.left_at is not None, 2, "the caller's leaving seen")


def test_a_caller_who_leaves_is_gone_for_the_server_too(upstream: Upstream, proxy: CuttingProxy) -> None:
    """The proxy closes its connection to the engine when its own caller closes."""
    upstream.manner = with_ids_then_silence
    with httpx2.stream("POST", f"{proxy.url}/chat/completions", json={"stream": True}) as response:
        next(response.iter_lines())
    until(lambda: upstream.seen[-1].left_at is not None, 2, "the leaving passed on")


async def with_ids_then_silence(exchange: Exchange) -> None:
    """Streams one word and waits."""
    await exchange.head()
    await exchange.event(chunk(exchange, {"content": "a"}))
    await exchange.gone.wait()


def test_a_half_event_ends_inside_a_character_where_it_can() -> None:
    """After the first byte of the first character of several bytes."""
    assert half("data: beauté\n\n".encode()) == b"data: beaut\xc3"
    assert half(b"data: ab\n\n") == b"data:"
