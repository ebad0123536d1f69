"""Requests of our own faces, in a gateway of this process before real sockets."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sive.config import load
from sive.errors import LostError
from sive.protocol import loads
from sive_serve.gateway import Gateway
from sive_serve.inner import MAX_WAITING_BYTES, Inner

from tests.lab import manners, upstream
from tests.lab.callers import on_a_loop, seen
from tests.lab.upstream import Upstream
from tests.test_gateway import HI, routed

BODY = {"model": "m", "messages": HI, "stream": True}
NO_CPU = "[local]\nenabled = false\n"


@pytest.fixture(autouse=True)
def gc_as_before() -> Iterator[None]:
    """A gateway changes when garbage is looked for."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@asynccontextmanager
async def serving(folder: Path, *hosts: Upstream) -> AsyncIterator[Gateway]:
    """A gateway before these hosts."""
    path = folder / "sive.toml"
    path.write_text(routed(*hosts, more=NO_CPU))
    gateway = Gateway(load(path, environ={"SIVE_OFFLINE": "1"}).settings)
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()
        asked = [one for host in hosts for one in host.seen]
        await seen(lambda: all(one.left_at or one.end != "open" for one in asked), "all connections closed")


def ask(gateway: Gateway, headers: dict[str, str] | None = None, **more: Any) -> Inner:
    """A chat completion."""
    return Inner(gateway, "chat/completions", {**BODY, **more}, headers or {})


def metric(gateway: Gateway, name: str, **labels: str) -> float | None:
    """What Prometheus would read."""
    return gateway.metrics.registry.get_sample_value(name, labels)


def test_a_face_reads_head_and_body_and_the_books_are_right(tmp_path: Path) -> None:
    """Streams and answers in one piece are answered, counted and over as all others."""

    async def work() -> None:
        async with serving(tmp_path, host) as gateway:
            for streams in (True, False):
                with ask(gateway, stream=streams) as answer:
                    status, headers = await answer.head()
                    assert (status, headers["x-sive-backend"]) == (200, "b0")
                    assert ("deux" in (await answer.whole()).decode()) is True
            assert not gateway.running
            assert metric(gateway, "sive_requests_total", backend="b0", model="m", status="200") == 2

    with Upstream(upstream.answers("un ", "deux")) as host:
        on_a_loop(work)


def test_a_wrong_request_is_an_answer_too(tmp_path: Path) -> None:
    """What reaches no route has its status and its OpenAI error."""

    async def work() -> None:
        async with serving(tmp_path, host) as gateway:
            with ask(gateway, model="hegel") as answer:
                status, _ = await answer.head()
                said = loads(await answer.whole())
        assert (status, said["error"]["code"]) == (404, "model_not_found")

    with Upstream(upstream.answers("no")) as host:
        on_a_loop(work)


def test_the_callers_headers_count_and_no_others(tmp_path: Path) -> None:
    """Its id, its key and what it requires; not what belongs to its own protocol."""
    headers = {"x-request-id": "mine", "authorization": "Bearer k", "content-length": "7", "origin": "x"}

    async def work() -> None:
        async with serving(tmp_path, host) as gateway:
            with ask(gateway, headers) as answer:
                await seen(lambda: host.seen, "the request")
                assert gateway.cancel("mine", "Bearer other") == 0
                assert gateway.cancel("mine", "Bearer k") == 1
                assert (await answer.head())[0] == 499
                assert answer.headers.keys() == {"x-request-id", "authorization"}
            with ask(gateway, {"x-sive-hop": "4"}) as answer:
                assert (await answer.head())[0] == 508
            with ask(gateway, {"x-sive-require": "adaptr"}) as answer:
                assert (await answer.head())[0] == 400

    with Upstream(upstream.stays_silent) as host:
        on_a_loop(work)


def test_a_face_that_leaves_stops_the_backend(tmp_path: Path) -> None:
    """Before the head and in the middle."""

    async def work() -> None:
        async with serving(tmp_path, host) as gateway:
            with ask(gateway) as answer:
                async for _ in answer.pieces():
                    break
            await seen(lambda: host.seen[0].left_at, "the connection closed")
            assert not gateway.running
            host.manner = upstream.stays_silent
            with ask(gateway):
                await seen(lambda: len(host.seen) == 2, "the request")
            await seen(lambda: host.seen[1].left_at, "the connection closed")
            assert not gateway.running

    with Upstream(upstream.talks_forever) as host:
        on_a_loop(work)


def test_a_face_that_reads_slowly_holds_the_backend_back_and_loses_nothing(tmp_path: Path) -> None:
    """Only so much waits in memory, however much the backend would send."""
    word, count = "x" * 65_536, 200

    async def floods(exchange: upstream.Exchange) -> None:
        await exchange.head()
        for _ in range(count):
            await exchange.event(upstream.chunk(exchange, {"content": word}))
        await exchange.event(upstream.chunk(exchange, {}, "stop"))
        await exchange.done()

    async def work() -> None:
        async with serving(tmp_path, host) as gateway:
            with ask(gateway) as answer:
                await seen(lambda: answer.is_slow, "more than is read")
                got, most = bytearray(), 0
                async for piece in answer.pieces():
                    got += piece
                    most = max(most, answer.waiting_bytes)
        assert got.count(word.encode()) == count
        assert most < 4 * MAX_WAITING_BYTES

    with Upstream(floods) as host:
        on_a_loop(work)


def test_a_server_that_stops_tells_who_reads(tmp_path: Path) -> None:
    """Who waits for the head, and who is in the middle."""
    may = threading.Event()

    async def work() -> None:
        async with serving(tmp_path, host) as gateway:
            with ask(gateway) as silent, ask(gateway) as talking:
                heads = asyncio.gather(silent.head(), talking.head(), return_exceptions=True)
                await seen(lambda: len(host.seen) == 2, "both requests")
                await gateway.stop()
                assert [type(head) for head in await heads] == [LostError, LostError]

    with Upstream(manners.held(may, upstream.answers("late"))) as host:
        on_a_loop(work)
        may.set()
