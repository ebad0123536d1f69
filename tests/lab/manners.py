"""Scripted manners of a host whose voice answers: each breaks one thing, and they compose."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable

from tests.lab.speech import RefusedError, Speech
from tests.lab.upstream import Exchange, Json, Manner, event, says

Moment = Callable[[int, bytes], bool]
"""Is it time to break off? ``(tokens that are out, the event that would come next)``"""
Break = Callable[[Exchange, bytes], Awaitable[bool]]
"""Does the damage in place of the event that would come next; True when the speech goes on with it."""
Spelling = Callable[[bytes], bytes]


def as_it_is(raw: bytes) -> bytes:
    """Events as vLLM spells them."""
    return raw


async def ends_well(exchange: Exchange) -> None:
    """The end mark, and the end of the transfer."""
    await exchange.done()


def speaks(
    *,
    breaks: Break | None = None,
    when: Moment = lambda told, raw: True,
    end: Manner = ends_well,
    spelled: Spelling = as_it_is,
    step: int = 1,
    apart: bool = False,
) -> Manner:
    """Answers in its voice; ``breaks`` once at the moment ``when`` it may; the rest as ``Speech`` says."""

    async def manner(exchange: Exchange) -> None:
        if exchange.seen.method == "GET":
            return await exchange.json(models(exchange))
        try:
            speech = Speech(exchange.voice, exchange.seen.path, exchange.body, step=step, apart=apart)
        except RefusedError as refused:
            return await exchange.json(refused.payload, refused.status)
        if not speech.is_stream:
            return await _whole(exchange, speech, breaks)
        await exchange.head()
        if await _stream(exchange, speech, breaks, when, spelled):
            await end(exchange)
        return None

    return manner


async def _stream(
    exchange: Exchange, speech: Speech, breaks: Break | None, when: Moment, spelled: Spelling
) -> bool:
    told = 0
    for said in speech.events():
        raw = spelled(event(said.payload))
        if breaks is not None and when(told, raw):
            now, breaks = breaks, None
            if not await now(exchange, raw):
                return False
        await exchange.piece(raw)
        exchange.seen.events += 1
        told += said.tokens
    return True


async def _whole(exchange: Exchange, speech: Speech, breaks: Break | None) -> None:
    """An answer in one piece: what breaks a stream breaks its body in the middle."""
    whole = speech.whole()
    if breaks is None:
        await exchange.json(whole)
        return
    body = json.dumps(whole, ensure_ascii=False).encode()
    exchange.seen.status = 200
    await exchange.raw(
        b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        + body[: len(body) // 2]
    )
    if await breaks(exchange, b""):
        await exchange.raw(body[len(body) // 2 :])


def models(exchange: Exchange) -> Json:
    """The list of models: one, of any name, with its weights."""
    voice = exchange.voice
    one = {"id": "lab", "object": "model", "created": 1, "owned_by": "lab", "root": "lab", "parent": None}
    return {
        "object": "list",
        "data": [one | {"max_model_len": voice.max_model_len, "weights": voice.weights}],
    }


# Moments


def after(tokens: int) -> Moment:
    """Once so many tokens are out."""
    return lambda told, raw: told >= tokens


def in_a_character(tokens: int) -> Moment:
    """Once so many tokens are out and the next event has a character of several bytes."""
    return lambda told, raw: told >= tokens and not raw.isascii()


# Breaks


async def fin(exchange: Exchange, raw: bytes) -> bool:
    """Closes the connection."""
    exchange.close()
    return False


async def rst(exchange: Exchange, raw: bytes) -> bool:
    """Resets the connection."""
    exchange.reset()
    return False


async def clean_end(exchange: Exchange, raw: bytes) -> bool:
    """Ends the transfer as if all had been said."""
    await exchange.end()
    return False


async def half_chunk(exchange: Exchange, raw: bytes) -> bool:
    """Announces a transfer chunk and closes in the middle of it."""
    await exchange.raw(f"{len(raw):x}\r\n".encode() + raw[: len(raw) // 2])
    exchange.close()
    return False


async def half_event(exchange: Exchange, raw: bytes) -> bool:
    """Ends the transfer cleanly in the middle of an event."""
    await exchange.piece(raw[: len(raw) // 2] or b" ")
    await exchange.end()
    return False


async def half_character(exchange: Exchange, raw: bytes) -> bool:
    """Closes in the middle of the bytes of a character."""
    inside = next((at for at, byte in enumerate(raw) if byte > 127), 0) + 1
    await exchange.piece(raw[:inside] or b"\xc3")
    exchange.close()
    return False


async def silence(exchange: Exchange, raw: bytes) -> bool:
    """Says nothing more, and holds the connection."""
    exchange.seen.end = "silent"
    await exchange.gone.wait()
    return False


async def nonsense(exchange: Exchange, raw: bytes) -> bool:
    """Puts an event between two others that is no JSON, and goes on."""
    if raw:
        await exchange.piece(b'data: {"id": "x", "choices": [{"index": 0, "delta": {"content": \n\n')
    return True


async def bare_done(exchange: Exchange, raw: bytes) -> bool:
    """The end mark, without a finish_reason."""
    await exchange.done()
    return False


async def error_event(exchange: Exchange, raw: bytes) -> bool:
    """An error where text should be, as vLLM does when its engine dies; then the end mark."""
    said = {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}
    await exchange.event({"error": said})
    await exchange.done()
    return False


async def abort(exchange: Exchange, raw: bytes) -> bool:
    """``finish_reason: "abort"`` and a clean end, as vLLM does when it is told to stop."""
    chunk = json.loads(raw.removeprefix(b"data: "))
    chunk["choices"][0]["finish_reason"] = "abort"
    content = "text" if "text" in chunk["choices"][0] else "delta"
    chunk["choices"][0][content] = "" if content == "text" else {"content": ""}
    if chunk["choices"][0].get("token_ids"):
        chunk["choices"][0]["token_ids"] = []
    await exchange.event(chunk)
    await exchange.done()
    return False


def pause(seconds: float) -> Break:
    """Waits, and goes on as if nothing had been."""

    async def breaks(exchange: Exchange, raw: bytes) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(exchange.gone.wait(), seconds)
        return True

    return breaks


def cuts(tokens: int, how: Break = fin, *, step: int = 1, apart: bool = False) -> Manner:
    """Answers, and breaks off once so many tokens are out."""
    when = in_a_character(tokens) if how is half_character else after(tokens)
    if how is abort:
        return _aborts(tokens)
    return speaks(breaks=how, when=when, step=step, apart=apart)


def _aborts(tokens: int) -> Manner:
    stream = speaks(breaks=abort, when=after(tokens))

    async def manner(exchange: Exchange) -> None:
        if exchange.body.get("stream"):
            return await stream(exchange)
        speech = Speech(exchange.voice, exchange.seen.path, {**exchange.body, "max_tokens": tokens})
        whole = speech.whole()
        whole["choices"][0]["finish_reason"] = "abort"
        return await exchange.json(whole)

    return manner


# Ends


async def no_done(exchange: Exchange) -> None:
    """The transfer ends without the end mark."""
    await exchange.end()


async def never_ends(exchange: Exchange) -> None:
    """All is said but for the end mark, and the connection stays."""
    await silence(exchange, b"")


# Spellings


def crlf(raw: bytes) -> bytes:
    """CRLF line ends and a comment before each event, as some proxies write."""
    return b": keep-alive\r\n\r\n" + raw.replace(b"\n", b"\r\n")


# Errors

OPENAI_TOO_LONG: Json = {
    "error": {
        "message": "This model's maximum context length is 128 tokens. However, your messages are longer.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
}
VLLM_TOO_LONG: Json = {
    "error": {
        "message": "This model's maximum context length is 128 tokens. However, your request has 9000 input"
        " tokens. Please reduce the length of the input messages.",
        "type": "BadRequestError",
        "param": "input_tokens",
        "code": 400,
    }
}
REFUSED_CONTENT: Json = {
    "error": {
        "message": "Your request was rejected as a result of our safety system.",
        "type": "invalid_request_error",
        "param": None,
        "code": "content_policy_violation",
    }
}


def unknown_field(name: str) -> Json:
    """OpenAI's own words for a field it does not know."""
    said = f"Unknown parameter: '{name}'."
    return {
        "error": {
            "message": said,
            "type": "invalid_request_error",
            "param": name,
            "code": "unknown_parameter",
        }
    }


async def error_first(exchange: Exchange) -> None:
    """A 200 whose first event, or whose body, is an error."""
    said = {"error": {"message": "overloaded", "type": "server_error", "code": 500}}
    if not exchange.body.get("stream"):
        return await exchange.json(said)
    await exchange.head()
    await exchange.event(said)
    return await exchange.done()


async def head_only(exchange: Exchange) -> None:
    """Sends a 200 head, and then nothing."""
    await exchange.head()
    exchange.seen.end = "silent"
    await exchange.gone.wait()


# Composition


def first(count: int, manner: Manner, then: Manner) -> Manner:
    """One manner for the first requests of a host, another for the rest."""
    return chosen(lambda exchange: manner if exchange.number < count else then)


def flapping(down: int, up: int, manner: Manner, then: Manner) -> Manner:
    """Down for so many requests, up for so many, and again."""
    return chosen(lambda exchange: manner if exchange.number % (down + up) < down else then)


def chosen(choose: Callable[[Exchange], Manner]) -> Manner:
    """A manner for each request."""

    async def manner(exchange: Exchange) -> None:
        await choose(exchange)(exchange)

    return manner


def held(may: threading.Event, then: Manner) -> Manner:
    """Does as another, but not before it may."""

    async def manner(exchange: Exchange) -> None:
        while not may.is_set():  # noqa: ASYNC110 - it is set in another thread
            await asyncio.sleep(0.01)
        await then(exchange)

    return manner


def ignores(*names: str, then: Manner) -> Manner:
    """Does not know some fields, and says nothing of it."""

    async def manner(exchange: Exchange) -> None:
        for name in names:
            exchange.body.pop(name, None)
        await then(exchange)

    return manner


def rejects(name: str, then: Manner) -> Manner:
    """Knows its fields and refuses another, as OpenAI's own API does."""
    return chosen(lambda exchange: says(400, unknown_field(name)) if name in exchange.body else then)


def rejects_prefill(then: Manner) -> Manner:
    """Refuses a conversation whose last word is the assistant's."""
    said = {
        "message": "The last message must be from the user.",
        "type": "invalid_request_error",
        "code": None,
    }
    return chosen(lambda exchange: says(400, {"error": said}) if _is_prefilled(exchange) else then)


def ignores_prefill(then: Manner) -> Manner:
    """Answers from the beginning whatever the assistant has said already."""

    async def manner(exchange: Exchange) -> None:
        if _is_prefilled(exchange):
            exchange.body["messages"] = exchange.body["messages"][:-1]
            exchange.body["continue_final_message"] = False
        await then(exchange)

    return manner


def _is_prefilled(exchange: Exchange) -> bool:
    messages = exchange.body.get("messages") or [{}]
    return bool(messages[-1].get("role") == "assistant")
