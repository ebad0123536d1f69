"""Answers in other pieces than was asked for: one as a stream, a stream as one, a text as chunks."""

from sive.answers import Answer
from sive.backends import Reply
from sive.chunks import is_error
from sive.errors import UnavailableError
from sive.protocol import (
    DONE,
    JSON_HEADERS,
    SSE_HEADERS,
    AnswerShape,
    Endpoint,
    FinishReason,
    Json,
    choices_of,
    dumps,
    error,
    event,
    loads,
)


def as_stream(reply: Reply) -> Reply | None:
    """An answer in one piece as the stream it would have been; None when it is no answer."""
    if reply.status != 200:
        return None
    try:
        answer = loads(reply.body)
        if not isinstance(answer, dict) or is_error(answer):
            return None
        choices = [_delta(choice) for choice in choices_of(answer)]
    except ValueError:
        return None
    if not choices:
        return None
    kind = "chat.completion.chunk" if "delta" in choices[0] else "text_completion"
    head = {name: value for name, value in answer.items() if name not in ("choices", "usage")}
    chunks = [head | {"object": kind, "choices": choices}]
    if isinstance(counted := answer.get("usage"), dict):
        chunks.append(head | {"object": kind, "choices": [], "usage": counted})
    return Reply(200, SSE_HEADERS, b"".join(map(event, chunks)) + DONE)


def _delta(choice: Json) -> Json:
    message = choice.get("message")
    if not isinstance(message, dict):
        return choice
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message = message | {"tool_calls": [{"index": at, **call} for at, call in enumerate(calls)]}
    rest = {name: value for name, value in choice.items() if name != "message"}
    return rest | {"delta": {name: value for name, value in message.items() if value is not None}}


def as_one(endpoint: Endpoint, events: bytes) -> Reply:
    """The answer that a stream says, in one piece.

    Raises:
        UnavailableError: it says none, or not all of one.
    """
    answer = Answer(endpoint)
    try:
        answer.append(events)
        said = answer.json()
    except ValueError as exc:
        raise UnavailableError("malformed", "it sent what is no answer") from exc
    if is_error(said) or not all(choice["finish_reason"] for choice in said["choices"]):
        raise UnavailableError("eof", "its answer broke off")
    return Reply(200, JSON_HEADERS, dumps(said))


class TextChunks:
    """A text that grows, as chunks of OpenAI's: what is said since ``take`` was last called.

    ``dropped``: what of the request could not be passed on; it is named in the first chunk
    and in the last.
    """

    def __init__(self, endpoint: Endpoint, model: str, dropped: list[str] | None = None) -> None:
        self.is_over = False
        self._shape = AnswerShape(endpoint, model)
        self._is_chat = endpoint == "chat/completions"
        self._said: Json = {"sive": {"dropped": dropped}} if dropped else {}
        self._has_begun = False
        self._out: list[bytes] = []

    def take(self) -> bytes:
        """The events so far, once."""
        out, self._out = b"".join(self._out), []
        return out

    def add(self, text: str) -> None:
        """More text."""
        if text and not self.is_over:
            self._begin()
            self._out.append(event(self._shape.text(text)))

    def beat(self) -> None:
        """A sign of life that is no text."""
        self._out.append(b": waiting\n\n")

    def end(self, finish_reason: FinishReason = "stop", usage: tuple[int, int] | None = None) -> None:
        """It is complete; ``usage``: tokens of prompt and answer, where somebody counted them."""
        if self.is_over:
            return
        self._begin()
        self._out.append(event(self._shape.text("", finish_reason) | self._said))
        if usage is not None:
            self._out.append(event(self._shape.usage(*usage)))
        self._out.append(DONE)
        self.is_over = True

    def fail(self, failure: UnavailableError) -> None:
        """It failed: the reason itself while nothing was said, then an error in its stream.

        Raises:
            UnavailableError: nothing was said.
        """
        if self.is_over:
            return
        self.is_over = True
        if not self._has_begun:
            raise failure
        self._out.append(event(error(failure.message, type="server_error", code=failure.reason)))

    def _begin(self) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        if self._is_chat or self._said:
            first = self._shape.role() if self._is_chat else self._shape.text("")
            self._out.append(event(first | self._said))
