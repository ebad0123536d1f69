"""What a caller got: a streamed or whole answer, read as strictly as a careful client can."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx2

Json = dict[str, Any]


@dataclass
class Answer:
    """An answer as its caller sees it; ``faults`` are the promises of the protocol it breaks."""

    text: str = ""
    status: int = 0
    ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    usages: list[Json] = field(default_factory=list)
    names: set[tuple[str, int]] = field(default_factory=set)
    roles: int = 0
    is_done: bool = False
    is_resumed: bool = False
    error: Json | None = None
    backends: list[str] = field(default_factory=list)
    seen_fields: set[str] = field(default_factory=set)
    longest_gap_s: float = 0.0

    @property
    def usage(self) -> tuple[int, int] | None:
        """Prompt and completion tokens."""
        if not self.usages:
            return None
        return self.usages[-1]["prompt_tokens"], self.usages[-1]["completion_tokens"]

    def faults(self, *, chat: bool = True, stream: bool = True) -> list[str]:
        """Name what a whole answer must not show; empty when it is as it should be."""
        wrong = []
        if self.status != 200 or self.error:
            return [f"status {self.status}, error {self.error}"]
        if len(self.finish_reasons) != 1:
            wrong.append(f"finish reasons {self.finish_reasons}")
        if len(self.names) != 1:
            wrong.append(f"ids and dates {sorted(self.names)}")
        if stream and not self.is_done:
            wrong.append("no [DONE]")
        if stream and self.roles != int(chat):
            wrong.append(f"{self.roles} role chunks")
        return wrong

    def leaks(self) -> set[str]:
        """Fields that only the gateway asked for."""
        return self.seen_fields & {"token_ids", "prompt_token_ids", "prompt_text"}


def ask(url: str, path: str, body: Json, *, timeout: float = 60, into: Answer | None = None) -> Answer:
    """POST a request and read its answer to the end; ``into`` may be watched while it grows."""
    answer = into or Answer()
    if body.get("stream"):
        return _ask_stream(url + path, body, timeout, answer)
    response = httpx2.post(url + path, json=body, timeout=timeout)
    answer.status = response.status_code
    _take(answer, response.json())
    return answer


def _ask_stream(url: str, body: Json, timeout: float, answer: Answer) -> Answer:
    with httpx2.stream("POST", url, json=body, timeout=timeout) as response:
        answer.status = response.status_code
        if response.status_code != 200:
            _take(answer, json.loads(response.read()))
            return answer
        last = time.monotonic()
        for line in response.iter_lines():
            answer.longest_gap_s = max(answer.longest_gap_s, time.monotonic() - last)
            last = time.monotonic()
            if line == "data: [DONE]":
                answer.is_done = True
            elif line.startswith("data: "):
                _take(answer, json.loads(line.removeprefix("data: ")))
    return answer


def _take(answer: Answer, payload: Json) -> None:
    """Note one event, or a whole answer."""
    if "error" in payload:
        answer.error = payload["error"]
        return
    answer.names.add((payload["id"], payload["created"]))
    answer.seen_fields |= _said_fields(payload)
    if payload.get("usage"):
        answer.usages.append(payload["usage"])
    about = payload.get("sive") or {}
    answer.is_resumed |= bool(about.get("resumed"))
    answer.backends += [about["backend"]] if about.get("backend") else []
    for choice in payload["choices"]:
        _take_choice(answer, choice)


def _take_choice(answer: Answer, choice: Json) -> None:
    said = choice.get("delta") or choice.get("message") or {}
    piece = choice.get("text") or said.get("content") or ""
    ids = choice.get("token_ids") or []
    answer.seen_fields |= _said_fields(choice)
    answer.roles += "role" in said
    answer.text += piece
    answer.ids += ids
    answer.pieces += [*[""] * (len(ids) - 1), piece] if piece or ids else []
    if choice.get("finish_reason"):
        answer.finish_reasons.append(choice["finish_reason"])


def _said_fields(part: Json) -> set[str]:
    """The fields that say something: vLLM writes many as null."""
    return {name for name, value in part.items() if value is not None}
