"""The relay that reads every chunk: for answers carried on by another backend, and stop strings kept here."""

from dataclasses import dataclass

from sive.calls import Call
from sive.protocol import DONE, Endpoint, Json, event, usage
from sive.relay import FailedInBand, Label, Relay
from sive.resume import Plan
from sive.stops import StopFinder
from sive.transcript import Transcript


@dataclass(slots=True)
class Voice:
    """What every backend of one answer shares: how the caller wants it, and what was said so far.

    ``transcript``: up to the last cut. ``finder``: finds the caller's stop strings where they are kept here,
    ``shows_stop``: and leaves them in. ``has_role``: the role was said.
    """

    endpoint: Endpoint
    wants_usage: bool
    wants_ids: bool
    transcript: Transcript
    finder: StopFinder | None = None
    shows_stop: bool = False
    has_role: bool = False

    @classmethod
    def of(cls, call: Call) -> "Voice":
        """As this request wants its answer."""
        return cls(
            endpoint=call.endpoint,
            wants_usage=call.wants_usage or not call.stream,
            wants_ids=bool(call.body.get("return_token_ids")),
            transcript=Transcript(),
            shows_stop=bool(call.body.get("include_stop_str_in_output")),
        )


class Diverged(FailedInBand):
    """A backend that started over began another answer; nothing of it was shown."""


class Limited(FailedInBand):
    """The backend did what it was told, and the answer is not complete: to be carried on."""


class RewritingRelay(Relay):
    """Writes each chunk anew, as the caller's one stream: one id, one role, one usage, one finish_reason.

    ``said``: what this backend goes on from, and adds to. ``swallow``: text that is expected first and not
    shown again, because the caller has it; so are ``swallow_ids`` token ids. ``before``: tokens of the answer
    that are part of this backend's prompt. ``is_limited``: it stops at a limit that the caller did not set.
    """

    def __init__(
        self,
        label: Label,
        voice: Voice,
        said: Transcript,
        *,
        swallow: str = "",
        swallow_ids: int = 0,
        before: int = 0,
        resumes: bool = False,
        is_limited: bool = False,
    ) -> None:
        super().__init__(label, wants_usage=voice.wants_usage)
        self._voice = voice
        self._transcript = said
        self._swallow = swallow
        self._swallow_ids = swallow_ids
        self._before = before
        self._resumes = resumes
        self._is_limited = is_limited
        self._first = True
        self._is_told = False
        self._is_kept = True

    def transcript(self) -> Transcript | None:
        """What the caller has: until all of it has come again, what it had before. None: it is too long."""
        if not self._is_kept:
            return None
        return self._voice.transcript if self._swallow else self._transcript

    def finish(self) -> bytes:
        """The usage, when it was asked for, and the end mark; once."""
        if self._is_told:
            return b""
        self._is_told = True
        self.usage = self._counted()
        if self.usage is None or not self._wants_usage:
            return DONE
        return event(self._headed({"choices": [], "usage": self.usage})) + DONE

    def _can_be_cut_here(self) -> bool:
        said = self._transcript
        if said.can_go_on_by_ids and said.text and not self._swallow:
            return True
        said.has_all_ids = False  # what is left out may have been text
        return False

    def conclude(self, reason: str) -> bytes:
        """The end of an answer that was complete but for being told so."""
        shown, reason_ = self._until_stop("", reason)
        choice: Json = {"index": 0, "delta": {}}
        chunk = self._rewritten({"choices": [choice]}, choice, shown, reason_)
        return event(chunk) + self.finish()

    def _chunk(self, raw: bytes, chunk: Json) -> bytes:
        finished = self._notice(chunk)
        if finished is None or not (choices := chunk.get("choices")):
            return b""
        text = self._new(chunk)
        if text is None:
            return self._diverge("it began another answer")
        return self._said(chunk, choices[0], text, finished.get(0))

    def _new(self, chunk: Json) -> str | None:
        """What of a chunk's text the caller does not have yet; None when it is not what the caller has."""
        text = self._transcript.add(chunk)
        if self.budget is not None and not self.budget.has(self._transcript.bytes):
            self._is_kept = False  # it flows on; it is only too long to be carried on
            self._transcript = self._transcript.counted()
        if not self._swallow:
            return text
        known = min(len(text), len(self._swallow))
        if text[:known] != self._swallow[:known]:
            return None
        self._swallow = self._swallow[known:]
        return text[known:]

    def _diverge(self, how: str) -> bytes:
        self._finished.clear()  # with an answer that is not ours
        self._happening = Diverged(how)
        return b""

    def _said(self, chunk: Json, choice: Json, text: str, reason: str | None) -> bytes:
        if reason is not None and self._swallow:
            return self._diverge("it ended sooner")
        if reason == "length" and self._is_limited:
            self._happening = Limited("it reached the limit it was given")
            self._finished.clear()
            reason = None
        shown, reason = self._until_stop(text, reason)
        finder = self._voice.finder
        is_stop = finder is not None and finder.found is not None
        if finder is not None and is_stop:
            self._finished.add(0)
            choice["stop_reason"] = finder.found
            self._leave_out(choice, finder.beyond, len(text))
        if not self._is_worth_sending(choice, shown, reason):
            return b""
        out = event(self._rewritten(chunk, choice, shown, reason))
        return out + self._done() if is_stop else out

    def _leave_out(self, choice: Json, beyond: int, chars: int) -> None:
        """An event of many tokens may go on after the stop; those are not billed, as near as can be told."""
        ids = choice.get("token_ids")
        if not isinstance(ids, list) or not beyond or not chars:
            return
        surplus = min(len(ids) * beyond // chars, len(ids) - 1)
        if surplus > 0:
            choice["token_ids"] = ids[:-surplus]
            del self._transcript.ids[-surplus:]

    def _until_stop(self, text: str, reason: str | None) -> tuple[str, str | None]:
        """The text that may be shown, up to a stop string, which is the end."""
        finder = self._voice.finder
        if finder is None:
            return text, reason
        shown = finder.feed(text)
        if finder.found is not None:
            return shown + (finder.found if self._voice.shows_stop else ""), "stop"
        return (shown + finder.flush(), reason) if reason is not None else (shown, None)

    def _is_worth_sending(self, choice: Json, shown: str, reason: str | None) -> bool:
        delta = choice.get("delta") or {}
        is_role = "role" in delta and not self._voice.has_role
        beside = any(value for key, value in delta.items() if key not in ("role", "content"))
        ids = self._voice.wants_ids and choice.get("token_ids")
        return bool(shown or reason or is_role or beside or ids)

    def _rewritten(self, chunk: Json, choice: Json, shown: str, reason: str | None) -> Json:
        choice = {key: value for key, value in choice.items() if key not in ("text", "delta")}
        self._show_ids(choice)
        if not self._voice.wants_ids or self._resumes:
            choice.pop("prompt_token_ids", None)
        said = self._delta(chunk, shown) if self._voice.endpoint == "chat/completions" else {"text": shown}
        choice = {"index": 0, **said, "logprobs": None, **choice, "finish_reason": reason}
        rewritten = self._headed({**chunk, "choices": [choice]})
        rewritten.pop("usage", None)
        if not self._voice.wants_ids or self._resumes:
            rewritten.pop("prompt_token_ids", None)
        return self._labelled(rewritten, is_last=reason is not None)

    def _show_ids(self, choice: Json) -> None:
        """To who asked for them, but for those that they have."""
        ids = choice.pop("token_ids", None)
        if not self._voice.wants_ids or not isinstance(ids, list):
            return
        known = min(len(ids), self._swallow_ids)
        self._swallow_ids -= known
        choice["token_ids"] = ids[known:]

    def _delta(self, chunk: Json, shown: str) -> Json:
        delta = dict(chunk["choices"][0].get("delta") or {})
        if self._voice.has_role:
            delta.pop("role", None)
        self._voice.has_role = self._voice.has_role or "role" in delta
        if shown:
            delta["content"] = shown
        elif delta.get("content"):
            del delta["content"]
        return {"delta": delta}

    def _labelled(self, chunk: Json, *, is_last: bool) -> Json:
        if self._first or is_last:
            chunk["sive"] = self._label.merged(chunk.get("sive"))
            self._first = False
        else:
            chunk.pop("sive", None)
        return chunk

    def _headed(self, chunk: Json) -> Json:
        """Under the caller's one id and date, and the name of who speaks."""
        said = self._transcript
        kind = "chat.completion.chunk" if self._voice.endpoint == "chat/completions" else "text_completion"
        model = self._label.model or chunk.get("model") or said.model
        return chunk | {"id": said.id, "object": kind, "created": said.created, "model": model}

    def _counted(self) -> Json | None:
        """One bill: the prompt once, and all that the caller got."""
        said = self._transcript
        if self.usage is None or (self._voice.finder is not None and self._voice.finder.found is not None):
            return said.usage() or self.usage
        before = self._before
        prompt, new = self.usage.get("prompt_tokens"), self.usage.get("completion_tokens")
        if not self._resumes or not isinstance(prompt, int) or not isinstance(new, int):
            return self.usage
        first = said.prompt_tokens if said.prompt_tokens is not None else max(0, prompt - before)
        return self.usage | usage(first, before + new)


def carrying_on(plan: Plan, label: Label, voice: Voice, stops: tuple[str, ...]) -> RewritingRelay:
    """The relay of an answer that is carried on, or whose stop strings are found here."""
    had = voice.transcript
    if plan.keeps_stop and stops and voice.finder is None:
        voice.finder = StopFinder(stops)
        voice.finder.prime(had.text)
    swallow_ids = 0
    match plan.level:
        case "tokens":
            said, swallow = had.carried_on_by_ids(), had.unsettled
            swallow_ids = len(had.ids) - had.settled
        case "text":
            said, swallow = had.carried_on_by_text(), ""
        case "none":
            said, swallow = had.started_over(), had.text
            swallow_ids = len(had.ids)
        case None:
            said, swallow = had, ""
    return RewritingRelay(
        label,
        voice,
        said,
        swallow=swallow,
        swallow_ids=swallow_ids,
        before=plan.before,
        resumes=plan.level is not None,
        is_limited=plan.is_limited,
    )
