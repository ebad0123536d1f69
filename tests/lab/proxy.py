"""A proxy that cuts: it passes HTTP on to an engine, and breaks a streamed reply off after so many tokens."""

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Json = dict[str, Any]
How = Literal["fin", "rst", "half", "stall"]

REQUEST_FIELD = "user"  # OpenAI's own field: every hop passes it on, and an engine only notes it


@dataclass(slots=True)
class Cut:
    """Break one streamed reply to ``user`` off as soon as ``tokens`` tokens have passed.

    ``how``: ``fin`` and ``rst`` close the connection, ``half`` closes it in the middle of the next event
    (inside a character of several bytes where there is one), ``stall`` says nothing more.
    ``passed`` is the number of tokens that got through: more than ``tokens`` when the engine put several
    into one event. ``port`` is where it was cut, ``at`` when; ``left_at`` is when the other side went.
    """

    user: str
    tokens: int
    how: How = "fin"
    passed: int = 0
    port: int = 0
    at: float | None = None
    left_at: float | None = None


class Cuts:
    """What is armed and what was cut. Proxies in front of equal engines share it: who is first, cuts."""

    def __init__(self) -> None:
        self._armed: dict[str, deque[Cut]] = defaultdict(deque)
        self.done: list[Cut] = []

    def arm(self, user: str, tokens: int, how: How = "fin") -> Cut:
        """Arm one cut of one reply; armed again, the next reply to the same caller is cut too."""
        cut = Cut(user, tokens, how)
        self._armed[user].append(cut)
        return cut

    def take(self, body: Json) -> Cut | None:
        """Return what is armed for this request, which must be a streamed one."""
        armed = self._armed.get(str(body.get(REQUEST_FIELD)))
        return armed.popleft() if armed and body.get("stream") else None

    def log(self, cut: Cut, *, passed: int, port: int) -> None:
        """Note that it has happened."""
        cut.passed, cut.port, cut.at = passed, port, time.monotonic()
        self.done.append(cut)


@dataclass(slots=True)
class Head:
    """The first lines of a request or a reply, as bytes and as header names (lower case) to values."""

    raw: bytes
    first_line: str
    headers: dict[str, str]

    @property
    def is_chunked(self) -> bool:
        """Whether a chunked body follows."""
        return "chunked" in self.headers.get("transfer-encoding", "")

    @property
    def is_stream(self) -> bool:
        """Whether server-sent events follow."""
        return self.is_chunked and self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def length(self) -> int:
        """The length of a body that is not chunked."""
        return int(self.headers.get("content-length", "0"))


@dataclass(slots=True)
class Passing:
    """One connection of a caller, and the one to the engine that it is passed on to."""

    caller: asyncio.StreamWriter
    engine: asyncio.StreamWriter
    asked: asyncio.Queue[Cut | None] = field(default_factory=asyncio.Queue)
    cut: Cut | None = None

    def close(self) -> None:
        """Close both sides."""
        self.caller.close()
        self.engine.close()


class CuttingProxy:
    """The proxy in front of the server at ``port`` of this machine; a context manager.

    ``seen`` counts the requests that came through.
    """

    def __init__(self, port: int, cuts: Cuts) -> None:
        self.cuts = cuts
        self.seen = 0
        self._engine_port = port
        self._loop = asyncio.new_event_loop()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        """Start to pass on."""
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, sock=self._socket), self._loop
        ).result()
        return self

    def __exit__(self, *_: object) -> None:
        """Drop all connections."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            engine_reader, engine_writer = await asyncio.open_connection("127.0.0.1", self._engine_port)
        except OSError:
            reset(writer)
            return
        passing = Passing(writer, engine_writer)
        ways = [
            asyncio.ensure_future(_until_closed(self._pass_requests(reader, passing))),
            asyncio.ensure_future(_until_closed(self._pass_replies(engine_reader, passing))),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            passing.close()

    async def _pass_requests(self, reader: asyncio.StreamReader, passing: Passing) -> None:
        try:
            while head := await _read_head(reader):
                body = await reader.readexactly(head.length)
                self.seen += 1
                passing.asked.put_nowait(self.cuts.take(json.loads(body)) if body else None)
                passing.engine.write(head.raw + body)
        finally:
            if passing.cut is not None:
                passing.cut.left_at = time.monotonic()

    async def _pass_replies(self, reader: asyncio.StreamReader, passing: Passing) -> None:
        while head := await _read_head(reader):
            cut = passing.asked.get_nowait()
            passing.caller.write(head.raw)
            if head.is_stream:
                if await self._pass_stream(reader, passing, cut):
                    return
            elif head.is_chunked:
                async for chunk in _chunks(reader):
                    await _write_chunk(passing.caller, chunk)
            else:
                passing.caller.write(await reader.readexactly(head.length))

    async def _pass_stream(self, reader: asyncio.StreamReader, passing: Passing, cut: Cut | None) -> bool:
        """Pass a stream on, event by event; whether it was cut."""
        passed = 0
        async for event in _events(_chunks(reader)):
            if cut is not None and _is_due(cut, passed, event):
                self.cuts.log(cut, passed=passed, port=self._engine_port)
                await _perform(cut, passing, event)
                return True
            passed += tokens_of(event)
            await _write_chunk(passing.caller, event)
            if cut is not None and _is_reached(cut, passed):
                self.cuts.log(cut, passed=passed, port=self._engine_port)
                await _perform(cut, passing, b"")
                return True
        if cut is not None:
            cut.passed = passed  # there was nothing left to cut
        await _write_chunk(passing.caller, b"")
        return False


def tokens_of(event: bytes) -> int:
    """How many generated tokens an event carries: its token ids, or 1 where there is only text."""
    if not event.startswith(b"data: {"):
        return 0
    count = 0
    for choice in json.loads(event.removeprefix(b"data: ")).get("choices") or ():
        text = choice.get("text") or (choice.get("delta") or {}).get("content")
        count += len(choice.get("token_ids") or ()) or (1 if text else 0)
    return count


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def half(event: bytes) -> bytes:
    """The first part of an event: up to inside its first character of several bytes, else a half of it."""
    lead = next((at for at, byte in enumerate(event) if byte >= 0xC0), None)
    return event[: len(event) // 2 if lead is None else lead + 1]


def _is_reached(cut: Cut, passed: int) -> bool:
    """Whether the last event brought it: not before a token, and ``half`` needs one event more."""
    return cut.how != "half" and 0 < cut.tokens <= passed


def _is_due(cut: Cut, passed: int, event: bytes) -> bool:
    """Whether it must happen before this event."""
    return passed >= cut.tokens and (cut.how == "half" or cut.tokens == 0) and tokens_of(event) > 0


async def _perform(cut: Cut, passing: Passing, event: bytes) -> None:
    """Do to the caller's connection what ``cut.how`` says; a stall ends when the caller leaves."""
    if cut.how == "half":
        part = half(event)
        passing.caller.write(b"%x\r\n" % len(event) + part)
    await passing.caller.drain()
    if cut.how == "rst":
        reset(passing.caller)
    if cut.how == "stall":
        passing.cut = cut
        await asyncio.Event().wait()


async def _until_closed(way: Awaitable[None]) -> None:
    """Run one direction until either side is gone, which is no error here."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        await way


async def _read_head(reader: asyncio.StreamReader) -> Head:
    """Read a head.

    Raises:
        asyncio.IncompleteReadError: the other side has closed.
    """
    raw = await reader.readuntil(b"\r\n\r\n")
    first_line, *lines = raw.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return Head(raw, first_line, {name.lower(): value.strip() for name, _, value in pairs})


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the transfer chunks of a body, the empty one at its end included."""
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        chunk = (await reader.readexactly(size + 2))[:-2]
        yield chunk
        if not size:
            return


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield server-sent events whole, however they were cut into transfer chunks."""
    rest = b""
    async for chunk in chunks:
        *events, rest = (rest + chunk).split(b"\n\n")
        for event in events:
            yield event + b"\n\n"
    if rest:
        yield rest


async def _write_chunk(writer: asyncio.StreamWriter, chunk: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
    await writer.drain()
