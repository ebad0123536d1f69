"""What the doors ask the gateway, and its answer as text: they know no chunks and no choices."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from sive import sse
from sive.errors import LostError, RequestError
from sive.protocol import Json, loads

from sive_serve.doors.history import Messages
from sive_serve.gateway import CANCELLED_STATUS, Gateway
from sive_serve.inner import Inner

OPTIONS = ("max_tokens", "temperature", "top_p", "seed", "stop")
"""What a door passes on of a request, when it is there; ``max_new_tokens`` is what transformers calls one."""

TOLD = ("x-request-id", "x-sive-", "retry-after")
"""Headers that a door passes on, by how they begin."""

SPINOZA = "spinoza"

CUT = "the answer was cut: the server stops, or nobody read it for too long"


@dataclass(frozen=True, slots=True)
class Question:
    """One turn of a conversation with a model."""

    model: str
    messages: Messages
    options: Json = field(default_factory=dict)

    def body(self, *, stream: bool) -> Json:
        """As OpenAI spells it."""
        return {**self.options, "model": self.model, "messages": self.messages, "stream": stream}


def options(asked: Json) -> Json:
    """What of a request's fields the gateway knows; it checks their values itself."""
    found = {name: asked[name] for name in OPTIONS if asked.get(name) is not None}
    if "max_tokens" not in found and asked.get("max_new_tokens") is not None:
        found["max_tokens"] = asked["max_new_tokens"]
    return found


def known_model(gateway: Gateway, name: Any, what: str) -> str:
    """The served model of this name, in whatever case it is written.

    Raises:
        RequestError: 404, it names those that are served.
    """
    if isinstance(name, str) and (model := gateway.table.get(name) or gateway.table.get(name.lower())):
        return model.name
    known = ", ".join(gateway.table)
    shown = repr(name[:200]) if isinstance(name, str) else type(name).__name__
    raise RequestError(f"there is no {what} {shown}; known are {known}", status=404, code="model_not_found")


def default_model(gateway: Gateway) -> str:
    """Who answers clients that name nobody: as configured, else the old Space's Spinoza, else the first."""
    if (configured := gateway.settings.compat.model) is not None:
        return configured
    return SPINOZA if SPINOZA in gateway.table else next(iter(gateway.table), SPINOZA)


class AnswerError(RequestError):
    """The gateway could not answer, and has counted that; ``headers`` say who and when, as its own would."""

    headers: dict[str, str]

    def __init__(self, message: str, *, status: int, type: str, code: str | None = None) -> None:  # noqa: A002
        super().__init__(message, status=status, type=type, code=code)
        self.headers = {}


class Answer:
    """The gateway's answer to a question; a context manager, and who leaves it ends the backend's work.

    ``backend`` and ``is_degraded`` say who speaks, as soon as that is known.
    """

    def __init__(
        self, gateway: Gateway, question: Question, headers: Mapping[str, str], *, stream: bool
    ) -> None:
        self.backend = ""
        self.is_degraded = False
        self._inner = Inner(gateway, "chat/completions", question.body(stream=stream), headers)

    def __enter__(self) -> Self:
        """It is under way already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nobody wants more of it."""
        self.leave()

    def leave(self) -> None:
        """Nobody wants more of it."""
        self._inner.leave()

    def cancel(self) -> None:
        """Somebody who may end it did: what is said so far is all."""
        self._inner.end_early(
            status=CANCELLED_STATUS, message="the request was cancelled", code="request_cancelled"
        )

    async def headers(self) -> dict[str, str]:
        """Who speaks, and the request's id, for the head of a door's own answer.

        Raises:
            AnswerError: 503, the server stops.
        """
        try:
            _, told = await self._inner.head()
        except LostError as lost:
            raise _cut() from lost
        return {name: value for name, value in told.items() if name.startswith(TOLD)}

    async def whole(self) -> str:
        """The text in one piece.

        Raises:
            AnswerError: with the status that the gateway gave; 503 when the server stops.
        """
        headers = await self.headers()
        try:
            status, _ = await self._inner.head()
            answer = loads(await self._inner.whole())
        except LostError as lost:
            raise _cut() from lost
        if status != 200:
            failure = _failure(answer, status)
            failure.headers = headers
            raise failure
        self._note(answer)
        return _text(answer["choices"], "message")

    async def texts(self) -> AsyncIterator[str]:
        """The text in pieces, each all that has come since the last was taken; empty ones are a sign of life.

        Raises:
            AnswerError: it could not be answered, or broke off; its status is the gateway's.
        """
        splitter = sse.Splitter()
        try:
            status, _ = await self._inner.head()
            if status != 200:
                raise _failure(loads(await self._inner.whole()), status)
            async for piece in self._inner.pieces():
                yield "".join([self._read(one) for one in sse.split(splitter.feed(piece))])
        except LostError as lost:
            raise _cut() from lost

    def _read(self, event: bytes) -> str:
        data = sse.read(event)
        if data is None or data.is_done:
            return ""
        chunk = data.json()
        if chunk.get("error"):
            raise _failure(chunk, 502)
        self._note(chunk)
        return _text(chunk.get("choices") or [], "delta")

    def _note(self, said: Json) -> None:
        if sive := said.get("sive"):
            self.backend, self.is_degraded = sive["backend"], sive["degraded"]


def _text(choices: list[Json], where: str) -> str:
    return "".join(choice.get(where, {}).get("content") or "" for choice in choices[:1])


def _failure(said: Any, status: int) -> AnswerError:
    """What went wrong; errors inside a stream say no ``status``, and count as a bad gateway's."""
    problem = said.get("error") if isinstance(said, dict) else None
    told = problem if isinstance(problem, dict) else {}
    code = told.get("code")
    return AnswerError(
        str(told.get("message") or f"the gateway answered HTTP {status}"),
        status=status,
        type=told.get("type") or "server_error",
        code=code if isinstance(code, str) else None,
    )


def _cut() -> AnswerError:
    return AnswerError(CUT, status=503, type="server_error", code="shutting_down")
