"""One number for all that a request keeps in memory, over all its attempts."""

import asyncio
from dataclasses import replace

import pytest
from sive.budget import Budget
from sive.chain import Chain
from sive.drive import Driver
from sive.errors import LostError
from sive.faces import StreamFace, WholeFace
from sive.health import Health
from sive.policy import Limits, Policy
from sive.protocol import loads
from sive.routes import Model
from sive.wires.http import HttpWire

from tests.chain_play import DONE, Play, call, chunk, policy, role, twins
from tests.lab import upstream
from tests.lab.callers import Listener, on_a_loop, rung_of
from tests.lab.hosts import Hosts
from tests.lab.upstream import Exchange, answers, says

LIMIT = 1_000_000
BLOCK = "x" * 10_000


def words(count: int, *, ends: bool = True) -> upstream.Manner:
    """Streams so many blocks of text; without ``ends`` it drops the connection then."""

    async def manner(exchange: Exchange) -> None:
        await exchange.head()
        for _ in range(count):
            await exchange.event(upstream.chunk(exchange, {"content": BLOCK}))
        if not ends:
            exchange.close()
            return
        await exchange.event(upstream.chunk(exchange, {}, "stop"))
        await exchange.done()

    return manner


def run(
    *manners: upstream.Manner, stream: bool = False, is_whole: bool = False, **limits: int
) -> tuple[Chain, Listener]:
    """Ask such hosts in order; ``is_whole``: they know no streams."""
    bounded: Policy = replace(policy(), limits=Limits(**{"reply_bytes": LIMIT, "held_bytes": LIMIT} | limits))

    async def work() -> tuple[Chain, Listener]:
        asked, listener, wire = call(stream=stream), Listener(), HttpWire()
        model = Model(
            "spinoza",
            tuple(
                rung_of(f"b{at}", host, resume="text", streams=not is_whole) for at, host in enumerate(hosts)
            ),
        )
        face = StreamFace() if stream else WholeFace(asked)
        now = asyncio.get_running_loop().time()
        chain = Chain(asked, model, face, bounded, health=Health(bounded), now=now)
        await Driver(chain, {"http": wire}, listener).run()
        await wire.aclose()
        return chain, listener

    with Hosts() as made:
        hosts = [made.add(manner) for manner in manners]
        return on_a_loop(work)


def reasons(chain: Chain) -> set[str]:
    """Why backends were left."""
    return {failure.reason for failure in chain.report.failures}


def test_no_more_is_taken_than_there_is() -> None:
    """What was given back can be taken again; what is too much is not taken."""
    budget = Budget(10)
    budget.take(6)
    with pytest.raises(LostError, match="may hold 10 bytes"):
        budget.take(5)
    assert budget.has(4)
    assert not budget.has(5)
    budget.give_back(6)
    budget.take(10)


def test_an_answer_without_end_is_forgotten_and_the_next_rung_answers() -> None:
    """What was gathered of the first is given back: there is room for the second."""
    chain, listener = run(words(10_000), words(70))
    assert listener.headers["x-sive-backend"] == "b1"
    assert loads(listener.heard)["choices"][0]["message"]["content"] == BLOCK * 70
    assert reasons(chain) == {"too_large"}


def test_a_long_stream_flows_on() -> None:
    """Nothing of it is kept but what could carry it on, and that only as long as there is room."""
    chain, listener = run(words(300), stream=True)
    assert listener.heard.count(BLOCK.encode()) == 300
    assert chain.report.is_complete


def test_what_is_too_long_to_be_kept_is_not_carried_on() -> None:
    """A cut within the limit is mended by the next rung, one beyond it is an error event."""
    kept, listener = run(words(20, ends=False), answers("more"), stream=True)
    assert kept.report.resumes[-1] == ("text", "ok")
    assert b"more" in listener.heard
    lost, listener = run(words(200, ends=False), answers("more"), stream=True)
    assert lost.report.is_broken_off
    assert b"stream_interrupted" in listener.heard


def test_what_carries_on_is_kept_no_longer() -> None:
    """It flows on when there is no room for it, and what is cut then is an error event."""
    kept, _ = run(words(5, ends=False), words(20, ends=False), answers("more"), stream=True)
    assert set(kept.report.resumes) == {("text", "ok")}
    assert kept.report.is_complete
    lost, listener = run(words(5, ends=False), words(200, ends=False), answers("more"), stream=True)
    assert listener.heard.count(BLOCK.encode()) > 200
    assert lost.report.is_broken_off
    assert b"stream_interrupted" in listener.heard


@pytest.mark.parametrize("finish", ["stop", None])
def test_what_there_is_no_room_for_is_missing(finish: str | None) -> None:
    """Even if only one piece of text was not kept: that is neither an end nor anything to go on from."""
    play = Play(*twins("a", "b"), asked=call())
    play.streams(1, role(prompt_token_ids=[5]), chunk("one", ids=[1]))
    others = Limits().held_bytes - 5_000
    play.chain.budget.take(others)
    with pytest.raises(LostError, match="may hold"):
        play.reads(1, [chunk(BLOCK, finish, ids=[2])])
    play.chain.budget.give_back(others)
    play.loses(1, "too_large")
    assert play.asked.endpoint == "chat/completions"  # from the beginning
    play.streams(2, chunk("well", "stop") + DONE)
    assert loads(play.heard)["choices"][0]["message"]["content"] == "well"


def test_a_first_event_that_there_is_no_room_for_is_the_next_rungs() -> None:
    """With all that sive writes into it."""
    first = upstream.event({"choices": [{"index": 0, "delta": {"content": "x" * 2000}}]})

    async def barely(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.piece(first)
        await exchange.gone.wait()

    chain, listener = run(barely, answers("well"), held_bytes=len(first))
    assert loads(listener.heard)["choices"][0]["message"]["content"] == "well"
    assert reasons(chain) == {"too_large"}


def test_a_reply_that_is_read_and_written_anew_is_held_once() -> None:
    """An answer in one piece, as the stream it would have been."""
    chain, listener = run(answers("x" * 600_000), stream=True, is_whole=True)
    assert listener.headers["x-sive-backend"] == "b0"
    assert chain.report.is_complete


@pytest.mark.parametrize("stream", [False, True])
def test_replies_are_given_back_when_they_are_read(stream: bool) -> None:
    """Errors of many hosts do not add up."""
    large = {"error": {"message": "x" * 400_000, "type": "server_error"}}
    chain, listener = run(*[says(503, large)] * 4, answers("well"), stream=stream)
    assert listener.headers["x-sive-backend"] == "b4"
    assert reasons(chain) == {"http_503"}


def test_a_reply_has_a_limit_of_its_own() -> None:
    """Also one that would fit into what a request may keep."""
    large = {"error": {"message": "x" * 60_000, "type": "server_error"}}
    chain, _ = run(says(503, large), answers("well"), reply_bytes=50_000)
    assert reasons(chain) == {"too_large"}
