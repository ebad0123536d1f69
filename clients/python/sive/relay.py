"""What passes from one backend to the caller: bytes as they came, parsed only when something happens."""

from dataclasses import dataclass, field
from typing import Any

from sive import sse
from sive.protocol import DONE, Json, dumps, event


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete; ``usage`` as the backend counted it."""

    usage: Json | None


@dataclass(frozen=True, slots=True)
class FailedInBand:
    """The backend put an error, or an abort, where text should be."""

    message: str


@dataclass(frozen=True, slots=True)
class Finishing:
    """Every choice has its finish_reason; usage and the end mark may follow."""


Happening = Finished | FailedInBand | Finishing

CUT_SHORT = "the answer ended without a finish_reason"


@dataclass(slots=True)
class Label:
    """What sive adds to an answer: who speaks, and how the caller's model is called.

    ``model``: written over the backend's own name; None leaves that one. ``sive``: the object that stands
    in the first chunk and in the last.
    """

    model: str | None
    sive: Json = field(default_factory=dict)


class StreamRelay:
    """The stream of one backend on its way to the caller: ``feed`` bytes, send what comes back.

    Whole events that only carry text go on untouched, at 1-2 µs a chunk. ``take`` says when the state
    changed; after Finished or FailedInBand nothing may be fed. ``fed_at`` is the time of the last bytes,
    ``is_blocked`` says that the caller is slow to take them, ``chunks`` counts the events with data.
    """

    def __init__(self, label: Label, *, wants_usage: bool, choices: int = 1) -> None:
        self._happening: Happening | None = None
        self.fed_at = 0.0
        self.is_blocked = False
        self.chunks = 0
        self._unfinished = set(range(choices))
        self._label = label
        self._wants_usage = wants_usage
        self._splitter = sse.Splitter()
        self._usage: Json | None = None
        self._rename: tuple[bytes, bytes] | None = None
        self._first = True

    def feed(self, raw: bytes, at: float) -> bytes:
        """Return the bytes for the caller."""
        self.fed_at = at
        whole = self._splitter.feed(raw)
        if not whole:
            return b""
        if not self._first and _is_plain(whole):
            self.chunks += whole.count(b"data: ")
            return whole.replace(*self._rename) if self._rename else whole
        return b"".join(self._slow(whole))

    @property
    def is_finished(self) -> bool:
        """Has every choice its finish_reason?"""
        return not self._unfinished

    @property
    def usage(self) -> Json | None:
        """The tokens as the backend counted them, once it has said so."""
        return self._usage

    def take(self) -> Happening | None:
        """What happened in the bytes fed last, once."""
        happening, self._happening = self._happening, None
        return happening

    def _slow(self, whole: bytes) -> list[bytes]:
        out: list[bytes] = []
        for one in sse.split(whole):
            out.append(self._event(one))
            if isinstance(self._happening, Finished | FailedInBand):
                break
        return out

    def _event(self, raw: bytes) -> bytes:
        try:
            data = sse.read(raw)
            if data is None:
                return raw
            if data.is_done:
                self._happening = Finished(self._usage) if self.is_finished else FailedInBand(CUT_SHORT)
                return DONE if self.is_finished else b""
            chunk = data.json()
        except ValueError:
            return b""  # a malformed event is skipped: what follows may still be whole
        return self._chunk(raw, chunk)

    def _chunk(self, raw: bytes, chunk: Json) -> bytes:
        self.chunks += 1
        if message := in_band_error(chunk):
            self._happening = FailedInBand(message)
            return b""
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
            if not chunk.get("choices"):
                return self._renamed(chunk) if self._wants_usage else b""
        finished = finish_reasons(chunk)
        if "abort" in finished.values():
            self._happening = FailedInBand("the backend aborted the answer")
            return b""
        if finished:
            self._unfinished -= finished.keys()
            self._happening = Finishing() if self.is_finished else None
        if self._first or finished:
            return self._labelled(raw, chunk)
        return raw.replace(*self._rename) if self._rename else raw

    def _labelled(self, raw: bytes, chunk: Json) -> bytes:
        if self._first:
            self._first = False
            self._rename = _renaming(raw, chunk, self._label.model)
        upstream = chunk.get("sive")
        chunk["sive"] = merged(self._label.sive, upstream if isinstance(upstream, dict) else {})
        if not self._wants_usage:
            chunk.pop("usage", None)
        return self._renamed(chunk)

    def _renamed(self, chunk: Json) -> bytes:
        if self._label.model is not None:
            chunk["model"] = self._label.model
        return event(chunk)


def _is_plain(whole: bytes) -> bool:
    """Do all these events carry text and nothing that changes state?

    Inside JSON strings every quote is escaped, so these markers can only be keys.
    """
    events = whole.count(b"\ndata: ") + whole.startswith(b"data: ")
    return (
        whole.count(b'"finish_reason":null') == events
        and b'"error"' not in whole
        and b"\r" not in whole
        and b'"usage":{' not in whole
    )


def _renaming(raw: bytes, chunk: Json, model: str | None) -> tuple[bytes, bytes] | None:
    """How the backend's name is spelled in its chunks, and what replaces it."""
    theirs = chunk.get("model")
    if model is None or theirs == model or not isinstance(theirs, str):
        return None
    for colon in (b":", b": "):
        spelled = b'"model"' + colon + dumps(theirs)
        if spelled in raw:
            return spelled, b'"model"' + colon + dumps(model)
    return None


def merged(ours: Json, theirs: Json) -> Json:
    """Our ``sive`` object, keeping what a sive further up dropped or truncated."""
    both = dict(ours)
    if theirs.get("truncated"):
        both["truncated"] = True
    if dropped := [*ours.get("dropped", ()), *theirs.get("dropped", ())]:
        both["dropped"] = sorted(set(dropped))
    return both


def in_band_error(chunk: Json) -> str | None:
    """The message of an error inside a 200 stream."""
    error: Any = chunk.get("error")
    if not error:
        return None
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def finish_reasons(chunk: Json) -> dict[int, str]:
    """The finish_reason of each choice that ends in this chunk, by its index."""
    choices = [choice for choice in chunk.get("choices") or () if isinstance(choice, dict)]
    return {int(c.get("index", 0)): str(c["finish_reason"]) for c in choices if c.get("finish_reason")}


def has_token(chunk: Json) -> bool:
    """Is this an answer, rather than the role or an empty beginning?"""
    return any(_says_something(choice) for choice in chunk.get("choices") or () if isinstance(choice, dict))


def _says_something(choice: Json) -> bool:
    delta = choice.get("delta") or {}
    said = any(value for key, value in delta.items() if key != "role")
    return bool(said or choice.get("text") or choice.get("finish_reason"))
