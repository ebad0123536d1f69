"""The relay of a stream that goes on as it came: bytes, read only when something happens."""

import re

from sive import sse
from sive.chunks import strip_ids
from sive.protocol import DONE, Json, dumps, event
from sive.relay import FailedInBand, Finished, Label, Relay
from sive.transcript import Transcript

MAX_KEPT_BYTES = 131_072
"""What a stream keeps as bytes to be carried on from; what is older is read and kept as text and ids."""

MIXED_BYTES = 1_000
"""Fewer are a few events, which are not worth sorting."""

_MORE_THAN_TEXT = (b'"finish_reason":"', b'"usage":{', b'"error"', b"[DONE]")

_IDS = re.compile(rb', ?"(?:prompt_)?token_ids": ?(?:null|\[[0-9, ]*\])')
"""Inside JSON strings quotes are escaped, so this can only be a key."""


_STRING = rb'"[^"\\\x00-\x1f]*+(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*+)*+"'
_TEXTS = re.compile(
    rb'(?:data: \{(?:"(?:id|object|created|model|system_fingerprint)":(?:%(string)b|[0-9]++|null),)*+'
    rb'"choices":\[\{"index":0,(?:"delta":\{"content":%(string)b\}|"text":%(string)b)'
    rb'(?:,"(?:logprobs|finish_reason|stop_reason)":null)*+(,"token_ids":\[[0-9,]*+\])?+\}\](?:,"usage":null)?+'
    rb"\}\n\n)++" % {b"string": _STRING}
)
"""Events that are text alone, as vLLM and sive spell them; group 1 is the token ids of the last. One look at
them takes a third of looking for each thing that they might say besides, as is done for other spellings."""


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
        if not self._first and self._choices == 1 and (texts := _TEXTS.fullmatch(whole)):
            events = whole.count(b"\n\n")
            self.chunks += events
            self._keep(whole)
            out = _without_ids(whole, texts, events) if self._strips_ids else whole
            return out.replace(*self._rename) if self._rename else out
        if self._first or self._choices > 1 or not (events := _plain_events(whole)):
            return self._pass_mixed(whole)
        out = _IDS.sub(b"", whole) if self._strips_ids else whole
        if self._strips_ids and b'token_ids"' in out:  # spelled in a way that the expression does not know
            return super()._pass(whole)
        self.chunks += events
        self._keep(whole)
        return out.replace(*self._rename) if self._rename else out

    def _pass_mixed(self, whole: bytes) -> bytes:
        """Of many events at once only the first and the last say more than text."""
        if len(whole) < MIXED_BYTES or b"\r" in whole:
            return super()._pass(whole)
        end = whole.find(b"\n\n") + 2 if self._first else _before_more_than_text(whole)
        if end in (0, len(whole)):
            return super()._pass(whole)
        head = super()._pass(whole[:end]) if self._first else self._pass(whole[:end])
        if isinstance(self._happening, Finished | FailedInBand):
            return head
        return head + self._pass(whole[end:])

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
        is_stripped = self._strips_ids and strip_ids(chunk)
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
            chunk["sive"] = self._label.merged(chunk.get("sive"))
        if self._first:
            self._first = False
            self._rename = _renaming(raw, chunk, self._label.model)
        if not self._wants_usage:
            chunk.pop("usage", None)
        elif is_last and chunk.get("usage"):
            self._showed_usage = True
        return self._renamed(chunk)

    def _renamed(self, chunk: Json) -> bytes:
        if self._label.model is not None:
            chunk["model"] = self._label.model
        return event(chunk)


def _head(said: Transcript) -> Json:
    return {"id": said.id, "object": said.object, "created": said.created, "model": said.model}


def _without_ids(whole: bytes, texts: re.Match[bytes], events: int) -> bytes:
    begin, end = texts.span(1)
    return whole[:begin] + whole[end:] if events == 1 and end > 0 else _IDS.sub(b"", whole)


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


def _before_more_than_text(whole: bytes) -> int:
    """Where the first event begins that changes state; 0 when it is the very first, or spelled oddly."""
    found = [at for mark in _MORE_THAN_TEXT if (at := whole.find(mark)) >= 0]
    return whole.rfind(b"\n\n", 0, min(found)) + 2 if found and b"\n\n" in whole[: min(found)] else 0


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
