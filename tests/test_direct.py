"""The short way of a whole answer over real sockets: whatever becomes of it, health's books are right."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from sive.health import Health
from sive.policy import Clocks
from sive.report import Report
from sive.routes import Model
from sive.wires.http import HttpWire
from sive_serve.direct import Direct, is_direct

from tests.chain_play import CLOCKS, call, policy, rung
from tests.lab import manners, upstream
from tests.lab.callers import Listener, on_a_loop, rung_of, seen
from tests.lab.upstream import Upstream


@dataclass
class Asked:
    """A request that was sent, and all who know of it."""

    direct: Direct
    health: Health
    listener: Listener
    over: "asyncio.Future[tuple[Report, Exception | None]]"
    ends: int = 0

    @property
    def in_flight(self) -> list[int]:
        """How many requests run on each backend."""
        return [self.health.in_flight()[name] for name in ("b0", "b1")]


@asynccontextmanager
async def asking(
    *hosts: Upstream, clocks: Clocks = CLOCKS, breaks: Exception | None = None
) -> AsyncIterator[Asked]:
    """Send a request that takes the short way; the hosts are its rungs."""
    health, wire, listener = Health(policy(clocks)), HttpWire(), Listener(breaks=breaks)
    rungs = tuple(rung_of(f"b{number}", host) for number, host in enumerate(hosts))
    model, asked = Model("spinoza", rungs, guards_json=False), call()
    over: asyncio.Future[tuple[Report, Exception | None]] = asyncio.get_running_loop().create_future()

    def ended(report: Report, failure: Exception | None) -> None:
        made.ends += 1
        if not over.done():
            over.set_result((report, failure))

    assert is_direct(asked, model, health, asyncio.get_running_loop().time())
    direct = Direct(
        asked, model, policy(clocks), health=health, wires={"http": wire}, caller=listener, ended=ended
    )
    made = Asked(direct, health, listener, over)
    direct.start()
    try:
        yield made
    finally:
        direct.close()
        await wire.aclose()


def test_a_good_answer_is_counted_once_however_often_it_is_closed() -> None:
    """One request runs while it is asked and none afterwards, also when the server stops just then."""
    may = threading.Event()

    async def work() -> None:
        async with asking(host) as asked:
            assert asked.in_flight == [1, 0]
            may.set()
            report, failure = await asked.over
            assert (failure, report.backend, asked.listener.status) == (None, "b0", 200)
            assert asked.in_flight == [0, 0]
            asked.direct.close()
            asked.direct.close()
            assert asked.in_flight == [0, 0]
            assert asked.ends == 1

    with Upstream(manners.held(may, upstream.answers("ok"))) as host:
        on_a_loop(work)


def test_what_is_closed_before_its_answer_is_counted_once() -> None:
    """The backend's connection closes too, and nobody is told."""

    async def work() -> None:
        async with asking(host) as asked:
            await seen(lambda: host.seen, "the request")
            asked.direct.close()
            asked.direct.close()
            assert asked.in_flight == [0, 0]
            await seen(lambda: host.seen[0].left_at, "closing the backend")
            assert (asked.ends, asked.listener.status) == (0, 0)

    with Upstream(upstream.stays_silent) as host:
        on_a_loop(work)


def test_a_caller_that_cannot_be_answered_is_counted_once() -> None:
    """The answer was there and its exchange is closed already when telling the caller breaks."""

    async def work() -> None:
        async with asking(host, breaks=ValueError("a line break in a header")) as asked:
            _, failure = await asked.over
            assert str(failure) == "a line break in a header"
            assert asked.in_flight == [0, 0]
            assert asked.ends == 1

    with Upstream(upstream.answers("ok")) as host:
        on_a_loop(work)


def test_a_loss_is_handed_over_and_counted_once() -> None:
    """The chain takes the place of what was lost: it never stands beside it."""
    may = threading.Event()

    async def work() -> None:
        async with asking(first, second) as asked:
            await seen(lambda: second.seen, "the second backend asked")
            assert asked.in_flight == [0, 1]
            may.set()
            report, failure = await asked.over
            assert (failure, report.backend) == (None, "b1")
            assert report.attempts == 1 + len(first.seen)
            assert [failed.backend for failed in report.failures] == ["b0"] * len(first.seen)
            assert asked.in_flight == [0, 0]
            asked.direct.close()
            assert asked.in_flight == [0, 0]
            assert asked.ends == 1

    with Upstream(upstream.resets) as first, Upstream(manners.held(may, upstream.answers("ok"))) as second:
        on_a_loop(work)


def test_the_second_try_of_what_was_lost_runs_alone() -> None:
    """A reset is worth another try on the same backend, where one request runs then, not two."""
    may = threading.Event()

    async def work() -> None:
        async with asking(host) as asked:
            await seen(lambda: len(host.seen) == 2, "the second try")
            assert asked.in_flight == [1, 0]
            may.set()
            report, failure = await asked.over
            assert (failure, report.backend, report.attempts) == (None, "b0", 2)
            assert asked.in_flight == [0, 0]

    with Upstream(manners.first(1, upstream.resets, manners.held(may, upstream.answers("ok")))) as host:
        on_a_loop(work)


async def _leaves(asked: Asked) -> None:
    asked.direct.left()


async def _is_cancelled(asked: Asked) -> None:
    asked.direct.cancel(status=499, message="the request was cancelled", code="request_cancelled")


async def _waits(asked: Asked) -> None:
    await asked.over


@pytest.mark.parametrize("ends", [_leaves, _is_cancelled, _waits])
def test_a_silent_backend_is_given_up_and_counted_once(ends: Callable[[Asked], Awaitable[None]]) -> None:
    """By its caller, from outside or by the clock: the chain ends it, and nothing runs any more."""
    clocks = replace(CLOCKS, whole_s=0.2 if ends is _waits else 100)

    async def work() -> None:
        async with asking(host, clocks=clocks) as asked:
            await seen(lambda: host.seen, "the request")
            await ends(asked)
            await asked.over
            assert asked.in_flight == [0, 0]
            asked.direct.close()
            assert asked.in_flight == [0, 0]
            assert asked.ends == 1
            await seen(lambda: host.seen[0].left_at, "closing the backend")
            assert len(host.seen) == 1

    with Upstream(upstream.stays_silent) as host:
        on_a_loop(work)


def test_a_request_to_go_on_is_the_chains_where_the_first_rung_begins_anew() -> None:
    """The next rung may know the field; the short way would not look there."""
    known = frozenset({"model", "messages"})
    rungs = (rung("hf", known_fields=known), rung("pod"))
    model, health = Model("spinoza", rungs, guards_json=False), Health(policy())
    assert is_direct(call(), model, health, 0.0)
    assert not is_direct(call(continue_final_message=True), model, health, 0.0)
