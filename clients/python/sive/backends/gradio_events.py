"""A Gradio app's events as OpenAI's chunks: each says the whole text so far, a chunk only what is new."""

import re
from typing import Any

from sive import sse
from sive.backends.pieces import TextChunks
from sive.errors import LostError, UnavailableError
from sive.protocol import Json, loads

QUOTA_REST_S = 600.0
"""For a ZeroGPU quota that does not say when there is more."""

DAY_S = 86_400.0
"""A quota is a day's; what an app says beyond that is not believed."""

_QUOTA = re.compile(r"zerogpu|gpu quota", re.IGNORECASE)
_AGAIN_IN = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)")

_KINDS = {
    "process_generating": "generating",
    "process_completed": "complete",
    "unexpected_error": "error",
    "heartbeat": "heartbeat",
    "estimation": "heartbeat",
}
"""What the queue calls an event, and what a call by name does."""


class Reading:
    """Reads the events of one call, by name or through the queue.

    What the app takes back cannot be taken back from the caller: the answer breaks off there.
    """

    def __init__(self, chunks: TextChunks) -> None:
        self._chunks = chunks
        self._splitter = sse.Splitter()
        self._text = ""

    def __call__(self, raw: bytes) -> bytes:
        """OpenAI's events for these bytes.

        Raises:
            UnavailableError: it failed before it said anything.
            LostError: an event that is too large.
        """
        for one in sse.split(_whole(self._splitter, raw)):
            if (event := _read(one)) is not None and not self._chunks.is_over:
                self._event(*event)
        return self._chunks.take()

    def _event(self, kind: str, data: Any) -> None:
        match kind:
            case "generating":
                self._says(answer_in(data))
            case "complete":
                self._completes(data)
            case "error":
                self._chunks.fail(_failure(data))
            case "heartbeat":
                self._chunks.beat()

    def _says(self, text: str) -> None:
        if text.startswith(self._text):
            self._chunks.add(text[len(self._text) :])
            self._text = text
        else:
            self._chunks.fail(UnavailableError("rewritten", "it took back what it had said"))

    def _completes(self, data: Any) -> None:
        if not data:  # somebody cancelled it
            self._chunks.fail(UnavailableError("gradio_error", "its function ended without a result"))
            return
        text = answer_in(data)
        if text.startswith(self._text) or text.strip() != self._text.strip():
            self._says(text)  # else the app stripped its last word: no more was taken back than blanks
        if not self._text:
            self._chunks.fail(UnavailableError("no_answer", "its function ended without a text"))
        self._chunks.end()


def last_word(raw: bytes) -> bytes:
    """The last event that is no heartbeat: it says what all before it said, and is read in no time.

    Raises:
        LostError: an event that is too large.
    """
    for one in sse.backwards(_whole(sse.Splitter(), raw)):
        if (event := _read(one)) is not None and event[0] in ("generating", "complete", "error"):
            return one
    return b""


def answer_in(outputs: Any) -> str:
    """The assistant's text in what a function returns: a text, pairs, or a list of messages."""
    outputs = outputs if isinstance(outputs, list) else [outputs]
    for output in outputs:
        if isinstance(output, list) and output and _is_turn(output[-1]):
            return _last_turn(output)
    return next((output for output in outputs if isinstance(output, str)), "")


def _is_turn(entry: Any) -> bool:
    is_pair = isinstance(entry, list) and len(entry) == 2
    return is_pair or (isinstance(entry, dict) and "role" in entry)


def _last_turn(turns: list[Any]) -> str:
    if isinstance(turns[-1], list):
        return str(turns[-1][1] or "")
    texts: list[str] = []
    for turn in reversed(turns):
        if not isinstance(turn, dict) or turn.get("role") != "assistant":
            break
        if not (turn.get("metadata") or {}).get("title"):  # else it is a thought, shown apart
            texts.append(_text(turn.get("content")))
    return "\n\n".join(reversed(texts))


def _text(content: Any) -> str:
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    parts = (part.get("text") if isinstance(part, dict) else part for part in content)
    return "".join(part for part in parts if isinstance(part, str))


def _whole(splitter: sse.Splitter, raw: bytes) -> bytes:
    try:
        return splitter.feed(raw)
    except ValueError as exc:
        raise LostError("too_large", str(exc)) from exc


def _read(event: bytes) -> tuple[str, Any] | None:
    """Its kind and what it says; None for comments, and for what is no JSON: the next one says it again."""
    try:
        data = sse.read(event)
        return None if data is None else _plain(data.name, loads(data.text))
    except ValueError:
        return None


def _plain(name: str, said: Any) -> tuple[str, Any]:
    """An event of the queue as one of a call by name."""
    if not (isinstance(said, dict) and isinstance(said.get("msg"), str) and not name):
        return name, said
    kind = _KINDS.get(said["msg"], "")
    if kind == "error":
        return kind, said.get("message")
    output = said.get("output")
    output = output if isinstance(output, dict) else {}
    if kind in ("generating", "complete"):
        return (kind, output.get("data")) if said.get("success", True) else ("error", output)
    return kind, None


def _failure(data: Any) -> UnavailableError:
    """What an app says may hold paths and addresses: only the quota is told in its words."""
    said: Json = data if isinstance(data, dict) else {"error": data}
    text = f"{said.get('title') or ''} {said.get('error') or ''}"
    if not _QUOTA.search(text):
        return UnavailableError("gradio_error", "its function failed")
    if (again := _AGAIN_IN.search(text)) is None:
        return UnavailableError("gpu_quota", "its ZeroGPU quota is used up", rest_s=QUOTA_REST_S)
    days, hours, minutes, seconds = (int(part or 0) for part in again.groups())
    rest_s = min(float(((days * 24 + hours) * 60 + minutes) * 60 + seconds), DAY_S)
    message = f"its ZeroGPU quota is used up; there is more in {again.group()}"
    return UnavailableError("gpu_quota", message, rest_s=rest_s)
