"""What the gateway says of itself: models, readiness, status."""

import time
from dataclasses import asdict
from typing import Any

from sive import __version__
from sive.capabilities import capabilities
from sive.routes import Model, Rest, Rung

from sive_serve.adapter_state import AdapterState
from sive_serve.engine import Engine
from sive_serve.gateway import Gateway

Json = dict[str, Any]


def models(gateway: Gateway, authorization: str) -> Json:
    """``/v1/models``: OpenAI's list, with ``parent`` for adapters and ``weights`` where they are known.

    And ``line`` and ``questions`` for the chat page, where the configuration has them.
    """
    data = [_model(gateway, model) for model in gateway.models_for(authorization).values()]
    return {"object": "list", "data": data}


def model(gateway: Gateway, name: str, authorization: str) -> Json:
    """``/v1/models/{name}``: one entry of the list.

    Raises:
        RequestError: 404, naming what is served.
    """
    return _model(gateway, gateway.model(name, authorization))


def _model(gateway: Gateway, model: Model) -> Json:
    entry: Json = {
        "id": model.name,
        "object": "model",
        "created": int(gateway.started_at),
        "owned_by": "sive",
        "weights": model.weights,
    }
    own = next((rung.backend for rung in model.rungs if not rung.is_degraded), None)
    if own is not None and own.context_tokens is not None:
        entry["max_model_len"] = own.context_tokens
    if own is not None and own.position_seeds:
        entry["position_seeds"] = True
    if model.parent:
        entry["parent"] = model.parent
    if (settings := gateway.settings.model.get(model.name)) is not None:
        entry |= settings.model_dump(include={"line", "questions"}, exclude_defaults=True)
    return entry


def readiness(gateway: Gateway, *, model: str | None = None, own_voice: bool = False) -> Json:
    """``/ready``: who could answer now, of all models or of one.

    ``ready`` while anybody could for any of them: a gateway that is taken out for one dead model answers for
    none, and so does the next, which shares its pods. ``unready`` names the models that have nobody.
    ``own_voice``: nobody else counts. Rungs that never answer for a model (``degrade = "refuse"``) are
    not listed.
    """
    now = time.monotonic()
    wanted = {
        name: [rung for rung in one.rungs if not (rung.is_degraded and one.refuses_degraded)]
        for name, one in gateway.table.items()
        if model in (None, name)
    }
    rungs = {
        name: [
            {"backend": rung.backend.name, "degraded": rung.is_degraded}
            | _state(gateway.health.rest(rung, now))
            for rung in of_model
        ]
        for name, of_model in wanted.items()
    }
    unready = [
        name
        for name, of_model in wanted.items()
        if not any(
            said["ready"] and not (rung.is_degraded and own_voice)
            for rung, said in zip(of_model, rungs[name], strict=True)
        )
    ]
    return {"ready": len(unready) < len(wanted), "unready": unready, "models": rungs}


def status(gateway: Gateway) -> Json:
    """``/status``: what is served, by whom, why, and how the engine does; no URLs, no keys."""
    now = time.monotonic()
    in_flight = gateway.health.in_flight()
    return {
        "version": __version__,
        "uptime_s": round(time.time() - gateway.started_at, 1),
        "models": {
            name: {
                "weights": model.weights,
                "parent": model.parent,
                "degrade": "refuse" if model.refuses_degraded else "allow",
                "rungs": [
                    _rung(
                        rung,
                        gateway.health.rest(rung, now),
                        gateway.health.gives_token_ids(rung.backend, now),
                    )
                    | {"last": _last(gateway, rung), "in_flight": in_flight[rung.backend.name]}
                    for rung in model.rungs
                ],
            }
            for name, model in gateway.table.items()
        },
        "engine": _engine(gateway),
        "pods": {}
        if gateway.pods is None
        else {name: {"adapters": one} for name, one in gateway.pods.state().items()},
    }


def _rung(rung: Rung, rest: Rest | None, gives_ids: bool | None) -> Json:
    return {
        "backend": rung.backend.name,
        "model": rung.model,
        "why": rung.why,
        "weights": rung.weights,
        "degraded": rung.is_degraded,
        "context_tokens": rung.backend.context_tokens,
        "can": asdict(capabilities(rung.backend, gives_token_ids=gives_ids)),
    } | _state(rest)


def _last(gateway: Gateway, rung: Rung) -> str:
    """What the backend did last as this model, which says more than that nothing is known against it."""
    key = rung.backend.name, rung.model
    if key not in gateway.outcomes:
        return "not asked yet"
    at, what = gateway.outcomes[key]
    return f"{what}, {time.monotonic() - at:.0f} s ago"


def _state(rest: Rest | None) -> Json:
    """Could it answer now? If not, why, and in how many seconds it may be tried: 0 when its probe is due."""
    if rest is None:
        return {"ready": True}
    return {"ready": False, "resting": rest.why, "rests_for_s": round(rest.retry_after_s, 1)}


def _engine(gateway: Gateway) -> Json | None:
    if gateway.engine is None:
        return None
    state = gateway.engine.state
    return {
        "phase": state.phase,
        "since_s": round(state.since_s, 1),
        "phase_s": round(state.phase_s, 1),
        "ready_in_s": state.retry_after_s,
        "fetched_bytes": state.fetched_bytes,
        "to_fetch_bytes": state.to_fetch_bytes,
        "restarts": state.restarts,
        "detail": state.detail,
        "models": list(gateway.engine.models),
        "adapters": adapters(gateway.engine),
    }


def adapters(engine: Engine, *, for_administrators: bool = False) -> Json:
    """What became of each wanted adapter: a part of ``/status``, and with sources ``/admin/adapters``."""
    states = engine.adapters.states if engine.adapters is not None else {}
    return {
        name: adapter(state) | (_sources(state) if for_administrators else {})
        for name, state in states.items()
    }


def _sources(state: AdapterState) -> Json:
    return {
        "detail": state.detail,
        "source": state.adapter.release.source,
        "base_model": state.adapter.base_model,
        "sha256": dict(state.adapter.release.sha256),
        "system_prompt": state.adapter.system_prompt,
        "sampling": dict(state.adapter.sampling),
    }


def adapter(state: AdapterState) -> Json:
    """One wanted adapter, as every caller may see it."""
    return {
        "phase": state.phase,
        "version": state.serving.short if state.serving is not None else None,
        "wanted": state.wanted.short if state.wanted is not None else None,
        "pinned": state.is_pinned,
        "languages": list(state.adapter.languages),
        "fetched_bytes": state.progress.done_bytes if state.progress is not None else 0,
        "to_fetch_bytes": (state.progress.total_bytes or 0) if state.progress is not None else 0,
    }


def start_lines(gateway: Gateway) -> list[str]:
    """One line a model: its rungs and why each is there."""
    lines = []
    for name, model in gateway.table.items():
        rungs = " > ".join(
            f"{rung.backend.name} {rung.model} ({rung.why}{'; degraded' if rung.is_degraded else ''})"
            for rung in model.rungs
        )
        lines.append(f"{name}: {rungs or 'no rung: nothing here can answer for it'}")
    return lines
