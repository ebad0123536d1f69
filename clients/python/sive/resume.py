"""Carrying an answer on: which requests can be, by whom, and with which request. Pure.

Exact where the engine gives token ids: the prompt's and the answer's so far are the next engine's prompt.
Where it does not, by the text so far, or, for greedy requests, by starting over and leaving out what the
caller already has.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Literal

from sive.ability import Ability
from sive.backends import Request
from sive.calls import WEIGHTS_HEADER, Call
from sive.frozen import frozen
from sive.protocol import Json
from sive.routes import Model, Rung, request_for
from sive.sampling import SAMPLING_FIELDS
from sive.transcript import Transcript

Level = Literal["tokens", "text", "none"]

DEFAULT_COMPLETION_TOKENS = 16
"""What OpenAI's completions and vLLM's generate when ``max_tokens`` is left out."""


@frozen
class Plan:
    """One attempt: whom to ask and what. ``level`` None begins an answer, any other carries one on.

    ``before``: tokens of the answer that are part of its prompt. ``keeps_stop``: stop strings are found
    here and not sent. ``is_limited``: it had to be given a limit that the caller did not set, so that
    reaching it is no end.
    """

    rung: Rung
    request: Request
    dropped: list[str]
    level: Level | None = None
    keeps_stop: bool = False
    before: int = 0
    is_limited: bool = False


def has_all(call: Call, said: Transcript) -> bool:
    """Did the caller get all the tokens that were asked for, before the backend could say so?"""
    limit = _max_tokens(call)
    return limit is not None and said.is_settled and said.tokens >= limit


def plans(
    call: Call,
    model: Model,
    said: Transcript,
    cut: Rung,
    *,
    can: Ability,
    gives_ids: Callable[[Rung], bool | None],
    rungs: Iterable[Rung],
    seed: int | None,
) -> Iterator[Plan]:
    """The ways to carry on, best first.

    Another rung of equal weights by ids, even if it was never seen to give any, then the same one. For a
    greedy request one of equal weights that starts over. Then any rung by text, and last any that starts
    over.
    """
    rungs = list(rungs)
    equals = [r for r in rungs if r is not cut and r.weights == cut.weights is not None]
    equals += [r for r in rungs if r is cut]
    if can.tokens and said.can_go_on_by_ids:
        yield from (by_tokens(call, model, r, said, seed=seed) for r in equals if gives_ids(r) is not False)
    if not said.is_plain:
        return
    if can.none:
        yield from (
            over_again(call, model, r, seed=seed, asks_ids=_may_ask_ids(r, gives_ids)) for r in equals
        )
    if can.text:
        able = [r for r in rungs if r.backend.is_local or r.backend.resume == "text" or gives_ids(r)]
        yield from (
            by_text(call, model, r, said, seed=seed, asks_ids=_may_ask_ids(r, gives_ids)) for r in able
        )
    if can.none:
        others = (r for r in rungs if r not in equals)
        yield from (
            over_again(call, model, r, seed=seed, asks_ids=_may_ask_ids(r, gives_ids)) for r in others
        )


def _may_ask_ids(rung: Rung, gives_ids: Callable[[Rung], bool | None]) -> bool:
    return gives_ids(rung) is not False and rung.backend.known_fields is None


def by_tokens(call: Call, model: Model, rung: Rung, said: Transcript, *, seed: int | None) -> Plan:
    """The prompt's ids and the answer's, for an engine of equal weights: exact."""
    first, dropped = request_for(call, model, rung, streams=True, seed=seed)
    kept = said.carried_on_by_ids()
    assert kept.prompt_ids is not None  # noqa: S101 - can_go_on_by_ids
    prompt = [*kept.prompt_ids, *kept.ids]
    left, context = _left(call, kept.tokens), rung.backend.context_tokens
    body: Json = {name: first.body[name] for name in SAMPLING_FIELDS if name in first.body}
    body |= {
        "model": rung.model,
        "prompt": prompt,
        # Left out it would be 16. As many as the prompt has are sure to be allowed: it came from there.
        "max_tokens": left or (max(1, context - len(prompt)) if context else len(prompt)),
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    _less_of_min_tokens(body, kept.tokens)
    headers = first.headers
    if rung.says_weights and rung.weights is not None:
        headers = headers | {WEIGHTS_HEADER: rung.weights}  # another version's voice must not go on
    request = replace(first, endpoint="completions", body=body, headers=headers)
    is_limited = left is None and context is None
    return Plan(rung, request, dropped, "tokens", keeps_stop=True, before=kept.tokens, is_limited=is_limited)


def by_text(
    call: Call, model: Model, rung: Rung, said: Transcript, *, seed: int | None, asks_ids: bool
) -> Plan:
    """The text so far as the beginning of the assistant's turn."""
    first, dropped = request_for(
        call, model, rung, streams=True, asks_ids=asks_ids, keeps_stop=True, seed=seed
    )
    body = dict(first.body)
    if call.endpoint == "completions":
        body["prompt"] = str(body["prompt"]) + said.text
    else:
        goes_on = bool(body.get("continue_final_message"))
        body["messages"] = _continued(body["messages"], said.text, goes_on=goes_on)
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    if (left := _left(call, said.tokens)) is not None:
        body.pop("max_completion_tokens", None)
        body["max_tokens"] = left
    _less_of_min_tokens(body, said.tokens)
    request = replace(first, body=body)
    return Plan(rung, request, dropped, "text", keeps_stop=True, before=said.tokens)


def over_again(call: Call, model: Model, rung: Rung, *, seed: int | None, asks_ids: bool) -> Plan:
    """The same request once more; what the caller has is left out of the answer."""
    request, dropped = request_for(
        call, model, rung, streams=True, asks_ids=asks_ids, keeps_stop=True, seed=seed
    )
    return Plan(rung, request, dropped, "none", keeps_stop=True)


def _continued(messages: list[Json], text: str, *, goes_on: bool) -> list[Json]:
    """With the answer so far last; ``goes_on``: the caller had begun the assistant's turn already."""
    if goes_on and isinstance(messages[-1].get("content"), str):
        return [*messages[:-1], messages[-1] | {"content": messages[-1]["content"] + text}]
    return [*messages, {"role": "assistant", "content": text}]


def _max_tokens(call: Call) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        if isinstance(limit := call.body.get(name), int):
            return limit
    return DEFAULT_COMPLETION_TOKENS if call.endpoint == "completions" else None


def _less_of_min_tokens(body: Json, tokens: int) -> None:
    if isinstance(least := body.get("min_tokens"), int):
        body["min_tokens"] = max(0, least - tokens)


def _left(call: Call, tokens: int) -> int | None:
    """How many tokens are left; None when nobody set a limit."""
    limit = _max_tokens(call)
    return None if limit is None else max(1, limit - tokens)
