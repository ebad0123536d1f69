"""The prober before real hosts: what it learns, how much it reads for that, whose place it takes."""

import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from sive.assemble import Learned
from sive.health import Health
from sive.report import Report
from sive.routes import Model, Rung
from sive.wires.http import HttpWire
from sive_serve.prober import MAX_LESSON_BYTES, Key, Prober

from tests.chain_play import CLOCKS, policy
from tests.lab import manners
from tests.lab.callers import on_a_loop, rung_of, seen
from tests.lab.upstream import Exchange, Json, Manner, Upstream, says

PATIENT = replace(CLOCKS, first_token_s=60)
PIECE = b" " * 100_000


@dataclass
class Told:
    """What the prober says: its lessons, each as it came, and how probes ended."""

    health: Health
    lessons: list[dict[Key, Learned]] = field(default_factory=list)
    probes: list[Report] = field(default_factory=list)

    @property
    def learned(self) -> dict[Key, Learned]:
        """All that was learned."""
        return {key: lesson for lessons in self.lessons for key, lesson in lessons.items()}


@asynccontextmanager
async def watching(*rungs: Rung, in_use: Rung | None = None) -> AsyncIterator[Told]:
    """A prober that watches these; of ``in_use`` a caller's request runs already."""
    told, wire = Told(Health(policy(PATIENT), is_probed=True)), HttpWire()
    if in_use is not None:
        told.health.opened(in_use)
    prober = Prober(
        table=lambda: {"m": Model("m", rungs)},
        health=told.health,
        policy=policy(PATIENT),
        wires={"http": wire},
        interval_s=0.1,
        learn=lambda lessons: told.lessons.append(dict(lessons)),
        observe=lambda backend, report: told.probes.append(report),
    )
    prober.start()
    try:
        yield told
    finally:
        await prober.stop()
        await wire.aclose()


def lists(*entries: object, padding: int = 0) -> Manner:
    """Answers as others do, and says of its models just this, with so many spaces before it."""
    listed = b" " * padding + json.dumps({"object": "list", "data": entries}).encode()

    async def manner(exchange: Exchange) -> None:
        if exchange.seen.method != "GET":
            await manners.speaks()(exchange)
            return
        await exchange.head(content_type="application/json")
        await exchange.piece(listed)
        await exchange.end()

    return manner


def entry(name: object, weights: str = "w") -> Json:
    """A model in a list."""
    return {"id": name, "weights": weights, "max_model_len": 512, "position_seeds": True}


def test_only_wanted_models_are_learned() -> None:
    """A host may list a thousand: of each backend only what the routes ask there is kept."""

    async def work() -> None:
        rungs = rung_of("a", one, probe="token"), rung_of("b", other, model="x-1", probe="token")
        async with watching(*rungs) as told:
            await seen(lambda: len(told.lessons) == 2, "a lesson of each")
            assert told.learned == {
                ("a", "lab"): Learned("w", 512, True),
                ("b", "x-1"): Learned("v", 512, True),
            }

    many = [entry(f"x-{number}", "v") for number in range(1000)]
    listed = [*many, None, "lab", entry(None), entry(5), {"max_model_len": 1}, entry("lab")]
    with Upstream(lists(*listed)) as one, Upstream(lists(*listed)) as other:
        on_a_loop(work)


@pytest.mark.parametrize(
    ("padding", "names"), [(MAX_LESSON_BYTES * 9 // 10, ["lab"]), (MAX_LESSON_BYTES * 2, [])]
)
def test_a_list_is_read_up_to_its_limit(padding: int, names: list[str]) -> None:
    """One that is longer teaches nothing, and the backend is well all the same."""

    async def work() -> None:
        async with watching(rung_of("a", host, probe="token")) as told:
            await seen(lambda: told.lessons, "a lesson")
            assert [name for _, name in told.learned] == names
            assert told.probes[0].is_complete
            assert not told.health.open_keys()

    with Upstream(lists(entry("lab"), padding=padding)) as host:
        on_a_loop(work)


def test_a_list_without_end_is_left() -> None:
    """Its connection is closed long before the time for it is over."""

    async def endless(exchange: Exchange) -> None:
        if exchange.seen.method != "GET":
            await manners.speaks()(exchange)
            return
        await exchange.head(content_type="application/json")
        for _ in range(20 * MAX_LESSON_BYTES // len(PIECE)):  # more than sockets hold
            await exchange.piece(PIECE)
        await exchange.gone.wait()

    async def work() -> None:
        async with watching(rung_of("a", host, probe="token")) as told:
            await seen(lambda: told.lessons, "the end of the lesson")
            assert told.learned == {}
            asked = next(one for one in host.seen if one.method == "GET")
            await seen(lambda: asked.left_at or asked.end != "open", "leaving the list")

    with Upstream(endless) as host:
        on_a_loop(work)


def test_a_probe_takes_no_callers_place() -> None:
    """While it waits for its token the backend has room for as many callers as ever, and afterwards too."""
    may = threading.Event()

    async def work() -> None:
        rung = rung_of("a", host, probe="token", max_in_flight=1)
        async with watching(rung) as told:
            await seen(lambda: host.seen, "a probe")
            assert told.health.in_flight()["a"] == 0
            assert not told.health.is_full(rung.backend)
            may.set()
            await seen(lambda: told.probes, "its end")
            assert told.probes[0].is_complete
            assert told.health.in_flight()["a"] == 0

    with Upstream(manners.held(may, manners.speaks())) as host:
        on_a_loop(work)


def test_a_full_backend_is_probed_too() -> None:
    """Its callers' requests may be what hangs."""

    async def work() -> None:
        rung = rung_of("a", host, probe="token", max_in_flight=1)
        async with watching(rung, in_use=rung) as told:
            assert told.health.is_full(rung.backend)
            await seen(lambda: told.probes, "the end of a probe")
            assert told.probes[0].is_complete
            assert told.health.in_flight()["a"] == 1

    with Upstream(manners.speaks()) as host:
        on_a_loop(work)


def test_a_refused_key_is_not_shown_again_and_again() -> None:
    """A host may ban who does: it is left alone for as long as a refusal rests, while others are asked on."""

    async def work() -> None:
        refused, well = rung_of("a", host, probe="token"), rung_of("b", other, probe="token")
        async with watching(refused, well) as told:
            await seen(lambda: sum(one.is_complete for one in told.probes) >= 8, "eight probes of the other")
            assert [one.status for one in told.probes if not one.is_complete] == [503]
            assert "a" in {backend for backend, _ in told.health.open_keys()}

    with Upstream(says(401)) as host, Upstream(manners.speaks()) as other:
        on_a_loop(work)
