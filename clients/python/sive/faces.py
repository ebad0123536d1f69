"""Two faces toward the caller: a stream of events, or one JSON object; the chain does not know which."""

from typing import Protocol

from sive.calls import Call
from sive.events import Begin, Command, End, Send
from sive.protocol import JSON_HEADERS, SSE_HEADERS, Json, dumps, event, loads
from sive.relay import Label, StreamRelay, finish_reasons, is_error, merged

WAITING = b": waiting\n\n"


class Face(Protocol):
    """How an answer is given."""

    def heartbeat(self, headers: dict[str, str]) -> list[Command]:
        """Show the caller that somebody is working on it."""

    def relay(self, label: Label, choices: int) -> StreamRelay | None:
        """What an answer's chunks pass through; None when this face takes whole answers."""

    def begin(self, headers: dict[str, str]) -> list[Command]:
        """The head of an answer that is about to flow."""

    def whole(self, body: bytes, label: Label, headers: dict[str, str]) -> tuple[list[Command], Json | None]:
        """An answer in one piece, and its usage.

        Raises:
            ValueError: the body is no answer.
        """

    def error(self, status: int, payload: Json, headers: dict[str, str]) -> list[Command]:
        """The honest end of a request that failed, before or after its head went out."""


class StreamFace:
    """Server-sent events. A failure after the head is an error event, never a clean end."""

    def __init__(self, call: Call) -> None:
        self._has_begun = False
        self._call = call

    def heartbeat(self, headers: dict[str, str]) -> list[Command]:
        """A 200 and comments: the callers' and proxies' clocks see life."""
        return [*self.begin(headers), Send(WAITING)]

    def relay(self, label: Label, choices: int) -> StreamRelay:
        """What the chunks pass through."""
        return StreamRelay(label, wants_usage=self._call.wants_usage, choices=choices)

    def begin(self, headers: dict[str, str]) -> list[Command]:
        """The head, once."""
        if self._has_begun:
            return []
        self._has_begun = True
        return [Begin(200, SSE_HEADERS | headers)]

    def whole(self, body: bytes, label: Label, headers: dict[str, str]) -> tuple[list[Command], Json | None]:
        """A host that answers a stream request in one piece did not do what it was asked."""
        raise ValueError("an answer in one piece where a stream was asked for")

    def error(self, status: int, payload: Json, headers: dict[str, str]) -> list[Command]:
        """An honest status, or when the head is out an error event."""
        if self._has_begun:
            return [End(event(payload))]
        return _json(status, dumps(payload), headers)


class WholeFace:
    """One JSON object; its head goes out last, so its status is always honest."""

    def heartbeat(self, headers: dict[str, str]) -> list[Command]:
        """Nothing: there is no room before the head."""
        return []

    def relay(self, label: Label, choices: int) -> None:
        """Whole answers are not relayed."""

    def begin(self, headers: dict[str, str]) -> list[Command]:
        """Nothing: the head goes out with the answer."""
        return []

    def whole(self, body: bytes, label: Label, headers: dict[str, str]) -> tuple[list[Command], Json | None]:
        """The backend's answer under the caller's name for the model, and who spoke."""
        answer = loads(body)
        if not isinstance(answer, dict) or is_error(answer) or not answer.get("choices"):
            raise ValueError("no JSON object with choices")
        if "abort" in finish_reasons(answer).values():
            raise ValueError("the backend aborted it")
        upstream = answer.get("sive")
        answer["sive"] = merged(label.sive, upstream if isinstance(upstream, dict) else {})
        if label.model is not None:
            answer["model"] = label.model
        return _json(200, dumps(answer), headers), _object(answer.get("usage"))

    def error(self, status: int, payload: Json, headers: dict[str, str]) -> list[Command]:
        """An honest status."""
        return _json(status, dumps(payload), headers)


def _object(value: object) -> Json | None:
    return value if isinstance(value, dict) else None


def _json(status: int, body: bytes, headers: dict[str, str]) -> list[Command]:
    length = {"content-length": str(len(body))}
    return [Begin(status, JSON_HEADERS | headers | length), End(body)]
