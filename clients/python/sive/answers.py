"""One JSON answer, put together from the chunks of its stream."""

from collections.abc import KeysView
from typing import Any

from sive import sse
from sive.chunks import index_of
from sive.protocol import NOT_ITS_SHAPE, Endpoint, Json, choices_of, loads

PORTION_BYTES = 32_768

_SAYS_NOTHING_ELSE = frozenset({"index", "delta", "logprobs", "finish_reason", "stop_reason"})

_OBJECTS: dict[Endpoint, str] = {"chat/completions": "chat.completion", "completions": "text_completion"}


class Answer:
    """Takes a stream's whole events, and is one answer at its end.

    Everything a chunk says is kept: text, tool calls and log probabilities are joined, of what is said
    again the last word counts. Events are read in portions, so that a long answer does not hold up the
    event loop at its end.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._events: list[bytes] = []
        self._waiting_bytes = 0
        self._head: Json = {}
        self._choices: dict[int, Json] = {}
        self._messages: dict[int, Json] = {}
        self._keys: KeysView[str] = {}.keys()

    def append(self, events: bytes) -> None:
        """Take whole events.

        Raises:
            ValueError: the chunks have another shape than OpenAI's.
        """
        self._events.append(events)
        self._waiting_bytes += len(events)
        if self._waiting_bytes > PORTION_BYTES:
            self._read()

    def json(self) -> Json:
        """The answer.

        Raises:
            ValueError: the chunks have another shape than OpenAI's, or are none.
        """
        self._read()
        if not self._choices:
            raise ValueError("a stream without an answer")
        choices = [_complete(self._choices[index]) for index in sorted(self._choices)]
        return self._head | {"object": _OBJECTS[self._endpoint], "choices": choices}

    def _read(self) -> None:
        for one in sse.split(b"".join(self._events)):
            chunk = _chunk(one)
            try:
                if chunk is not None and not self._takes_text(chunk):
                    self._join(chunk)
            except NOT_ITS_SHAPE as exc:
                raise ValueError(f"a chunk of another shape than OpenAI's: {exc}") from exc
        self._events.clear()
        self._waiting_bytes = 0

    def _takes_text(self, chunk: Json) -> bool:
        """The short way of the many chunks that only add text to what the ones before them began."""
        choices: list[Json] = chunk.get("choices") or []
        if chunk.keys() != self._keys or len(choices) != 1 or choices[0].keys() - _SAYS_NOTHING_ELSE:
            return False
        choice = choices[0]
        delta, message = choice.get("delta") or {}, self._messages.get(choice.get("index", 0)) or {}
        text, said = delta.get("content"), message.get("content")
        if len(delta) != 1 or choice.get("finish_reason") is not None or choice.get("logprobs") is not None:
            return False
        if not isinstance(text, str) or not isinstance(said, str):
            return False
        message["content"] = said + text
        return True

    def _join(self, chunk: Json) -> None:
        for choice in choices_of(chunk):
            index = index_of(choice)
            begun = self._choices.setdefault(index, _begun(choice, self._endpoint))
            _join_choice(begun, choice)
            self._messages[index] = begun.get("message", {})
        self._head |= {key: value for key, value in chunk.items() if value is not None and key != "choices"}
        self._keys = chunk.keys()


def _chunk(event: bytes) -> Json | None:
    """What one event says; None for comments and the end mark."""
    if event.startswith(b"data: {") and event.count(b"\n") == 2:
        chunk: Json = loads(event[6:])
        return chunk
    data = sse.read(event)
    return None if data is None or data.is_done else data.json()


def _begun(choice: Json, endpoint: Endpoint) -> Json:
    said: Json = {"text": ""}
    if endpoint == "chat/completions":
        said = {"message": {"role": "assistant", "content": None}}
    return {"index": choice.get("index", 0), **said, "logprobs": None, "finish_reason": None}


def _join_choice(whole: Json, part: Json) -> None:
    for key, value in part.items():
        if key == "delta":
            _join_message(whole["message"], value)
        elif key == "text":
            whole["text"] += value or ""
        elif key == "logprobs" and value is not None:
            whole["logprobs"] = _join_lists(whole["logprobs"] or {}, value)
        elif isinstance(value, list) and isinstance(whole.get(key), list):
            whole[key] = whole[key] + value
        elif value is not None:
            whole[key] = value


def _join_message(message: Json, delta: Json) -> None:
    for key, value in delta.items():
        have = message.get(key)
        if key == "tool_calls" and value:
            message[key] = _join_calls(have or [], value)
        elif key == "function_call" and value:
            message[key] = _join_function(have or {}, value)
        elif isinstance(value, str) and isinstance(have, str) and key != "role":
            message[key] = have + value
        elif value is not None:
            message[key] = value


def _join_calls(calls: list[Json], parts: list[Json]) -> list[Json]:
    by_index = dict(enumerate(calls))
    for part in parts:
        call = by_index.setdefault(part.get("index", 0), {"id": None, "type": "function", "function": {}})
        call |= {key: part[key] for key in ("id", "type") if part.get(key)}
        call["function"] = _join_function(call["function"], part.get("function") or {})
    return [by_index[index] for index in sorted(by_index)]


def _join_function(function: Json, part: Json) -> Json:
    arguments = (function.get("arguments") or "") + (part.get("arguments") or "")
    return {"name": part.get("name") or function.get("name"), "arguments": arguments}


def _join_lists(whole: Json, part: Any) -> Json:
    if not isinstance(part, dict):
        raise ValueError("logprobs that are no object")
    joined = {
        key: (whole.get(key) or []) + value if isinstance(value, list) else value
        for key, value in part.items()
    }
    return whole | {key: value for key, value in joined.items() if value is not None or key not in whole}


def _complete(choice: Json) -> Json:
    message = choice.get("message")
    if message is not None and message.get("tool_calls") and not message["content"]:
        message["content"] = None
    return choice
