"""What passes from one backend to the caller: bytes as they came, parsed only when something happens."""

import re
from dataclasses import dataclass, field
from typing import Protocol

from sive import sse
from sive.protocol import DONE, Json, choices_of, dumps, event
from sive.transcript import Transcript


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

MAX_KEPT_BYTES = 131_072
"""What a stream keeps as bytes to be carried on from; what is older is read and kept as text and ids."""

_IDS = re.compile(rb', ?"(?:prompt_)?token_ids": ?(?:null|\[[0-9, ]*\])')
"""Inside JSON strings quotes are escaped, so this can only be a key."""

CUT_SHORT = "the answer ended without a finish_reason"


@dataclass(slots=True)
class Label:
    """What sive adds to an answer: who speaks, and how the caller's model is called.

    ``model``: written over the backend's own name; None leaves that one. ``sive``: the object that stands
    in the first chunk and in the last.
    """

    model: str | None
    sive: Json = field(default_factory=dict)


class Gathering(Protocol):
    """Where the bytes of an answer are put that goes out in one piece."""

    def append(self, events: bytes) -> None:
        """Take whole events.

        Raises:
            ValueError: they have another shape than OpenAI's.
        """


class Relay:
    """The stream of one backend on its way to the caller: ``feed`` bytes, send what comes back.

    ``take`` says when the state changed; after Finished or FailedInBand nothing may be fed. ``fed_at`` is
    the time of the last chunk, ``is_blocked`` says that the caller is slow to take them, ``chunks`` and
    ``malformed`` count events, ``usage`` is what the backend counted. ``gathered``: where the bytes go
    instead, when the caller wants one piece. A subclass says what becomes of a chunk.
    """

    def __init__(self, label: Label, *, wants_usage: bool, choices: int = 1) -> None:
        self.fed_at = 0.0
        self.is_blocked = False
        self.chunks = 0
        self.malformed = 0
        self.usage: Json | None = None
        self.gathered: Gathering | None = None
        self._happening: Happening | None = None
        self._label = label
        self._wants_usage = wants_usage
        self._choices = choices
        self._finished: set[int] = set()
        self._splitter = sse.Splitter()

    def feed(self, raw: bytes, at: float) -> bytes:
        """Return the bytes for the caller."""
        whole = self._splitter.feed(raw)
        if not whole:
            return b""
        before = self.chunks
        out = self._pass(whole)
        if self.chunks > before:  # a backend that only sends comments is as silent as one that sends nothing
            self.fed_at = at
        if self.gathered is not None:
            self.gathered.append(out)
            return b""
        return out

    @property
    def is_finished(self) -> bool:
        """Has every choice its finish_reason?"""
        return len(self._finished) >= self._choices

    def take(self) -> Happening | None:
        """What happened in the bytes fed last, once."""
        happening, self._happening = self._happening, None
        return happening

    def transcript(self) -> Transcript | None:
        """What was said so far, to carry on from; None when nobody can."""
        return None

    def finish(self) -> bytes:
        """What is left to say when the answer is complete, but its end mark never came."""
        return DONE

    def _pass(self, whole: bytes) -> bytes:
        out: list[bytes] = []
        for one in sse.split(whole):
            out.append(self._event(one))
            if isinstance(self._happening, Finished | FailedInBand):
                break
        return b"".join(out)

    def _event(self, raw: bytes) -> bytes:
        try:
            data = sse.read(raw)
            if data is None:
                return raw
            return self._done() if data.is_done else self._chunk(raw, data.json())
        except ValueError:
            self.malformed += 1
            if self._can_be_cut_here():
                self._happening = FailedInBand("an event that cannot be read")
            return b""  # what follows may still be whole

    def _can_be_cut_here(self) -> bool:
        """Is it better to have the answer carried on exactly than to leave out what could not be read?"""
        return False

    def _done(self) -> bytes:
        # A backend that ignores `n` ends with fewer choices than were asked for.
        if not self._finished:
            self._happening = FailedInBand(CUT_SHORT)
            return b""
        out = self.finish()
        self._happening = Finished(self.usage)
        return out

    def _chunk(self, raw: bytes, chunk: Json) -> bytes:
        """What becomes of a chunk."""
        raise NotImplementedError

    def _notice(self, chunk: Json) -> dict[int, str] | None:
        """Note what a chunk says of the state; the choices it finishes, None when it says a failure."""
        if is_error(chunk):
            self._happening = FailedInBand(ERROR_IN_BAND)
            return None
        finished = finish_reasons(chunk)
        self.chunks += 1
        if isinstance(counted := chunk.get("usage"), dict):
            self.usage = counted
        if "abort" in finished.values():
            self._happening = FailedInBand("the backend aborted the answer")
            return None
        if finished:
            self._finished |= finished.keys()
            self._happening = Finishing() if self.is_finished else None
        return finished


class StreamRelay(Relay):
    """Passes a stream on as it came: whole events that only carry text cost 1-2 µs.

    ``strips_ids``: token ids were asked for by us and are not shown. ``keeps``: the events are kept, as
    bytes, so that the answer can be carried on. ``holds_back``: the backend looks for stop strings, and
    keeps text back whose ids it has given.
    """

    def __init__(
        self,
        label: Label,
        *,
        wants_usage: bool,
        choices: int = 1,
        strips_ids: bool = False,
        keeps: bool = False,
        holds_back: bool = False,
    ) -> None:
        super().__init__(label, wants_usage=wants_usage, choices=choices)
        self._strips_ids = strips_ids
        self._kept: list[bytes] | None = [] if keeps else None
        self._kept_bytes = 0
        self._transcript = Transcript(holds_back=holds_back)
        self._rename: tuple[bytes, bytes] | None = None
        self._first = True
        self._showed_usage = False

    def transcript(self) -> Transcript | None:
        """What was said so far; reading it takes some 5 µs a chunk."""
        if self._kept is None:
            return None
        self._read(self._kept)
        self._kept = []
        self._kept_bytes = 0
        return self._transcript

    def finish(self) -> bytes:
        """The usage, when it was asked for and is known, and the end mark."""
        counted = None
        if self._wants_usage and not self._showed_usage and (said := self.transcript()) is not None:
            counted = self.usage or said.usage()
        if counted is None:
            return DONE
        self.usage = counted
        return self._renamed({**_head(self._transcript), "choices": [], "usage": counted}) + DONE

    def _pass(self, whole: bytes) -> bytes:
        if self._first or not (events := _plain_events(whole)):
            return super()._pass(whole)
        out = _IDS.sub(b"", whole) if self._strips_ids else whole
        if self._strips_ids and b'token_ids"' in out:  # spelled in a way that the expression does not know
            return super()._pass(whole)
        self.chunks += events
        self._keep(whole)
        return out.replace(*self._rename) if self._rename else out

    def _keep(self, whole: bytes) -> None:
        if self._kept is None:
            return
        self._kept.append(whole)
        self._kept_bytes += len(whole)
        if self._kept_bytes > MAX_KEPT_BYTES:
            half = len(self._kept) // 2
            self._read(self._kept[:half])
            del self._kept[:half]
            self._kept_bytes = sum(map(len, self._kept))

    def _read(self, kept: list[bytes]) -> None:
        """Take kept events into the transcript."""
        for one in sse.split(b"".join(kept)):
            try:
                data = sse.read(one)
                if data is not None:
                    self._transcript.add(data.json())
            except ValueError:
                self._transcript.has_all_ids = False

    def _can_be_cut_here(self) -> bool:
        said = self.transcript()
        if said is None or (said.can_go_on_by_ids and said.text):
            return said is not None
        said.has_all_ids = False  # what is left out may have been text
        return False

    def _chunk(self, raw: bytes, chunk: Json) -> bytes:
        finished = self._notice(chunk)
        if finished is None:
            return b""
        self._keep(raw)
        is_stripped = self._strips_ids and _strip_ids(chunk)
        has_usage = bool(chunk.get("usage"))
        if has_usage and not chunk.get("choices"):
            self._showed_usage = True
            return self._renamed(chunk) if self._wants_usage else b""
        if self._first or finished or (has_usage and not self._wants_usage):
            return self._labelled(raw, chunk, is_last=bool(finished))
        if is_stripped:
            return self._renamed(chunk)
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


def _head(said: Transcript) -> Json:
    return {"id": said.id, "object": said.object, "created": said.created, "model": said.model}


def _strip_ids(chunk: Json) -> bool:
    """Take out what only we asked for; was there any?"""
    found = chunk.pop("prompt_token_ids", None) is not None
    for choice in choices_of(chunk):
        for key in ("token_ids", "prompt_token_ids"):
            found = choice.pop(key, None) is not None or found
    return found


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
    for choice in choices_of(chunk):
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
    return any(_says_something(choice) for choice in choices_of(chunk))


def _says_something(choice: Json) -> bool:
    delta = choice.get("delta") or {}
    if not isinstance(delta, dict):
        raise ValueError("a delta that is no object")
    said = any(value for key, value in delta.items() if key != "role")
    return bool(said or choice.get("text") or choice.get("finish_reason"))
