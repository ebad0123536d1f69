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

ERROR_IN_BAND = "an error in its stream"
"""All that callers hear of one: what backends write there may hold addresses and keys."""

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
    changed; after Finished or FailedInBand nothing may be fed. ``fed_at`` is the time of the last chunk,
    ``is_blocked`` says that the caller is slow to take them, ``chunks`` and ``malformed`` count events.
    """

    def __init__(self, label: Label, *, wants_usage: bool, choices: int = 1) -> None:
        self._happening: Happening | None = None
        self.fed_at = 0.0
        self.is_blocked = False
        self.chunks = 0
        self.malformed = 0
        self._choices = choices
        self._finished: set[int] = set()
        self._label = label
        self._wants_usage = wants_usage
        self._splitter = sse.Splitter()
        self._usage: Json | None = None
        self._rename: tuple[bytes, bytes] | None = None
        self._first = True

    def feed(self, raw: bytes, at: float) -> bytes:
        """Return the bytes for the caller."""
        whole = self._splitter.feed(raw)
        if not whole:
            return b""
        before = self.chunks
        if not self._first and (events := _plain_events(whole)):
            self.chunks += events
            out = whole.replace(*self._rename) if self._rename else whole
        else:
            out = b"".join(self._slow(whole))
        if self.chunks > before:  # a backend that only sends comments is as silent as one that sends nothing
            self.fed_at = at
        return out

    @property
    def is_finished(self) -> bool:
        """Has every choice its finish_reason?"""
        return len(self._finished) >= self._choices

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
                # A backend that ignores `n` ends with fewer choices than were asked for.
                self._happening = Finished(self._usage) if self._finished else FailedInBand(CUT_SHORT)
                return DONE if self._finished else b""
            return self._chunk(raw, data.json())
        except ValueError:
            self.malformed += 1
            return b""  # what follows may still be whole

    def _chunk(self, raw: bytes, chunk: Json) -> bytes:
        if is_error(chunk):
            self._happening = FailedInBand(ERROR_IN_BAND)
            return b""
        finished = finish_reasons(chunk)
        self.chunks += 1
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._usage = usage
            if not chunk.get("choices"):
                return self._renamed(chunk) if self._wants_usage else b""
        if "abort" in finished.values():
            self._happening = FailedInBand("the backend aborted the answer")
            return b""
        if finished:
            self._finished |= finished.keys()
            self._happening = Finishing() if self.is_finished else None
        if self._first or finished or (usage and not self._wants_usage):
            return self._labelled(raw, chunk, is_last=bool(finished))
        return raw.replace(*self._rename) if self._rename else raw

    def _labelled(self, raw: bytes, chunk: Json, *, is_last: bool) -> bytes:
        if self._first or is_last:
            upstream = chunk.get("sive")
            chunk["sive"] = merged(self._label.sive, upstream if isinstance(upstream, dict) else {})
        if self._first:
            self._first = False
            self._rename = _renaming(raw, chunk, self._label.model)
        if not self._wants_usage:
            chunk.pop("usage", None)
        return self._renamed(chunk)

    def _renamed(self, chunk: Json) -> bytes:
        if self._label.model is not None:
            chunk["model"] = self._label.model
        return event(chunk)


def _plain_events(whole: bytes) -> int:
    """How many events these are, when all of them carry text and nothing that changes state; else 0.

    Inside JSON strings every quote is escaped, so these markers can only be keys.
    """
    events = whole.count(b"\n\n")
    is_plain = (
        whole.startswith(b"data: {")
        and whole.count(b"\n\ndata: {") == events - 1
        and whole.count(b"}\n\n") == events
        and whole.count(b'"choices":[{') == events
        and whole.count(b'"finish_reason"') == whole.count(b'"finish_reason":null')
        and whole.count(b'"usage"') == whole.count(b'"usage":null')
        and b'"error"' not in whole
        and b"[DONE]" not in whole
        and b"\r" not in whole
    )
    return events if is_plain else 0


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
    """Our ``sive`` object, keeping what a sive further up says of its answer."""
    both = dict(ours)
    for mark in ("degraded", "truncated"):
        if theirs.get(mark) is True:
            both[mark] = True
    names = theirs.get("dropped")
    if isinstance(names, list):
        both["dropped"] = sorted(
            {*ours.get("dropped", ()), *(name for name in names if isinstance(name, str))}
        )
    return both


def is_error(chunk: Json) -> bool:
    """Is this an error inside a 200 stream?"""
    return bool(chunk.get("error"))


def finish_reasons(chunk: Json) -> dict[int, str]:
    """The finish_reason of each choice that ends in this chunk, by its index.

    Raises:
        ValueError: the chunk has another shape than OpenAI's.
    """
    finished = {}
    for choice in _choices(chunk):
        if reason := choice.get("finish_reason"):
            index = choice.get("index", 0)
            if not isinstance(index, int):
                raise ValueError("a choice without an index")
            finished[index] = str(reason)
    return finished


def has_token(chunk: Json) -> bool:
    """Is this an answer, rather than the role or an empty beginning?

    Raises:
        ValueError: the chunk has another shape than OpenAI's.
    """
    return any(_says_something(choice) for choice in _choices(chunk))


def _choices(chunk: Json) -> list[Json]:
    choices: Any = chunk.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise ValueError("choices are no list of objects")
    return choices


def _says_something(choice: Json) -> bool:
    delta = choice.get("delta") or {}
    if not isinstance(delta, dict):
        raise ValueError("a delta that is no object")
    said = any(value for key, value in delta.items() if key != "role")
    return bool(said or choice.get("text") or choice.get("finish_reason"))
