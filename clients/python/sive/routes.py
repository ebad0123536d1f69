"""Routes: which backends answer for a served model, in which order, and who counts as another voice."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sive.backends import Backend, Request
from sive.backends.openai import LOCAL_CHOICES
from sive.calls import Call
from sive.protocol import Json


@dataclass(frozen=True, slots=True)
class Rung:
    """A backend in a route, and the name it knows the model by.

    ``why``: why it stands there, for the start lines. ``weights``: base + adapter + version, None when
    unknown. ``is_degraded``: somebody else speaks than the served model. ``says_weights``: its weights are
    what the backend itself says that they are, so that it can tell when they are others by now.
    """

    backend: Backend
    model: str
    why: str
    weights: str | None = None
    is_degraded: bool = False
    system_prompt: str | None = None
    says_weights: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """A served model and its ordered rungs; ``parent`` is its base model when it is an adapter.

    ``lets_upstream_degrade``: there is no other voice here, so a sive further up may use its own.
    ``sampling``: fields for requests that lack them.
    ``guards_json``: answers in one piece are streamed upstream and put together here, so that clocks and
    resuming protect them too. ``hedges``: a slow first token makes the next rung be asked as well.
    """

    name: str
    rungs: tuple[Rung, ...]
    weights: str | None = None
    parent: str | None = None
    refuses_degraded: bool = False
    lets_upstream_degrade: bool = False
    guards_json: bool = True
    hedges: bool = False
    system_prompt: str | None = None
    sampling: Json = field(default_factory=dict)


Table = Mapping[str, Model]
"""Served models by name; replaced whole while requests run."""


@dataclass(frozen=True, slots=True)
class Rest:
    """A backend that cannot answer now: ``why`` in words for callers, and when to ask again."""

    why: str
    retry_after_s: float


def request_for(
    call: Call,
    model: Model,
    rung: Rung,
    *,
    streams: bool | None = None,
    asks_ids: bool = False,
    keeps_stop: bool = False,
    seed: int | None = None,
) -> tuple[Request, list[str]]:
    """The request in this rung's terms, and the names of the fields it would not have understood.

    ``streams``: overrides what the caller wants, for an answer that is put together here. ``asks_ids``:
    asks for token ids. ``keeps_stop``: stop strings are found here and not sent. ``seed``: for a sampled
    request without one, where the engine draws a seed's noise by position.
    """
    stream = call.stream if streams is None else streams
    known = rung.backend.known_fields
    dropped = [] if known is None else [name for name in call.body if name not in known]
    if rung.backend.is_local and (call.body.get("n") or 1) > LOCAL_CHOICES:
        dropped.append("n")
    body = dict(call.body)
    for name in dropped:
        del body[name]
    body["model"] = rung.model
    if stream:
        body["stream"] = True
        body["stream_options"] = {**(call.body.get("stream_options") or {}), "include_usage": True}
    if asks_ids:
        body["return_token_ids"] = True
    if keeps_stop:
        body.pop("stop", None)
    if seed is not None and rung.backend.position_seeds:
        body["seed"] = seed
    prompt = rung.system_prompt or model.system_prompt
    if prompt and call.endpoint == "chat/completions" and not _has_system_message(body):
        body["messages"] = [{"role": "system", "content": prompt}, *body["messages"]]
    # A sive never degrades for another sive: only the outermost one falls back to another voice.
    headers = {"x-sive-hop": str(call.hop + 1), "x-request-id": call.request_id}
    if not model.lets_upstream_degrade or call.requires_adapter:
        headers["x-sive-require"] = "adapter"
    if rung.backend.is_local and rung.is_degraded:
        headers["x-sive-truncate"] = "1"
    choices = call.prompts * (body.get("n") or 1)
    return Request(call.endpoint, body, stream, headers, choices), _said(call, dropped)


def _said(call: Call, dropped: list[str]) -> list[str]:
    """Only what the caller sent and meant: an explicit null or ``n: 1`` asks for nothing."""
    meant = (name for name in dropped if call.body[name] is not None and (name, call.body[name]) != ("n", 1))
    return sorted(name for name in meant if call.was_sent(name))


def _has_system_message(body: Json) -> bool:
    return any(message.get("role") in ("system", "developer") for message in body["messages"])
