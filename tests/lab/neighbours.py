"""Manners of hosts that answer, but not what was asked for."""

import gzip
import json

from tests.lab.upstream import Exchange, Manner, answers, chunk, event

BLOCK = b"x" * 65_536


async def _whole(exchange: Exchange, body: bytes, *lines: str, status: int = 200) -> None:
    exchange.seen.status = status
    head = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *lines, "", ""]
    await exchange.raw("\r\n".join(head).encode() + body)
    exchange.seen.end = "ended"


def _kind(exchange: Exchange) -> str:
    streams = exchange.seen.body.get("stream")
    return f"content-type: {'text/event-stream' if streams else 'application/json'}"


async def html(exchange: Exchange) -> None:
    """A login page, with a 200."""
    await _whole(exchange, b"<html><form>Log in</form></html>", "content-type: text/html")


async def gzipped(exchange: Exchange) -> None:
    """A good answer, compressed although nobody asked for that."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
    said = event(chunk(exchange, {"content": "a"})) + event(chunk(exchange, {}, "stop"))
    body = said if exchange.seen.body.get("stream") else json.dumps({"choices": [choice]}).encode()
    await _whole(exchange, gzip.compress(body), _kind(exchange), "content-encoding: gzip")


async def empty(exchange: Exchange) -> None:
    """Nothing, with a 200."""
    await _whole(exchange, b"", _kind(exchange))


async def error_in_200(exchange: Exchange) -> None:
    """An error, with a 200."""
    said = {"error": {"message": "out of credit at http://inner", "type": "server_error", "code": 500}}
    body = event(said) if exchange.seen.body.get("stream") else json.dumps(said).encode()
    await _whole(exchange, body, _kind(exchange))


async def half_json(exchange: Exchange) -> None:
    """JSON that ends in the middle, in a body that ends as it should."""
    body = (
        b'data: {"choices": [{"delta": {"con\n\n' if exchange.seen.body.get("stream") else b'{"choices": [{"'
    )
    await _whole(exchange, body, _kind(exchange))


async def half_body(exchange: Exchange) -> None:
    """A body that ends before its length."""
    head = f"HTTP/1.1 200 X\r\n{_kind(exchange)}\r\ncontent-length: 9999\r\n\r\n"
    await exchange.raw(head.encode() + b'{"choices": [')
    exchange.close()


async def hundred_megabytes(exchange: Exchange) -> None:
    """One JSON object, until the other side leaves or has all of it."""
    await exchange.head(200, "application/json")
    await exchange.piece(b'{"choices": [{"message": {"content": "')
    for _ in range(1600):
        await exchange.piece(BLOCK)
    await exchange.end()


async def endless_line(exchange: Exchange) -> None:
    """An event, or JSON, without an end."""
    await exchange.head(200, _kind(exchange).partition(": ")[2])
    await exchange.piece(b'data: {"choices": [{"delta": {"content": "')
    while not exchange.gone.is_set():
        await exchange.piece(BLOCK)


async def endless_line_after_a_word(exchange: Exchange) -> None:
    """A word, and then an event without an end."""
    await exchange.head()
    await exchange.event(chunk(exchange, {"content": "word "}))
    await exchange.piece(b'data: {"choices": [{"delta": {"content": "')
    while not exchange.gone.is_set():
        await exchange.piece(BLOCK)


def redirects(status: int, to: str) -> Manner:
    """Sends the caller elsewhere."""

    async def manner(exchange: Exchange) -> None:
        await _whole(exchange, b"", f"location: {to}", _kind(exchange), status=status)

    return manner


GOOD = answers("Deus ", "sive ", "Natura")
