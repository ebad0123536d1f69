"""An OpenAI-shaped server on raw sockets with scripted manners: frameworks cannot misbehave like this."""

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, cast

from tests.lab.voice import Voice

Json = dict[str, Any]
LAB = Voice("lab")
T = TypeVar("T")


@dataclass(slots=True)
class Seen:
    """A request as it arrived, and what was done: ``status``, ``events`` that went out, the ``end``.

    ``left_at``: when the other side left before that end.
    """

    at: float
    method: str
    path: str
    headers: dict[str, str]
    body: Json
    left_at: float | None = None
    status: int | None = None
    events: int = 0
    end: str = "open"

    def line(self, since: float) -> str:
        """One line of a log."""
        asked = {name: self.body[name] for name in ("max_tokens", "stream", "stop") if name in self.body}
        asked |= {"prompt": f"{len(self.body['prompt'])} long"} if "prompt" in self.body else {}
        left = f", left at {self.left_at - since:.3f}" if self.left_at is not None else ""
        done = f"{self.status or 'no head'}, {self.events} events, {self.end}{left}"
        return f"{self.at - since:7.3f} {self.path} {json.dumps(asked)}: {done}"


@dataclass
class Exchange:
    """One request and the socket to answer it on.

    ``voice``: who speaks here. ``number``: how many requests this host had before. ``body``: the request as
    the host chooses to read it.
    """

    seen: Seen
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    voice: Voice = LAB
    number: int = 0
    body: Json = field(init=False)

    def __post_init__(self) -> None:
        self.body = dict(self.seen.body)

    async def raw(self, data: bytes) -> None:
        """Write bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int = 200, content_type: str = "text/event-stream", **headers: str) -> None:
        """Write a head that is followed by chunked transfer."""
        self.seen.status = status
        lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", "transfer-encoding: chunked"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.raw("\r\n".join([*lines, "", ""]).encode())

    async def piece(self, data: bytes) -> None:
        """Write one transfer chunk."""
        await self.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def event(self, payload: Json) -> None:
        """Write one server-sent event, spaced as vLLM does."""
        await self.piece(event(payload))
        self.seen.events += 1

    async def done(self) -> None:
        """Write the end mark and end the transfer."""
        await self.piece(b"data: [DONE]\n\n")
        await self.end()

    async def end(self) -> None:
        """End the transfer as HTTP wants it."""
        await self.raw(b"0\r\n\r\n")
        self.seen.end = "ended"

    async def json(self, payload: Json, status: int = 200, **headers: str) -> None:
        """Write a whole JSON reply."""
        self.seen.status = status
        body = json.dumps(payload).encode()
        lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.raw("\r\n".join([*lines, "", ""]).encode() + body)
        self.seen.end = "ended"

    def close(self) -> None:
        """Close with FIN."""
        self.seen.end = "FIN"
        self.writer.close()

    def reset(self) -> None:
        """Close with RST."""
        self.seen.end = "RST"
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    @property
    def model(self) -> str:
        """The model that was asked for."""
        return str(self.seen.body.get("model"))


Manner = Callable[[Exchange], Awaitable[None]]


def event(payload: Json) -> bytes:
    """A server-sent event, spaced as vLLM does."""
    return b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def chunk(exchange: Exchange, delta: Json, finish_reason: str | None = None) -> Json:
    """A chat completion chunk."""
    return {
        "id": "chatcmpl-lab",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": exchange.model,
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
    }


def answers(*words: str) -> Manner:
    """Streams the words and ends as it should, or gives them as one JSON object."""

    async def manner(exchange: Exchange) -> None:
        counted = {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 7 + len(words)}
        if not exchange.seen.body.get("stream"):
            message = {"role": "assistant", "content": "".join(words)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            await exchange.json({"id": "x", "model": exchange.model, "choices": [choice], "usage": counted})
            return
        await exchange.head()
        await exchange.event(chunk(exchange, {"role": "assistant", "content": ""}))
        for word in words:
            await exchange.event(chunk(exchange, {"content": word}))
        await exchange.event(chunk(exchange, {}, "stop"))
        if (exchange.seen.body.get("stream_options") or {}).get("include_usage"):
            await exchange.event({**chunk(exchange, {}), "choices": [], "usage": counted})
        await exchange.done()

    return manner


def says(status: int, payload: Json | None = None, **headers: str) -> Manner:
    """Answers with a status and an error object."""

    async def manner(exchange: Exchange) -> None:
        said = payload or {"error": {"message": "lab error", "type": "server_error", "code": None}}
        await exchange.json(said, status, **headers)

    return manner


def html(status: int) -> Manner:
    """Answers as a proxy does whose backend is gone."""

    async def manner(exchange: Exchange) -> None:
        await exchange.head(status, "text/html")
        await exchange.piece(b"<html><h1>Bad gateway</h1></html>")
        await exchange.raw(b"0\r\n\r\n")

    return manner


def cuts_after(words: int, *, with_reset: bool = False) -> Manner:
    """Streams so many words of an endless answer, then drops the connection."""

    async def manner(exchange: Exchange) -> None:
        await exchange.head()
        for number in range(words):
            await exchange.event(chunk(exchange, {"content": f"w{number} "}))
        exchange.reset() if with_reset else exchange.close()

    return manner


async def resets(exchange: Exchange) -> None:
    """Drops the connection before a byte."""
    exchange.reset()


async def stays_silent(exchange: Exchange) -> None:
    """Accepts the request and says nothing."""
    await exchange.gone.wait()


async def says_head_only(exchange: Exchange) -> None:
    """Sends a 200 head and a role, and then nothing."""
    await exchange.head()
    await exchange.event(chunk(exchange, {"role": "assistant", "content": ""}))
    await exchange.gone.wait()


async def talks_forever(exchange: Exchange) -> None:
    """Streams a word every 10 ms until the other side leaves."""
    await exchange.head()
    while not exchange.gone.is_set():
        await exchange.event(chunk(exchange, {"content": "word "}))
        await asyncio.sleep(0.01)


async def stalls(exchange: Exchange) -> None:
    """Streams two words, and then nothing."""
    await exchange.head()
    await exchange.event(chunk(exchange, {"content": "two "}))
    await exchange.event(chunk(exchange, {"content": "words "}))
    await exchange.gone.wait()


class Loop:
    """An event loop in a thread of its own; a context manager."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        """Start to run."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it there, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()


class Upstream:
    """The server; a context manager. ``seen`` logs every request, ``manner`` may be changed at any time.

    ``loop``: a running one that several servers share; its own when left out. ``tls``: makes it HTTPS.
    """

    def __init__(
        self,
        manner: Manner,
        *,
        port: int = 0,
        voice: Voice = LAB,
        loop: Loop | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.manner = manner
        self.voice = voice
        self.seen: list[Seen] = []
        self._own = contextlib.ExitStack()
        self._shared = loop
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        """Start to serve."""
        self._loop = self._shared or self._own.enter_context(Loop())
        self._server = self._loop.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        """Drop all connections."""
        with self._own:
            self._loop.run(self._stop())

    async def _start(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: _Line(self._serve, loop), sock=self._socket, ssl=self._tls)

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, line: "_Line", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while not writer.is_closing() and (seen := await _read_request(reader)):
                exchange = Exchange(seen, writer, voice=self.voice, number=len(self.seen))
                self.seen.append(seen)
                line.now = exchange
                await self.manner(exchange)
                line.now = None
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # they left, or this server stops
        finally:
            writer.close()


class _Line(asyncio.StreamReaderProtocol):
    """A connection that notes at once when the other side leaves in the middle of an exchange."""

    def __init__(self, serve: Callable[..., Awaitable[None]], loop: asyncio.AbstractEventLoop) -> None:
        self.now: Exchange | None = None
        super().__init__(asyncio.StreamReader(loop=loop), lambda *streams: serve(self, *streams), loop=loop)

    def eof_received(self) -> bool | None:
        self._left()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._left()
        super().connection_lost(exc)

    def _left(self) -> None:
        if self.now is not None and not self.now.gone.is_set():
            self.now.seen.left_at = time.monotonic()
            self.now.gone.set()


async def _read_request(reader: asyncio.StreamReader) -> Seen | None:
    head = await reader.readuntil(b"\r\n\r\n")
    request, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = request.split(" ")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Seen(time.monotonic(), method, path, headers, json.loads(body) if body else {})
