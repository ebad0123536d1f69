"""The gateway's wires over real sockets: what a good and a bad neighbour's bytes become."""

import asyncio
import gzip
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from sive.errors import LostError
from sive.wires import Wire, WireRequest
from sive.wires.aiohttp import AiohttpWire
from sive.wires.httpx import HttpxWire
from sive.wires.plain import HIGH_WATER_BYTES, TURN_BYTES, PlainWire

from tests.conftest import until
from tests.lab import upstream
from tests.lab.upstream import Exchange, Manner, Upstream

WIRES: list[Callable[..., Wire]] = [PlainWire, AiohttpWire, HttpxWire]
every_wire = pytest.mark.parametrize("make", WIRES)


def run(make: Callable[..., Wire], work: Callable[[Wire], Awaitable[Any]], **options: Any) -> Any:
    """Run ``work`` with a wire on a loop of its own, of the kind that the wire is used with."""

    async def whole() -> Any:
        wire = make(**options)
        try:
            return await work(wire)
        finally:
            await wire.aclose()

    factory = asyncio.new_event_loop if make is HttpxWire else uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(whole())


def post(host: Upstream, body: bytes = b"{}") -> WireRequest:
    """A request."""
    return WireRequest("POST", f"{host.url}/chat/completions?x=1", {"content-type": "application/json"}, body)


async def fetch(wire: Wire, request: WireRequest) -> tuple[int, dict[str, str], bytes]:
    """Ask, read to the end, give the connection back."""
    response = await wire.open(request)
    try:
        body = b"".join([piece async for piece in response])
    finally:
        await response.aclose()
    return response.status, dict(response.headers), body


def raw(*pieces: bytes, closes: bool = False) -> Manner:
    """Sends exactly these pieces."""

    async def manner(exchange: Exchange) -> None:
        for piece in pieces:
            await exchange.raw(piece)
            await asyncio.sleep(0)
        if closes:
            exchange.writer.close()

    return manner


@every_wire
def test_a_request_arrives_as_it_was_made(make: Callable[..., Wire]) -> None:
    """Method, path with its query, headers and body; the connection is used again."""
    with Upstream(upstream.answers("ok")) as host:

        async def twice(wire: Wire) -> None:
            for _ in range(2):
                assert (await fetch(wire, post(host, b'{"model":"m"}')))[0] == 200

        run(make, twice)
        assert [seen.path for seen in host.seen] == ["/v1/chat/completions?x=1"] * 2
        assert host.seen[0].body == {"model": "m"}
        assert host.seen[0].headers["content-type"] == "application/json"
        assert host.seen[0].headers["host"] == f"127.0.0.1:{host.port}"


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndata\r\n3\r\n: \xc3\r\n1\r\n\xa9\r\n0\r\n\r\n"
)
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ndata: \xc3\xa9"


@pytest.mark.parametrize("reply", [CHUNKED, SIZED])
@every_wire
def test_any_split_gives_the_same_body(make: Callable[..., Wire], reply: bytes) -> None:
    """Cut at every byte, heads, chunk sizes and characters included."""
    with Upstream(raw()) as host:

        async def all_cuts(wire: Wire) -> None:
            for cut in range(1, len(reply)):
                host.manner = raw(reply[:cut], reply[cut:])
                assert (await fetch(wire, post(host)))[2] == b"data: \xc3\xa9", cut

        run(make, all_cuts)


@every_wire
def test_bodies_may_end_with_the_connection(make: Callable[..., Wire]) -> None:
    """Without a length the end is the close; interim replies before the real one are skipped."""
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    with Upstream(
        raw(interim + b"HTTP/1.1 200 OK\r\nX-A: b\r\n\r\n", b"all ", b"of it", closes=True)
    ) as host:
        status, headers, body = run(make, lambda wire: fetch(wire, post(host)))
    assert (status, body) == (200, b"all of it")
    assert headers["x-a"] == "b"
    assert "link" not in headers


@pytest.mark.parametrize(
    ("manner", "why"),
    [
        (upstream.resets, {"reset"}),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", closes=True), {"eof"}),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf", closes=True), {"eof"}),
        (upstream.cuts_after(1, with_reset=True), {"reset", "eof"}),
        (raw(b"SSH-2.0-OpenSSH_9\r\n", closes=True), {"malformed", "eof"}),
        (
            raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", closes=True),
            {"malformed", "eof"},
        ),
        (
            raw(b"HTTP/1.1 200 OK\r\n" + b"a: " + b"x" * 200_000 + b"\r\n\r\n", closes=True),
            {"malformed", "eof"},
        ),
    ],
)
@every_wire
def test_a_broken_reply_is_a_loss_with_its_reason(
    make: Callable[..., Wire], manner: Manner, why: set[str]
) -> None:
    """Never a clean end, never a foreign exception."""
    with Upstream(manner) as host, pytest.raises(LostError) as lost:
        run(make, lambda wire: fetch(wire, post(host)))
    assert lost.value.why in why


@every_wire
def test_nobody_there(make: Callable[..., Wire]) -> None:
    """Refused, unknown names and silence while connecting."""
    for url, why in (("http://127.0.0.1:1/v1", "refused"), ("http://no.such.host.invalid/v1", "dns")):
        with pytest.raises(LostError) as lost:
            run(make, lambda wire, url=url: fetch(wire, WireRequest("POST", url, {}, b"x")))
        assert lost.value.why == why
        assert "Errno" in str(lost.value) or str(lost.value)


@every_wire
def test_redirects_are_not_followed(make: Callable[..., Wire]) -> None:
    """A key never travels to another host."""
    with Upstream(upstream.answers("x")) as other:
        moved = f"HTTP/1.1 307 X\r\nLocation: {other.url}\r\nContent-Length: 0\r\n\r\n".encode()
        with Upstream(raw(moved)) as host:
            status, _, _ = run(make, lambda wire: fetch(wire, post(host)))
        assert status == 307
        assert other.seen == []


@every_wire
def test_leaving_in_the_middle_closes_the_connection(make: Callable[..., Wire]) -> None:
    """The backend sees it at once, so the GPU stops; also before the head."""
    with Upstream(upstream.talks_forever) as host:

        async def leave(wire: Wire) -> None:
            response = await wire.open(post(host))
            async for _ in response:
                break
            await response.aclose()
            await asyncio.to_thread(until, lambda: host.seen[0].left_at)
            host.manner = upstream.stays_silent
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(wire.open(post(host)), 0.2)
            await asyncio.to_thread(until, lambda: host.seen[1].left_at)

        run(make, leave)


def test_a_closed_idle_connection_is_told_apart() -> None:
    """A backend that closed it meanwhile has not seen the request: that is not a failure of its."""
    with Upstream(upstream.answers("ok")) as host:

        async def again(wire: Wire) -> None:
            await fetch(wire, post(host))
            host.manner = upstream.resets  # on the second request, before a byte
            with pytest.raises(LostError) as lost:
                await fetch(wire, post(host))
            assert lost.value.why == "reset_reused"
            host.manner = upstream.answers("fresh")
            assert (await fetch(wire, post(host)))[0] == 200

        run(PlainWire, again)


def test_idle_connections_do_not_pile_up() -> None:
    """After a burst the old ones are closed as the newer ones come back, and all when the wire closes."""
    with Upstream(upstream.answers("ok")) as host:

        async def burst(wire: Wire) -> None:
            await asyncio.gather(*(fetch(wire, post(host)) for _ in range(20)))
            assert isinstance(wire, PlainWire)
            (idle,) = wire._idle.values()
            assert len(idle) > 1
            for connection in idle:
                connection.idle_since -= 100
            await fetch(wire, post(host))
            assert len(idle) == 1
            await wire.aclose()
            assert len(idle) == 0
            await fetch(wire, post(host))
            assert len(idle) == 0

        run(PlainWire, burst)


def test_a_second_reply_that_nobody_asked_for_is_not_the_first() -> None:
    """Both in one segment: the first is read, the second ignored, the connection not used again."""
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none"
    two = b"HTTP/1.1 503 No\r\nContent-Length: 3\r\n\r\ntwo"
    with Upstream(raw(one + two)) as host:

        async def ask(wire: Wire) -> None:
            for _ in range(2):
                status, _, body = await fetch(wire, post(host))
                assert (status, body) == (200, b"one")

        run(PlainWire, ask)


def test_a_key_with_a_line_break_is_refused_here() -> None:
    """It would desynchronise the connection, or smuggle a header."""
    request = WireRequest("POST", "http://127.0.0.1:1/v1", {"authorization": "Bearer sk\r\nx: y"}, b"")
    for make in (PlainWire, AiohttpWire):
        with pytest.raises(LostError) as lost:
            run(make, lambda wire: fetch(wire, request))
        assert lost.value.why in ("malformed", "refused")
        assert "sk" not in str(lost.value)


def test_a_netrc_is_not_sent_to_backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords that lie about on a machine are for others."""
    (tmp_path / ".netrc").write_text("default login me password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    with Upstream(upstream.answers("ok")) as host:
        for make in WIRES:
            run(make, lambda wire: fetch(wire, post(host)))
        assert not any("authorization" in seen.headers for seen in host.seen)


def test_a_body_that_nobody_takes_is_not_buffered_without_end() -> None:
    """Reading pauses, so the backend feels that its reader is slow."""
    total = 0

    async def floods(exchange: Exchange) -> None:
        nonlocal total
        await exchange.head()
        while not exchange.gone.is_set():
            await exchange.piece(b"x" * 65_536)
            total += 65_536

    with Upstream(floods) as host:

        async def listen_late(wire: Wire) -> int:
            response = await wire.open(post(host))
            before, since = -1, time.monotonic()
            while total != before or time.monotonic() - since < 0.2:  # until the flood stands still
                if total != before:
                    before, since = total, time.monotonic()
                await asyncio.sleep(0.02)
            pieces = aiter(response)
            first = len(await anext(pieces))
            for _ in range(20):
                await anext(pieces)
            await response.aclose()
            return first

        assert run(PlainWire, listen_late) < 4 * HIGH_WATER_BYTES
    assert total < 64_000_000


@pytest.mark.parametrize("wire", [AiohttpWire, PlainWire])
def test_a_compressed_reply_is_refused(wire: type[Wire]) -> None:
    """It was not asked for, and a few bytes may unpack to any number."""
    packed = gzip.compress(b"hello")
    reply = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed
    with Upstream(raw(reply)) as host, pytest.raises(LostError, match="content-encoding gzip"):
        run(wire, lambda made: fetch(made, post(host)))


class Taker:
    """A receiver that notes in which turn of the loop each piece came."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.over = asyncio.get_running_loop().create_future()

    def on_head(self, status: int, headers: Any) -> None:
        """The head."""

    def on_data(self, data: bytes) -> None:
        """A piece."""
        self.pieces.append(data)

    def on_end(self) -> None:
        """The end."""
        self.over.set_result("end")

    def on_lost(self, lost: LostError) -> None:
        """No end."""
        self.over.set_result(lost.why)


@pytest.mark.parametrize(("closes", "ended"), [(False, "end"), (True, "eof")])
def test_a_burst_is_read_in_turns_and_whole(closes: bool, ended: str) -> None:
    """A neighbour who sends a megabyte at once does not hold up the others, and nothing of it is lost."""
    body = bytes(range(256)) * 4096
    head = b"HTTP/1.1 200 X\r\ncontent-length: %d\r\n\r\n" % (len(body) + closes)

    async def work(wire: Wire) -> None:
        taker = Taker()
        exchange = wire.send(post(host), taker)
        exchange.pause()
        exchange.resume()
        assert await asyncio.wait_for(taker.over, 10) == ended
        assert b"".join(taker.pieces) == body
        assert max(map(len, taker.pieces)) <= TURN_BYTES

    with Upstream(raw(head + body, closes=closes)) as host:
        run(PlainWire, work)
