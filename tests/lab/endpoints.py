"""Manners of hosts that have more than chat: embeddings, OpenAI's responses, Anthropic's messages."""

import json
from collections.abc import Mapping

from tests.lab.upstream import Exchange, Json, Manner, answers, says

NOT_FOUND: Json = {"detail": "Not Found"}


def by_path(manners: Mapping[str, Manner], *, otherwise: Manner | None = None) -> Manner:
    """A host with these endpoints, by the end of their path; what it has not is vLLM's 404."""
    lacks = otherwise or says(404, NOT_FOUND)

    async def manner(exchange: Exchange) -> None:
        found = (one for path, one in manners.items() if exchange.seen.path.endswith(path))
        await next(found, lacks)(exchange)

    return manner


def chats(*words: str) -> Manner:
    """A host that has only chat completions."""
    return by_path({"/chat/completions": answers(*words)})


async def embeds(exchange: Exchange) -> None:
    """Answers with a vector for each input."""
    given = exchange.seen.body["input"]
    texts = given if isinstance(given, list) else [given]
    data = [
        {"object": "embedding", "index": index, "embedding": [0.5, -0.25, float(len(text))]}
        for index, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 5, "total_tokens": 5}
    await exchange.json({"object": "list", "model": exchange.model, "data": data, "usage": usage})


async def typed(exchange: Exchange, *events: Json) -> None:
    """Writes events under the names of their types."""
    for payload in events:
        data = json.dumps(payload, ensure_ascii=False).encode()
        await exchange.piece(b"event: " + payload["type"].encode() + b"\ndata: " + data + b"\n\n")
        exchange.seen.events += 1


def response(exchange: Exchange, status: str, text: str = "") -> Json:
    """A response object."""
    part = {"type": "output_text", "text": text, "annotations": []}
    message = {"id": "msg_lab", "type": "message", "role": "assistant", "status": status, "content": [part]}
    usage = {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 10,
    }
    return {
        "id": "resp_lab",
        "object": "response",
        "created_at": 1,
        "model": exchange.model,
        "status": status,
        "error": None,
        "output": [message] if text else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage if status == "completed" else None,
    }


def responds(*words: str, ends: bool = True) -> Manner:
    """Answers as a host that has responses; without ``ends`` the connection drops after the words."""

    async def manner(exchange: Exchange) -> None:
        text = "".join(words)
        if not exchange.seen.body.get("stream"):
            await exchange.json(response(exchange, "completed", text))
            return
        await exchange.head()
        where: Json = {"item_id": "msg_lab", "output_index": 0, "content_index": 0}
        begun = response(exchange, "in_progress")
        await typed(exchange, {"type": "response.created", "sequence_number": 0, "response": begun})
        for number, word in enumerate(words, 1):
            delta = {"type": "response.output_text.delta", "sequence_number": number, "delta": word}
            await typed(exchange, {**delta, "logprobs": [], **where})
        if not ends:
            exchange.close()
            return
        whole = response(exchange, "completed", text)
        end = {"type": "response.completed", "sequence_number": len(words) + 1, "response": whole}
        await typed(exchange, end)
        await exchange.end()

    return manner


def message(exchange: Exchange, *texts: str) -> Json:
    """A message of Anthropic's."""
    return {
        "id": "msg_lab",
        "type": "message",
        "role": "assistant",
        "model": exchange.model,
        "content": [{"type": "text", "text": text} for text in texts],
        "stop_reason": "end_turn" if texts else None,
        "stop_sequence": None,
        "usage": {"input_tokens": 7, "output_tokens": 3 if texts else 0},
    }


def sends_messages(*words: str, ends: bool = True) -> Manner:
    """Answers as a host that has Anthropic's messages; without ``ends`` it drops after the words."""

    async def manner(exchange: Exchange) -> None:
        if not exchange.seen.body.get("stream"):
            await exchange.json(message(exchange, "".join(words)))
            return
        await exchange.head()
        block = {"type": "text", "text": ""}
        await typed(
            exchange,
            {"type": "message_start", "message": message(exchange)},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "ping"},
        )
        for word in words:
            delta = {"type": "text_delta", "text": word}
            await typed(exchange, {"type": "content_block_delta", "index": 0, "delta": delta})
        if not ends:
            exchange.close()
            return
        end = {"stop_reason": "end_turn", "stop_sequence": None}
        await typed(
            exchange,
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": end, "usage": {"output_tokens": 3}},
            {"type": "message_stop"},
        )
        await exchange.end()

    return manner
