"""What a voice answers in OpenAI's words, spelled as vLLM 0.32 spells it: chunks, or one object."""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from tests.lab.voice import VOCABULARY, Ids, Piece, Voice, bytes_of, encode, pieces, render

Json = dict[str, Any]

TOOL_ARGUMENTS = '{"idée": "œuvre — joie"}'
"""What every tool is called with."""


class RefusedError(Exception):
    """The request is wrong: the status and the body that vLLM answers."""

    def __init__(self, status: int, message: str, *, type: str = "BadRequestError", param: str = "") -> None:  # noqa: A002
        super().__init__(message)
        self.status = status
        self.payload: Json = {
            "error": {"message": message, "type": type, "param": param or None, "code": status}
        }


@dataclass(frozen=True, slots=True)
class Said:
    """One event of a stream, and how many tokens it carries."""

    payload: Json
    tokens: int = 0


class Speech:
    """The answer of a voice to one request.

    ``step`` tokens go into each chunk. ``apart``: the finish_reason has a chunk of its own, as OpenAI does.

    Raises:
        RefusedError: the request is wrong.
    """

    def __init__(self, voice: Voice, path: str, body: Json, *, step: int = 1, apart: bool = False) -> None:
        self.is_chat = path.endswith("chat/completions")
        self.is_stream = bool(body.get("stream"))
        self._voice = voice
        self._body = body
        self._step = step
        self._apart = apart
        _check_fields(body)
        self._prompts = [_rendered(body)] if self.is_chat else _prompts(body)
        for prompt in self._prompts:
            _check(prompt, self._voice)
        self._wants_ids = bool(body.get("return_token_ids"))
        kind = "chat.completion" if self.is_chat else "text_completion"
        self._head: Json = {
            "id": ("chatcmpl-" if self.is_chat else "cmpl-") + secrets.token_hex(16),
            "object": kind + (".chunk" if self.is_chat and self.is_stream else ""),
            "created": int(time.time()),
            "model": str(body.get("model")),
        }

    def chunk(self, choice: Json) -> Json:
        """A chunk of this answer with one choice."""
        return {**self._head, "choices": [choice]}

    # As a stream

    def events(self) -> Iterator[Said]:
        """The chunks, without the end mark."""
        counted = [0] * len(self._choices())
        if self.is_chat:
            yield from (Said(self._role(index)) for index in range(len(counted)))
        first = set(range(len(counted)))
        for turn in zip_longest(*(self._flow(*choice) for choice in self._choices())):
            for index, piece in enumerate(turn):
                if piece is not None:
                    counted[index] += len(piece.ids)
                    for part in self._parts(piece):
                        yield Said(self._spoken(index, part, is_first=index in first), len(part.ids))
                        first.discard(index)
        if (self._body.get("stream_options") or {}).get("include_usage"):
            yield Said({**self._head, "choices": [], "usage": self._usage(sum(counted))})

    def _parts(self, piece: Piece) -> list[Piece]:
        if not self._apart or piece.finish_reason is None:
            return [piece]
        return [Piece(piece.ids, piece.text), Piece([], "", piece.finish_reason, piece.stop_reason)]

    def _role(self, index: int) -> Json:
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        prompt = self._prompts[0] if self._wants_ids else None
        return {**self.chunk(choice), "prompt_token_ids": prompt, "prompt_text": None}

    def _spoken(self, index: int, piece: Piece, *, is_first: bool) -> Json:
        choice: Json = {"index": index, **self._delta(piece, is_first=is_first)}
        choice["logprobs"] = self._logprobs([piece])
        choice["finish_reason"] = self._reason(piece)
        if piece.finish_reason is not None or not self.is_chat:
            choice["stop_reason"] = piece.stop_reason
        if not self.is_chat:
            prompt = self._prompts[index // self._n]
            choice["prompt_token_ids"] = prompt if is_first and self._wants_ids else None
        choice["token_ids"] = piece.ids if self._wants_ids else None
        return self.chunk(choice)

    def _delta(self, piece: Piece, *, is_first: bool) -> Json:
        if not self.is_chat:
            return {"text": piece.text}
        if not self._calls_a_tool:
            return {"delta": {"content": piece.text}}
        call: Json = {"index": 0, "function": {"arguments": piece.text}}
        if is_first:
            call = {
                "index": 0,
                "id": "chatcmpl-tool-lab",
                "type": "function",
                "function": self._called(piece),
            }
        return {"delta": {"tool_calls": [call]}}

    def _called(self, piece: Piece) -> Json:
        return {"name": self._body["tools"][0]["function"]["name"], "arguments": piece.text}

    # In one piece

    def whole(self) -> Json:
        """The answer as one object."""
        spoken = [list(self._flow(*choice)) for choice in self._choices()]
        choices = [self._choice(index, flow) for index, flow in enumerate(spoken)]
        counted = sum(len(piece.ids) for flow in spoken for piece in flow)
        answer = {**self._head, "choices": choices, "usage": self._usage(counted)}
        if self.is_chat:
            answer["prompt_token_ids"] = self._prompts[0] if self._wants_ids else None
        return answer

    def _choice(self, index: int, flow: list[Piece]) -> Json:
        text = "".join(piece.text for piece in flow)
        choice: Json = {"index": index, "text": text}
        if self.is_chat:
            choice = {"index": index, "message": {"role": "assistant", "content": text, "tool_calls": []}}
        if self._calls_a_tool:
            called = {"name": self._body["tools"][0]["function"]["name"], "arguments": text}
            call = {"id": "chatcmpl-tool-lab", "type": "function", "function": called}
            choice["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice |= {"logprobs": self._logprobs(flow), "finish_reason": self._reason(flow[-1])}
        choice["stop_reason"] = flow[-1].stop_reason
        if not self.is_chat:
            choice["prompt_token_ids"] = self._prompts[index // self._n] if self._wants_ids else None
        choice["token_ids"] = [one for piece in flow for one in piece.ids] if self._wants_ids else None
        return choice

    # What both share

    @property
    def _n(self) -> int:
        return int(self._body.get("n") or 1)

    @property
    def _calls_a_tool(self) -> bool:
        asked = self._body.get("tools") and self._body.get("tool_choice") != "none"
        return bool(self.is_chat and asked and self._body["messages"][-1]["role"] == "user")

    def _choices(self) -> list[tuple[Ids, int]]:
        return [(prompt, number) for prompt in self._prompts for number in range(self._n)]

    def _flow(self, prompt: Ids, number: int) -> Iterator[Piece]:
        if self._calls_a_tool:
            return _tool_call()
        stop = self._body.get("stop") or ()
        return pieces(
            self._voice,
            prompt,
            max_tokens=_max_tokens(self._body, self._voice, prompt),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            salt=self._salt(prompt, number),
            step=self._step,
        )

    def _salt(self, prompt: Ids, number: int) -> str:
        temperature = self._body.get("temperature")
        if temperature == 0:
            return ""
        seed = self._body.get("seed")
        return secrets.token_hex(8) if seed is None else self._voice.salt(seed, prompt) + "," * number

    def _reason(self, piece: Piece) -> str | None:
        return "tool_calls" if self._calls_a_tool and piece.finish_reason == "stop" else piece.finish_reason

    def _logprobs(self, flow: list[Piece]) -> Json | None:
        if not self._body.get("logprobs"):
            return None
        ids = [one for piece in flow for one in piece.ids]
        if self.is_chat:
            return {"content": [_logprob(one) for one in ids]}
        tokens = [_logprob(one) for one in ids]
        offsets = [sum(len(token["token"]) for token in tokens[:at]) for at in range(len(tokens))]
        return {
            "text_offset": offsets,
            "token_logprobs": [token["logprob"] for token in tokens],
            "tokens": [token["token"] for token in tokens],
            "top_logprobs": [None for _ in tokens],
        }

    def _usage(self, completion_tokens: int) -> Json:
        prompt_tokens = sum(map(len, self._prompts))
        return {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "completion_tokens": completion_tokens,
        }


def _logprob(one: int) -> Json:
    raw = bytes_of([one])
    token = raw.decode("utf-8", "replace")
    return {"token": token, "logprob": -1 / (1 + one % 7), "bytes": list(raw), "top_logprobs": []}


def _tool_call() -> Iterator[Piece]:
    raw, sent = b"", 0
    for one in encode(TOOL_ARGUMENTS):
        raw += bytes_of([one])
        text = raw.decode("utf-8", "ignore")
        yield Piece([one], text[sent:])
        sent = len(text)
    yield Piece([257], "", "stop")


def _rendered(body: Json) -> Ids:
    continues = bool(body.get("continue_final_message"))
    if continues and body.get("add_generation_prompt", True):
        raise RefusedError(
            400, "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
        )
    return render(body["messages"], continues=continues)


def _prompts(body: Json) -> list[Ids]:
    prompt = body["prompt"]
    if isinstance(prompt, str):
        return [encode(prompt)]
    if isinstance(prompt[0], int):
        return [prompt]
    return [encode(one) if isinstance(one, str) else one for one in prompt]


def _check_fields(body: Json) -> None:
    asked = body.get("max_tokens")
    if asked is not None and asked < 1:
        raise RefusedError(400, f"max_tokens must be at least 1, got {asked}.", param="max_tokens")


def _check(prompt: Ids, voice: Voice) -> None:
    if outside := [one for one in prompt if not 0 <= one < VOCABULARY]:
        raise RefusedError(400, f"Token id {outside[0]} is out of vocabulary")
    if len(prompt) >= voice.max_model_len:
        raise RefusedError(
            400,
            f"This model's maximum context length is {voice.max_model_len} tokens. However, your request has "
            f"{len(prompt)} input tokens. Please reduce the length of the input messages.",
            param="input_tokens",
        )


def _max_tokens(body: Json, voice: Voice, prompt: Ids) -> int:
    room = voice.max_model_len - len(prompt)
    asked = body.get("max_completion_tokens") or body.get("max_tokens")
    return min(room, asked) if asked is not None else room if "messages" in body else 16
