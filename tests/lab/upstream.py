"""An OpenAI-shaped server on raw sockets with scripted manners: frameworks cannot misbehave like this."""

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

Json = dict[str, Any]


@dataclass(slots=True)
class Seen:
    """A request as it arrived."""

    at: float
    method: str
    path: str
    headers: dict[str, str]
    body: Json
    left_at: float | None = None


@dataclass(slots=True)
class Exchange:
    """One request and the socket to answer it on."""

    seen: Seen
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def raw(self, data: bytes) -> None:
        """Write bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int = 200, content_type: str = "text/event-stream", **headers: str) -> None:
        """Write a head that is followed by chunked transfer."""
        lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", "transfer-encoding: chunked"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.raw("\r\n".join([*lines, "", ""]).encode())

    async def piece(self, data: bytes) -> None:
        """Write one transfer chunk."""
        await self.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def event(self, payload: Json) -> None:
        """Write one server-sent event, spaced as vLLM does."""
        await self.piece(
            b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
        )

    async def done(self) -> None:
        """Write the end mark and end the transfer."""
        await self.piece(b"data: [DONE]\n\n")
        await self.raw(b"0\r\n\r\n")

    async def json(self, payload: Json, status: int = 200, **headers: str) -> None:
        """Write a whole JSON reply."""
        body = json.dumps(payload).encode()
        lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.raw("\r\n".join([*lines, "", ""]).encode() + body)

    def reset(self) -> None:
        """Close with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    @property
    def model(self) -> str:
        """The model that was asked for."""
        return str(self.seen.body.get("model"))


Manner = Callable[[Exchange], Awaitable[None]]


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
        exchange.reset() if with_reset else exchange.writer.close()

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


class Upstream:
    """The server; a context manager. ``seen`` logs every request, ``manner`` may be changed at any time."""

    def __init__(self, manner: Manner, *, port: int = 0) -> None:
        self.manner = manner
        self.seen: list[Seen] = []
        self._loop = asyncio.new_event_loop()
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        """Start to serve."""
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
            while not writer.is_closing() and (seen := await _read_request(reader)):
                self.seen.append(seen)
                exchange = Exchange(seen, writer)
                watch = asyncio.ensure_future(_until_gone(reader, exchange))
                try:
                    await self.manner(exchange)
                finally:
                    watch.cancel()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _until_gone(reader: asyncio.StreamReader, exchange: Exchange) -> None:
    # Between requests there is nothing to read, so what ends the wait is the other side's end.
    while not reader.at_eof():
        if reader._buffer:  # type: ignore[attr-defined]
            return
        await asyncio.sleep(0.002)
    exchange.seen.left_at = time.monotonic()
    exchange.gone.set()


async def _read_request(reader: asyncio.StreamReader) -> Seen | None:
    head = await reader.readuntil(b"\r\n\r\n")
    request, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = request.split(" ")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Seen(time.monotonic(), method, path, headers, json.loads(body) if body else {})
