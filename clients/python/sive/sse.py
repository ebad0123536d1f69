"""Server-sent events: cutting a byte stream into whole events, and reading one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sive.protocol import loads

MAX_EVENT_BYTES = 8_000_000
"""An event that grows past this is a broken neighbour, not an answer."""


class Splitter:
    """Cuts bytes, arriving in pieces of any size, into whole events; keeps the half one."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def rest(self) -> bytes:
        """The bytes of the event that is not complete yet."""
        return self._rest

    def feed(self, raw: bytes) -> bytes:
        """Return all whole events that are complete now, as they came (``b""`` when there is none).

        Raises:
            ValueError: an event larger than MAX_EVENT_BYTES.
        """
        if not self._rest and raw[-2:] == b"\n\n" and b"\r" not in raw:
            return raw  # as it mostly comes
        data = self._rest + raw if self._rest else raw
        # What was looked at before ends no event; at most three of its bytes are part of a boundary.
        end = _last_boundary(data, max(0, len(self._rest) - 3))
        self._rest = data[end:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"a server-sent event of more than {MAX_EVENT_BYTES} bytes")
        return data[:end]

    def payloads(self, raw: bytes) -> Iterator[dict[str, Any]]:
        """Yield what the events say that are complete now, each a JSON object.

        Raises:
            ValueError: one is something else, or too large.
        """
        for event in split(self.feed(raw)):
            if (data := read(event)) is not None:
                yield data.json()


def _last_boundary(data: bytes, start: int) -> int:
    end = data.rfind(b"\n\n", start) + 2
    if data.find(b"\r", start) >= 0:
        end = max(end, data.rfind(b"\r\n\r\n", start) + 4, data.rfind(b"\r\r", start) + 2)
    return end if end >= 4 or data[:2] in (b"\n\n", b"\r\r") else 0


def split(whole: bytes) -> list[bytes]:
    """Cut whole events, as ``Splitter.feed`` returns them, into single ones with LF line ends."""
    return [event + b"\n\n" for event in _with_lf(whole).split(b"\n\n") if event.strip(b"\n")]


def backwards(whole: bytes) -> Iterator[bytes]:
    """The same from the last one on, cut only as far as somebody reads: the rest is not even copied."""
    whole = _with_lf(whole)
    end = len(whole)
    while end > 0:
        cut = whole.rfind(b"\n\n", 0, max(0, end - 2))
        start = cut + 2 if cut >= 0 else 0
        if event := whole[start:end].strip(b"\n"):
            yield event + b"\n\n"
        end = start


def _with_lf(whole: bytes) -> bytes:
    return whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in whole else whole


@dataclass(frozen=True, slots=True)
class Data:
    """What one event says: ``name`` is its ``event:`` field, ``text`` its joined ``data:`` lines."""

    name: str
    text: str

    @property
    def is_done(self) -> bool:
        """Is this OpenAI's end mark?"""
        return self.text == "[DONE]"

    def json(self) -> dict[str, Any]:
        """The payload.

        Raises:
            ValueError: not a JSON object.
        """
        value = loads(self.text)
        if not isinstance(value, dict):
            raise ValueError("the event is JSON, but no object")
        return value


def read(event: bytes) -> Data | None:
    """Read one event; None for comments and events without data.

    Raises:
        ValueError: not UTF-8.
    """
    name, lines = "", []
    for line in event.decode("utf-8").split("\n"):
        field, _, value = line.partition(":")
        if field == "data":
            lines.append(value.removeprefix(" "))
        elif field == "event":
            name = value.strip()
    return Data(name, "\n".join(lines)) if lines else None
