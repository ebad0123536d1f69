"""What a caller got, and whether that is the whole answer, an honest error, or wrong."""

from dataclasses import dataclass, field
from typing import Any

import openai

from tests.chaos.faults import VOICE, Fault
from tests.lab.speech import Speech

Json = dict[str, Any]

END_MARK = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Got:
    """``chunks``: of a stream; ``answer``: in one piece; ``raw``: the bytes, where they can be seen."""

    chunks: list[Json] = field(default_factory=list)
    answer: Json | None = None
    error: Exception | None = None
    raw: bytes | None = None
    seconds: float = 0

    @property
    def choices(self) -> list[Json]:
        """The pieces of all choices."""
        said = self.chunks if self.answer is None else [self.answer]
        return [choice for one in said for choice in one.get("choices") or ()]

    def text(self, index: int = 0, *, until: int | None = None) -> str:
        """What one choice says: content, or its tool's arguments; ``until``: in so many first chunks."""
        pieces = self.choices if until is None else Got(self.chunks[:until]).choices
        return "".join(_said(choice) for choice in pieces if choice["index"] == index)

    @property
    def switched_at(self) -> int | None:
        """The chunk where another voice begins; 0 for an answer in one piece."""
        said = self.chunks if self.answer is None else [self.answer]
        degraded = (at for at, one in enumerate(said) if (one.get("sive") or {}).get("degraded"))
        return next(degraded, None)


def _said(choice: Json) -> str:
    if "text" in choice:
        return choice["text"] or ""
    delta = choice.get("delta") or choice.get("message") or {}
    calls = "".join(call["function"].get("arguments") or "" for call in delta.get("tool_calls") or ())
    return (delta.get("content") or "") + calls


@dataclass(frozen=True, slots=True)
class Outcome:
    """``kind``: whole, other (another voice, and it says so), error, or WRONG; ``why`` in words."""

    kind: str
    why: str = ""
    status: int | None = None
    code: str | None = None

    def matches(self, expected: str) -> bool:
        """Is it one of ``whole|other|error [status] [code]``?"""
        return any(self._is(one.split()) for one in expected.split("|"))

    def _is(self, words: list[str]) -> bool:
        said = {str(self.status), str(self.code)}
        return words[0] == self.kind and all(word in said for word in words[1:])


def reference(fault: Fault, *, seed: int | None = None) -> Json:
    """The uncut answer, as the healthy voice gives it in one piece."""
    body = fault.body if seed is None else fault.body | {"seed": seed}
    return Speech(VOICE, fault.endpoint, {**body, "model": "m"}).whole()


def judge(got: Got, fault: Fault, model: str, *, seed: int | None = None) -> Outcome:
    """Compare what a caller got with the uncut answer; ``seed``: with which it was drawn."""
    wanted = reference(fault, seed=seed)
    if got.error is not None:
        return _error(got, wanted)
    if problem := _misshapen(got, fault, wanted):
        return Outcome("WRONG", problem)
    if got.switched_at is not None:
        problem = _not_carried_on(got, wanted)
        return Outcome("WRONG", problem) if problem else Outcome("other", _speaker(got))
    problem = _not_whole(got, fault, wanted, model)
    return Outcome("WRONG", problem) if problem else Outcome("whole", _speaker(got))


def _speaker(got: Got) -> str:
    said = got.chunks if got.answer is None else [got.answer]
    return " then ".join(dict.fromkeys(one["sive"]["backend"] for one in said if one.get("sive")))


# Errors


def _error(got: Got, wanted: Json) -> Outcome:
    match got.error:
        case openai.APIStatusError(status_code=status, body=body):
            code = body.get("code") if isinstance(body, dict) else None
            honest = isinstance(body, dict) and body.get("message")
            kind = "error" if honest and not got.chunks else "WRONG"
            return Outcome(kind, f"HTTP {status}: {_message(got.error)}", status, code)
        case openai.APIConnectionError():
            return Outcome("WRONG", f"the connection broke: {got.error!r} {got.error.__cause__!r}")
        case openai.APIError(code=code):
            return _error_event(got, wanted, code)
    return Outcome("WRONG", f"the SDK raised {got.error!r}")


def _error_event(got: Got, wanted: Json, code: str | None) -> Outcome:
    if got.raw is not None and END_MARK in got.raw:
        return Outcome("WRONG", "an error event, and then a clean [DONE]")
    if any(choice.get("finish_reason") for choice in got.choices):
        return Outcome("WRONG", "an error event after a finish_reason")
    carried = got.switched_at is not None
    problem = _not_carried_on(got, wanted) if carried else _differs(got, wanted, is_half=True)
    if problem:
        return Outcome("WRONG", f"an error event, and before it: {problem}")
    return Outcome("error", f"error event: {_message(got.error)}", None, code)


def _message(error: Exception | None) -> str:
    return str(getattr(error, "message", error))[:300]


# The shape of an answer, whoever speaks


def _misshapen(got: Got, fault: Fault, wanted: Json) -> str:
    if got.answer is not None:
        return _misshapen_choices(got, wanted)
    if not got.chunks:
        return "a stream without a chunk, and no error"
    checks = (
        (len({chunk.get("id") for chunk in got.chunks}) != 1, "more than one id"),
        (len({chunk.get("created") for chunk in got.chunks}) != 1, "more than one created"),
        (got.raw is not None and got.raw.count(END_MARK) != 1, "not one [DONE]"),
        (got.raw is not None and not got.raw.endswith(END_MARK), "[DONE] is not the end"),
        (
            _roles(got) != (len(wanted["choices"]) if fault.endpoint[:4] == "chat" else 0),
            f"{_roles(got)} roles",
        ),
        (len(_usages(got)) != int(fault.usage), f"{len(_usages(got))} usages"),
    )
    problems = [said for is_wrong, said in checks if is_wrong]
    return "; ".join(problems) or _misshapen_choices(got, wanted)


def _misshapen_choices(got: Got, wanted: Json) -> str:
    for choice in wanted["choices"][: 1 if _gives_one(got) else None]:
        mine = [one["finish_reason"] for one in got.choices if one["index"] == choice["index"]]
        if len([reason for reason in mine if reason]) != 1:
            return f"finish_reasons of choice {choice['index']}: {[reason for reason in mine if reason]}"
    said = got.chunks if got.answer is None else [got.answer]
    finishing = [one for one in said if any(choice["finish_reason"] for choice in one["choices"])]
    if not said[0].get("sive") or not all(one.get("sive") for one in finishing):
        return "no sive object in the first chunk, or where it ends"
    return ""


def _gives_one(got: Got) -> bool:
    """Did the one who answered say that it does not know ``n``?"""
    said = got.chunks if got.answer is None else [got.answer]
    return any("n" in (one.get("sive") or {}).get("dropped", ()) for one in said)


def _roles(got: Got) -> int:
    return sum("role" in (choice.get("delta") or {}) for choice in got.choices)


def _usages(got: Got) -> list[Json]:
    return [chunk["usage"] for chunk in got.chunks if chunk.get("usage")]


# The whole answer


def _not_whole(got: Got, fault: Fault, wanted: Json, model: str) -> str:
    said = got.chunks if got.answer is None else [got.answer]
    if problem := _differs(got, wanted):
        return problem
    if names := {one["model"] for one in said} - {model}:
        return f"the model is called {sorted(names)}"
    reasons = {one["index"]: one["finish_reason"] for one in got.choices if one["finish_reason"]}
    if reasons != {one["index"]: one["finish_reason"] for one in wanted["choices"]}:
        return f"finish_reason {reasons}"
    usages = _usages(got) if got.answer is None else [got.answer.get("usage")]
    if usages and _counts(usages[0]) != _counts(wanted["usage"]):
        return f"usage {_counts(usages[0])}, not {_counts(wanted['usage'])}"
    return _ids_differ(got, fault, wanted) or _logprobs_differ(got, fault, wanted)


def _differs(got: Got, wanted: Json, *, is_half: bool = False) -> str:
    for choice in wanted["choices"]:
        text, whole = got.text(choice["index"]), _said(choice)
        if text != whole and not (is_half and whole.startswith(text)):
            same = next((at for at, (a, b) in enumerate(zip(text, whole, strict=False)) if a != b), -1)
            same = min(len(text), len(whole)) if same < 0 else same
            return f"after {whole[:same]!r} came {text[same:]!r}, not {whole[same:]!r}"
    return ""


def _counts(usage: Json | None) -> tuple[Any, ...]:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return tuple((usage or {}).get(name) for name in names)


def _ids_differ(got: Got, fault: Fault, wanted: Json) -> str:
    said = got.chunks if got.answer is None else [got.answer]
    ids = [one for choice in got.choices for one in choice.get("token_ids") or ()]
    prompts = [one["prompt_token_ids"] for one in [*said, *got.choices] if one.get("prompt_token_ids")]
    if not fault.body.get("return_token_ids"):
        return "token ids that nobody asked for" if ids or prompts else ""
    if ids != wanted["choices"][0]["token_ids"] or prompts != [wanted["prompt_token_ids"]]:
        return f"token ids {ids}, of {len(prompts)} prompts"
    return ""


def _logprobs_differ(got: Got, fault: Fault, wanted: Json) -> str:
    if not fault.body.get("logprobs"):
        return ""
    tokens = [one for choice in got.choices for one in (choice.get("logprobs") or {}).get("content") or ()]
    asked = wanted["choices"][0]["logprobs"]["content"]
    return "" if tokens == asked else f"{len(tokens)} logprobs, not {len(asked)}"


# Another voice


def _not_carried_on(got: Got, wanted: Json) -> str:
    switched_at = got.switched_at
    if got.answer is not None or switched_at is None:
        return ""
    before = got.text(until=switched_at)
    if not _said(wanted["choices"][0]).startswith(before):
        return f"{before!r} is no beginning of the answer, and then another voice"
    label = got.chunks[switched_at]["sive"]
    if bool(before) != bool(label.get("resumed")):
        return f"resumed is {label.get('resumed')} after {before!r}"
    return ""
