"""The OpenAI shapes sive authors: errors, chunks, answers, usage; JSON in and out."""

import re
import time
import uuid
from collections.abc import Iterable
from typing import Any, Literal

import pydantic_core

from sive.errors import RequestError

Json = dict[str, Any]
Endpoint = Literal["chat/completions", "completions", "embeddings", "messages", "responses"]
FinishReason = Literal["stop", "length"]

_MODEL = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*')

NOT_ITS_SHAPE = (ValueError, TypeError, AttributeError, LookupError)
"""What reading a host's JSON raises that has another shape than OpenAI's."""

DONE = b"data: [DONE]\n\n"
JSON_HEADERS = {"content-type": "application/json"}
SSE_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}


def dumps(value: Any) -> bytes:
    """JSON bytes: compact, UTF-8; a number too large to be one (``1e999``) becomes null."""
    return pydantic_core.to_json(value, inf_nan_mode="null")


def loads(data: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: not JSON; NaN and Infinity are not JSON.
    """
    return pydantic_core.from_json(data, allow_inf_nan=False)


def with_model(raw: bytes, theirs: str, ours: str) -> bytes | None:
    """A request's own bytes under another model name; None when it is not plain where that stands.

    Inside JSON strings every quote is escaped, so ``"model"`` is a key or a whole string; where it stands
    once, and no letter of it is spelled as an escape, it is the request's own key. Writing a body anew takes
    as long as reading it.
    """
    found = _MODEL.search(raw)
    spelled = dumps(theirs)
    if found is None or not raw.startswith(spelled, found.end()):
        return None
    if raw.count(b'"model"') != 1 or b"\\u006" in raw:
        return None
    return raw[: found.end()] + dumps(ours) + raw[found.end() + len(spelled) :]


def event(payload: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + dumps(payload) + b"\n\n"


def error(message: str, *, type: str, param: str | None = None, code: str | None = None) -> Json:  # noqa: A002
    """The OpenAI error object."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def error_of(problem: RequestError) -> Json:
    """The OpenAI error object of a wrong request."""
    return error(problem.message, type=problem.type, param=problem.param, code=problem.code)


def passed_on(status: int, body: bytes) -> Json:
    """A backend's error as the caller gets it: as it came, in OpenAI's frame when it had none."""
    try:
        payload = loads(body)
    except ValueError:
        payload = None
    if isinstance(payload, dict) and isinstance(payload.get("error"), dict):
        return payload
    said = (
        payload.get("message") or payload.get("error") or payload.get("detail")
        if isinstance(payload, dict)
        else ""
    )
    return error(str(said or f"the backend answered HTTP {status}"), type="invalid_request_error")


def choices_of(chunk: Json) -> list[Json]:
    """The choices of a chunk or an answer.

    Raises:
        ValueError: they have another shape than OpenAI's.
    """
    choices: Any = chunk.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise ValueError("choices are no list of objects")
    return choices


def new_id(endpoint: Endpoint) -> str:
    """A fresh id for an answer."""
    return ("chatcmpl-" if endpoint == "chat/completions" else "cmpl-") + uuid.uuid4().hex


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """The usage object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class AnswerShape:
    """Builds the chunks, or the one JSON object, of an answer; they share one ``id`` and one ``created``."""

    def __init__(self, endpoint: Endpoint, model: str) -> None:
        self._chat = endpoint == "chat/completions"
        self._head: Json = {"id": new_id(endpoint), "created": int(time.time()), "model": model}

    def role(self, index: int = 0) -> Json:
        """The first chunk of a choice in a chat stream."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}, None, index)

    def text(self, text: str, finish_reason: FinishReason | None = None, index: int = 0) -> Json:
        """A chunk with text, or the last one of a choice, which carries a ``finish_reason``."""
        if not self._chat:
            return self._chunk({"text": text}, finish_reason, index)
        return self._chunk({"delta": {"content": text} if text else {}}, finish_reason, index)

    def usage(self, prompt_tokens: int, completion_tokens: int) -> Json:
        """The chunk that ``stream_options.include_usage`` asks for."""
        chunk = self._chunk({}, None, 0)
        return chunk | {"choices": [], "usage": usage(prompt_tokens, completion_tokens)}

    def whole(
        self, said: Iterable[tuple[str, FinishReason]], prompt_tokens: int, completion_tokens: int
    ) -> Json:
        """The answer as one JSON object; ``said``: each choice's text and why it ended."""
        return {
            **self._head,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": [
                _choice(index, {"message": {"role": "assistant", "content": text}}, finish_reason)
                if self._chat
                else _choice(index, {"text": text}, finish_reason)
                for index, (text, finish_reason) in enumerate(said)
            ],
            "usage": usage(prompt_tokens, completion_tokens),
        }

    def _chunk(self, said: Json, finish_reason: str | None, index: int) -> Json:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": [_choice(index, said, finish_reason)]}


def _choice(index: int, said: Json, finish_reason: str | None) -> Json:
    return {"index": index, **said, "logprobs": None, "finish_reason": finish_reason}
