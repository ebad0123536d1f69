"""What passes from one backend to the caller, and what happens in it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from sive import sse
from sive.budget import Budget
from sive.chunks import finish_reasons, index_of, is_error
from sive.errors import LostError
from sive.protocol import DONE, Json, choices_of
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

CUT_SHORT = "the answer ended without a finish_reason"


@dataclass(slots=True)
class Label:
    """What sive adds to an answer: who speaks, and how the caller's model is called.

    ``model``: written over the backend's own name; None leaves that one. ``sive``: the object that stands
    in the first chunk and in the last. ``was_sent``: did the caller send this field of the request?
    """

    model: str | None
    sive: Json = field(default_factory=dict)
    was_sent: Callable[[str], bool] = lambda _: True

    def merged(self, theirs: object) -> Json:
        """``sive`` with what a sive further up says of its answer, where ``theirs`` is one's.

        Fields that it dropped and that only we had asked it for are nothing to the caller.
        """
        if not isinstance(theirs, dict):
            return self.sive
        both = dict(self.sive)
        for mark in ("degraded", "truncated"):
            if theirs.get(mark) is True:
                both[mark] = True
        names = theirs.get("dropped")
        if isinstance(names, list):
            sent = {name for name in names if isinstance(name, str) and self.was_sent(name.partition(".")[0])}
            both["dropped"] = sorted({*both.get("dropped", ()), *sent})
        return both


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
    the time of the last chunk, ``waits_since`` when the patience with the next one began, ``is_blocked``
    says that the caller is slow to take them, ``chunks`` and ``malformed`` count events, ``usage`` is what
    the backend counted. ``has_gaps``: some of what was read was not passed on, so that this is neither the
    end nor anything to go on from. ``gathered``: where the bytes go instead, when the caller wants one piece.
    ``rewrites``: what becomes of them for a caller of another protocol. ``budget``: where those that are kept
    are counted.
    A subclass says what becomes of a chunk.
    """

    def __init__(self, label: Label, *, wants_usage: bool, choices: int = 1) -> None:
        self.fed_at = 0.0
        self.waits_since = 0.0
        self.is_blocked = False
        self.chunks = 0
        self.malformed = 0
        self.usage: Json | None = None
        self.has_gaps = False
        self.gathered: Gathering | None = None
        self.gathered_bytes = 0
        self.rewrites: Callable[[bytes], bytes] | None = None
        self.budget: Budget | None = None
        self._happening: Happening | None = None
        self._label = label
        self._wants_usage = wants_usage
        self._choices = choices
        self._finished: set[int] = set()
        self._begun: set[int] = set()  # as far as chunks are read
        self._splitter = sse.Splitter()

    def feed(self, raw: bytes, at: float) -> bytes:
        """Return the bytes for the caller.

        Raises:
            LostError: they are more than may be kept.
            ValueError: they are no events, or none of OpenAI's.
        """
        whole = self._splitter.feed(raw)
        if not whole:
            if self.budget is not None and not self.budget.has(len(self._splitter.rest)):
                raise LostError("too_large", "an event without an end")
            return b""
        before = self.chunks
        out = self._pass(whole)
        if self.chunks > before:  # a backend that only sends comments is as silent as one that sends nothing
            self.fed_at = self.waits_since = at
        if self.gathered is None and self.rewrites is None:
            return out
        try:
            return self._given(out)
        except Exception:
            self.has_gaps = True
            raise

    @property
    def is_finished(self) -> bool:
        """Has every choice its finish_reason?"""
        return len(self._finished) >= self._choices and not self.has_gaps

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

    def _given(self, out: bytes) -> bytes:
        if self.budget is not None:
            self.budget.take(len(out))
            self.gathered_bytes += len(out)
        if self.gathered is not None:
            self.gathered.append(out)
            return b""
        return out if self.rewrites is None else self.rewrites(out)

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
        if not self._finished or self._begun - self._finished:
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
        if finished and finished.keys() <= self._finished:
            return None  # said before
        self._begun |= {index_of(choice) for choice in choices_of(chunk)}
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
