"""Connections of callers that wait for another request: real sockets, and a clock that is passed in."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from sive.config import load
from sive_serve.app import create_app
from sive_serve.gateway import Gateway
from sive_serve.http import GatewayProtocol
from uvicorn.server import ServerState

from tests.lab import manners, upstream
from tests.lab.callers import on_a_loop, seen
from tests.lab.upstream import Upstream
from tests.test_hot_paths import BODY, post, unguarded

KEEP_S = 75
PAGE = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"


class Timer:
    """A callback that waits for its time."""

    def __init__(self, clock: "Clock", at: float, act: Callable[..., object]) -> None:
        self.at, self.act, self._clock = at, act, clock

    def cancel(self) -> None:
        """Do not wait any more."""
        self._clock.timers.remove(self)


class Clock:
    """An event loop whose time passes only when it is told to."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        """All else is the loop's."""
        return getattr(self._loop, name)

    def time(self) -> float:
        """Seconds."""
        return self.now

    def call_later(self, delay: float, act: Callable[..., object]) -> Timer:
        """Do it then."""
        timer = Timer(self, self.now + delay, act)
        self.timers.append(timer)
        return timer

    def passes(self, seconds: float) -> None:
        """Let time pass, with all timers that are due."""
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.at <= end]:
            timer = min(due, key=lambda timer: timer.at)
            self.timers.remove(timer)
            self.now = max(self.now, timer.at)
            timer.act()
        self.now = end


class Counted(GatewayProtocol):
    """Says how many pieces have come, and how many requests."""

    pieces = requests = 0

    def data_received(self, data: bytes) -> None:
        """One more."""
        super().data_received(data)
        self.pieces += 1

    def on_message_complete(self) -> None:
        """One more."""
        super().on_message_complete()
        self.requests += 1


class Connection:
    """A caller's side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def ask(self, request: bytes = PAGE) -> int:
        """Send, and read the answer: its status."""
        self.writer.write(request)
        return await self.answer()

    async def answer(self) -> int:
        """Read an answer."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = head.partition("content-length: ")[2].partition("\r\n")[0]
        await self._reader.readexactly(int(length))
        return int(head.split(" ")[1])

    async def is_closed(self) -> bool:
        """Wait for the end of what comes: nothing may come before it."""
        async with asyncio.timeout(5):
            return await self._reader.read() == b""


class Served:
    """A gateway on this loop, with a clock of its own."""

    def __init__(self, gateway: Gateway, clock: Clock) -> None:
        self.clock = clock
        self.protocols: list[Counted] = []
        self._callers: list[Connection] = []
        self._gateway = gateway
        self._state = ServerState()
        app = create_app(gateway)
        self._config = uvicorn.Config(
            app, ws="none", lifespan="off", log_config=None, timeout_keep_alive=KEEP_S
        )

    def protocol(self) -> Counted:
        """One for each connection, as `uvicorn` makes them."""
        loop: Any = self.clock
        made = Counted(self._gateway, config=self._config, server_state=self._state, app_state={}, _loop=loop)
        self.protocols.append(made)
        return made

    async def connect(self) -> Connection:
        """A caller."""
        caller = Connection(*await asyncio.open_connection("127.0.0.1", self.port))
        self._callers.append(caller)
        return caller

    async def __aenter__(self) -> "Served":
        """Start to listen."""
        self._server = await asyncio.get_running_loop().create_server(self.protocol, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        await self._gateway.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        self._server.close()
        await self._gateway.stop()
        for caller in self._callers:
            caller.writer.close()
            await caller.writer.wait_closed()
        for protocol in self.protocols:
            protocol.transport.abort()
        await self._server.wait_closed()


@pytest.fixture(autouse=True)
def gc_as_before() -> Iterator[None]:
    """A gateway changes when garbage is looked for."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@asynccontextmanager
async def serving(folder: Path, *hosts: Upstream, keys: str = "") -> AsyncIterator[Served]:
    """A gateway before these hosts."""
    path = folder / "sive.toml"
    no_cpu = "[local]\nenabled = false\n"
    path.write_text(unguarded(*hosts, more=no_cpu) if hosts else no_cpu)
    environ = {"SIVE_OFFLINE": "1"} | ({"SIVE_API_KEYS": keys} if keys else {})
    gateway = Gateway(load(path, environ=environ).settings)
    async with Served(gateway, Clock(asyncio.get_running_loop())) as served:
        yield served


@pytest.mark.parametrize("request_", [PAGE, post(BODY)], ids=["page", "hot path"])
def test_a_connection_is_closed_when_it_was_idle_for_long_enough(tmp_path: Path, request_: bytes) -> None:
    """Counted from its last answer: whoever asks again in time keeps it."""

    async def work() -> None:
        async with serving(tmp_path, host) as served:
            caller = await served.connect()
            for pause in (KEEP_S - 1, KEEP_S - 1, 1, 2, KEEP_S - 1):
                assert await caller.ask(request_) == 200
                served.clock.passes(pause)
            assert await caller.ask(request_) == 200
            served.clock.passes(KEEP_S)
            assert await caller.is_closed()

    with Upstream(upstream.answers("ok")) as host:
        on_a_loop(work)


@pytest.mark.parametrize(
    ("before", "rest"),
    [(PAGE, post(BODY)), (post(b"{}") + post(BODY), b""), (PAGE + post(BODY)[:20], post(BODY)[20:])],
    ids=["later", "in one piece with a wrong one", "in two pieces, one before an answer"],
)
def test_a_busy_connection_is_never_closed(tmp_path: Path, before: bytes, rest: bytes) -> None:
    """However its request came, and however long the answer takes; when that has come the wait begins."""
    may = threading.Event()

    async def work() -> None:
        async with serving(tmp_path, host) as served:
            caller = await served.connect()
            assert await caller.ask(before) in (200, 400)
            caller.writer.write(rest)
            await seen(lambda: host.seen, "the request")
            served.clock.passes(3 * KEEP_S)
            may.set()
            assert await caller.answer() == 200
            served.clock.passes(KEEP_S - 1)
            assert await caller.ask() == 200
            served.clock.passes(KEEP_S)
            assert await caller.is_closed()

    with Upstream(manners.held(may, upstream.answers("ok"))) as host:
        on_a_loop(work)


@pytest.mark.parametrize("length", [20, len(post(BODY)) - 20], ids=["in its head", "in its body"])
def test_a_request_that_is_still_coming_is_waited_for(tmp_path: Path, length: int) -> None:
    """Its connection is not idle, though nothing is being answered."""

    async def work() -> None:
        async with serving(tmp_path, host) as served:
            caller = await served.connect()
            assert await caller.ask() == 200
            caller.writer.write(post(BODY)[:length])
            await seen(lambda: served.protocols[0].pieces == 2, "the first of it")
            served.clock.passes(3 * KEEP_S)
            assert await caller.ask(post(BODY)[length:]) == 200

    with Upstream(upstream.answers("ok")) as host:
        on_a_loop(work)


def test_an_answer_in_the_moment_of_the_timer_begins_a_wait(tmp_path: Path) -> None:
    """Idle for no time at all is not busy: the connection is looked at again."""

    async def work() -> None:
        async with serving(tmp_path) as served:
            caller = await served.connect()
            assert await caller.ask() == 200
            served.clock.now += KEEP_S
            assert await caller.ask() == 200
            served.clock.passes(0)
            served.clock.passes(KEEP_S)
            assert await caller.is_closed()

    on_a_loop(work)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/other"])
def test_a_body_behind_its_refusal_does_not_keep_the_connection(tmp_path: Path, path: str) -> None:
    """A caller without a key is answered before its body is there; what comes of that is no new request."""

    async def work() -> None:
        async with serving(tmp_path, keys="k") as served:
            caller = await served.connect()
            whole = post(BODY, path=path)
            assert await caller.ask(whole[: -len(BODY)]) == 401
            caller.writer.write(BODY)
            await seen(lambda: served.protocols[0].requests, "the body")
            served.clock.passes(KEEP_S)
            assert await caller.is_closed()

    on_a_loop(work)


def test_who_leaves_is_not_waited_for(tmp_path: Path) -> None:
    """A connection that is gone leaves no timer, which would hold all of it."""

    async def work() -> None:
        async with serving(tmp_path) as served:
            caller = await served.connect()
            assert await caller.ask() == 200
            assert len(served.clock.timers) == 1
            caller.writer.close()
            await seen(lambda: not served.clock.timers, "the end of its timer")

    on_a_loop(work)
