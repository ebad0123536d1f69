"""A response object, filled with what a chat completion says."""

import time
import uuid
from typing import Any

from sive.chunks import finish_reasons
from sive.protocol import Json

_ECHOED = ("instructions", "max_output_tokens", "metadata", "temperature", "top_p", "user")
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why an answer has no end of its own, by finish_reason."""


class ResponseAnswer:
    """One response with one message. ``asked``: the request, parts of which it repeats."""

    def __init__(self, asked: Json) -> None:
        self.item_id = f"msg_{uuid.uuid4().hex}"
        self.is_complete = False
        self._finish_reason: str | None = None
        self._head: Json = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "background": False,
            "error": None,
            "incomplete_details": None,
            **{name: asked.get(name) for name in _ECHOED},
            "model": asked.get("model"),
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "truncation": "disabled",
            "usage": None,
        }

    def take(self, said: Json) -> None:
        """What a chunk, or a whole chat completion, says beside its text.

        Raises:
            ValueError: it has another shape than OpenAI's.
        """
        for name in ("model", "sive"):
            if said.get(name) is not None:
                self._head[name] = said[name]
        if isinstance(usage := said.get("usage"), dict):
            self._head["usage"] = _usage(usage)
        for reason in finish_reasons(said).values():
            self._finish_reason = reason

    @property
    def is_cut_short(self) -> bool:
        """Did it end before its end?"""
        return self._finish_reason in _INCOMPLETE

    def message(self, text: str | None, status: str) -> Json:
        """The message; None: it has no content yet."""
        content = [] if text is None else [text_part(text)]
        return {
            "id": self.item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def json(self, status: str, output: list[Json]) -> Json:
        """The response as it stands."""
        response = self._head | {"status": status, "output": output}
        if status == "incomplete":
            response["incomplete_details"] = {"reason": _INCOMPLETE[str(self._finish_reason)]}
        return response

    def whole(self, text: str) -> Json:
        """The response at its end."""
        status = "incomplete" if self.is_cut_short else "completed"
        return self.json(status, [self.message(text, status)])


def text_part(text: str) -> Json:
    """A part of a message's content."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Json) -> Json:
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    cached = _detail(usage.get("prompt_tokens_details"), "cached_tokens")
    reasoning = _detail(usage.get("completion_tokens_details"), "reasoning_tokens")
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + completion,
    }


def _detail(details: Any, name: str) -> int:
    return _count(details.get(name)) if isinstance(details, dict) else 0


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
