"""The faces of requests that pass through: their protocol's own errors, and its answers with who spoke."""

import re
from typing import Any

from sive.chunks import is_error
from sive.events import Command, End
from sive.faces import StreamFace, WholeFace, reply, reply_bytes
from sive.failures import failure_body, failure_events
from sive.protocol import Endpoint, Json, dumps, loads
from sive.relay import Label, Relay
from sive.typed_relay import TypedRelay, counted, labelled

LARGE_BODY_BYTES = 65_536
"""From here on the vectors of embeddings go on as they came: reading and writing 3 MB takes 17 ms."""

TRIES = 8
"""So many lists may follow the vectors: a sive says what it dropped there."""

_LIST = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*\[')

_HOLDS: dict[Endpoint, str] = {"embeddings": "data", "messages": "content", "responses": "output"}
"""The list that an answer has."""


class ThroughStreamFace(StreamFace):
    """A stream that ends, when it must, in an error event of its own protocol."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._relay: TypedRelay | None = None

    def begin(self, relay: Relay, headers: dict[str, str]) -> list[Command]:
        """The head, once."""
        if isinstance(relay, TypedRelay):
            self._relay = relay
        return super().begin(relay, headers)

    def error(self, status: int, payload: Json, headers: dict[str, str]) -> list[Command]:
        """An honest status, or when the head is out the protocol's own events."""
        if not self._has_begun:
            return reply(status, failure_body(self._endpoint, status, payload), headers)
        head = self._relay.head if self._relay is not None else {}
        number = self._relay.sequence_number + 1 if self._relay is not None else 0
        return [End(failure_events(self._endpoint, status, payload, head, number))]


class ThroughWholeFace(WholeFace):
    """An answer in one piece, as its backend gave it."""

    def whole(
        self, body: bytes, label: Label, headers: dict[str, str], *, strips_ids: bool = False
    ) -> tuple[list[Command], Json | None]:
        """With the caller's name for the model, and who spoke."""
        return whole_through(self._call.endpoint, body, label, headers)

    def error(self, status: int, payload: Json, headers: dict[str, str]) -> list[Command]:
        """An honest status."""
        return reply(status, failure_body(self._call.endpoint, status, payload), headers)


def whole_through(
    endpoint: Endpoint, body: bytes, label: Label, headers: dict[str, str]
) -> tuple[list[Command], Json | None]:
    """An answer in one piece, and its usage.

    Raises:
        ValueError: the body is no answer.
    """
    vectors, answer = _apart(body) if endpoint == "embeddings" else (b"", loads(body))
    if not isinstance(answer, dict) or is_error(answer) or not isinstance(answer.get(_HOLDS[endpoint]), list):
        raise ValueError(f"no JSON object with {_HOLDS[endpoint]}")
    said = dumps(labelled(answer, label))
    if vectors:
        said = said.replace(b'"data":[]', b'"data":' + vectors, 1)
    usage = answer.get("usage")
    return reply_bytes(200, said, headers), counted(usage) if isinstance(usage, dict) else None


def _apart(body: bytes) -> tuple[bytes, Any]:
    """The list of large embeddings as it came, and the answer around it."""
    found = _LIST.search(body) if len(body) > LARGE_BODY_BYTES else None
    if found is not None:
        start, end = found.end() - 1, len(body)
        for _ in range(TRIES):
            end = body.rfind(b"]", start, end)
            if end < 0:
                break
            answer = _around(body[:start], body[end + 1 :])
            if answer.keys() >= {"model", "usage"}:
                return body[start : end + 1], answer
    return b"", loads(body)  # small, or with more beside its vectors than is known here


def _around(before: bytes, after: bytes) -> Json:
    """The answer without its list; empty where that ends elsewhere."""
    try:
        answer = loads(before + b"[]" + after)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
