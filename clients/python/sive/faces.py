"""Two faces toward the caller: a stream of events, or one JSON object; the chain does not know which."""

from typing import Protocol

from sive.answers import Answer
from sive.calls import Call
from sive.chunks import finish_reasons, is_error, strip_ids
from sive.events import Begin, Command, End, Send
from sive.protocol import JSON_HEADERS, SSE_HEADERS, Json, dumps, event, loads
from sive.relay import Label, Relay

WAITING = ": waiting"


class Face(Protocol):
    """How an answer is given. ``has_said``: the caller has seen some of it."""

    @property
    def has_said(self) -> bool:
        """Has the caller seen some of an answer?"""

    def heartbeat(self, headers: dict[str, str], why: str = "") -> list[Command]:
        """Show the caller that somebody is working on it, and ``why`` it takes so long."""

    def begin(self, relay: Relay, headers: dict[str, str]) -> list[Command]:
        """An answer is about to flow through this relay, or goes on through it."""

    def end(self, rest: bytes, headers: dict[str, str]) -> list[Command]:
        """The answer is complete with these last events.

        Raises:
            ValueError: what came is no answer.
        """

    def start_over(self) -> None:
        """Forget what came: another answer begins."""

    def whole(
        self, body: bytes, label: Label, headers: dict[str, str], *, strips_ids: bool = False
    ) -> tuple[list[Command], Json | None]:
        """An answer in one piece, and its usage. ``strips_ids``: only we asked for its token ids.

        Raises:
            ValueError: the body is no answer.
        """

    def error(self, status: int, payload: Json, headers: dict[str, str]) -> list[Command]:
        """The honest end of a request that failed, before or after its head went out."""


class StreamFace:
    """Server-sent events. A failure after the head is an error event, never a clean end."""

    def __init__(self) -> None:
        self.has_said = False
        self._has_begun = False

    def heartbeat(self, headers: dict[str, str], why: str = "") -> list[Command]:
        """A 200 and comments: the callers' and proxies' clocks see life."""
        said = f"{WAITING}; {' '.join(why.split())}" if why else WAITING
        return [*self._head(headers), Send(said.encode() + b"\n\n")]

    def begin(self, relay: Relay, headers: dict[str, str]) -> list[Command]:
        """The head, once."""
        self.has_said = True
        return self._head(headers)

    def end(self, rest: bytes, headers: dict[str, str]) -> list[Command]:
        """The last events."""
        return [End(rest)]

    def start_over(self) -> None:
        """Nothing was kept."""

    def whole(
        self, body: bytes, label: Label, headers: dict[str, str], *, strips_ids: bool = False
    ) -> tuple[list[Command], Json | None]:
        """A host that answers a stream request in one piece did not do what it was asked."""
        raise ValueError("an answer in one piece where a stream was asked for")

    def error(self, status: int, payload: Json, headers: dict[str, str]) -> list[Command]:
        """An honest status, or when the head is out an error event."""
        if self._has_begun:
            return [End(event(payload))]
        return reply(status, payload, headers)

    def _head(self, headers: dict[str, str]) -> list[Command]:
        if self._has_begun:
            return []
        self._has_begun = True
        return [Begin(200, SSE_HEADERS | headers)]


class WholeFace:
    """One JSON object; its head goes out last, so its status is always honest.

    A stream is gathered and put together at its end: what breaks off in the middle can be carried on, or
    begun anew, without the caller seeing any of it.
    """

    has_said = False

    def __init__(self, call: Call) -> None:
        self._call = call
        self._answer = Answer(call.endpoint)

    def heartbeat(self, headers: dict[str, str], why: str = "") -> list[Command]:
        """Nothing: there is no room before the head."""
        return []

    def begin(self, relay: Relay, headers: dict[str, str]) -> list[Command]:
        """Nothing is sent: what comes through the relay is gathered."""
        relay.gathered = self._answer
        return []

    def end(self, rest: bytes, headers: dict[str, str]) -> list[Command]:
        """The answer as one object."""
        self._answer.append(rest)
        return reply(200, self._answer.json(), headers)

    def start_over(self) -> None:
        """Forget what came."""
        self._answer = Answer(self._call.endpoint)

    def whole(
        self, body: bytes, label: Label, headers: dict[str, str], *, strips_ids: bool = False
    ) -> tuple[list[Command], Json | None]:
        """The backend's answer under the caller's name for the model, and who spoke."""
        return whole(body, label, headers, strips_ids=strips_ids)

    def error(self, status: int, payload: Json, headers: dict[str, str]) -> list[Command]:
        """An honest status."""
        return reply(status, payload, headers)


def whole(
    body: bytes, label: Label, headers: dict[str, str], *, strips_ids: bool = False
) -> tuple[list[Command], Json | None]:
    """An answer in one piece under the caller's name for the model, with who spoke, and its usage.

    Raises:
        ValueError: the body is no answer.
    """
    answer, usage = labelled_answer(body, label, strips_ids=strips_ids)
    return reply(200, answer, headers), usage


def labelled_answer(body: bytes, label: Label, *, strips_ids: bool = False) -> tuple[Json, Json | None]:
    """The answer as an object, and its usage.

    Raises:
        ValueError: the body is no answer.
    """
    answer = loads(body)
    if not isinstance(answer, dict) or is_error(answer) or not answer.get("choices"):
        raise ValueError("no JSON object with choices")
    if "abort" in finish_reasons(answer).values():
        raise ValueError("the backend aborted it")
    if strips_ids:
        strip_ids(answer)
    answer["sive"] = label.merged(answer.get("sive"))
    if label.model is not None:
        answer["model"] = label.model
    return answer, _object(answer.get("usage"))


def _object(value: object) -> Json | None:
    return value if isinstance(value, dict) else None


def reply(status: int, payload: Json, headers: dict[str, str]) -> list[Command]:
    """One JSON object."""
    return reply_bytes(status, dumps(payload), headers)


def reply_bytes(status: int, body: bytes, headers: dict[str, str]) -> list[Command]:
    """One JSON object that is written already."""
    length = {"content-length": str(len(body))}
    return [Begin(status, JSON_HEADERS | headers | length), End(body)]
