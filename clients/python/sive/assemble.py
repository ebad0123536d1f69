"""From settings to what runs: backends, the table of routes, and why each rung is there."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import AnyHttpUrl, ValidationError

from sive.backends import Backend
from sive.backends.make import make_backend
from sive.backends.openai import LOCAL_FIELDS, OpenAIBackend
from sive.backends.spaces import is_space
from sive.config import (
    BackendSettings,
    EnvironmentSettings,
    LocalSettings,
    ModelSettings,
    RungSettings,
    Settings,
)
from sive.errors import ConfigError
from sive.policy import Clocks, Limits
from sive.protocol import Json
from sive.routes import Model, Rung, Table

LOCAL_URL = "local:/v1"


@dataclass(frozen=True, slots=True)
class LocalModel:
    """The CPU model as routes see it."""

    name: str
    weights: str
    context_tokens: int
    why: str


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A model that the engine of this process serves; ``parent`` is the base model of an adapter.

    ``engine_name``: what the engine calls the version that answers. ``weights``: None while no version is
    known. ``system_prompt`` and ``sampling`` stand in for what a request lacks.
    """

    name: str
    weights: str | None
    parent: str | None = None
    engine_name: str = ""
    system_prompt: str | None = None
    sampling: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineParts:
    """The engine as routes see it. ``may_lack_models``: a route to a model that it lacks is no mistake."""

    backend: Backend
    models: Sequence[EngineModel]
    may_lack_models: bool = False


@dataclass(frozen=True, slots=True)
class Learned:
    """What a backend says of one of its models: whose voice it is, how much it reads, how it draws."""

    weights: str | None = None
    context_tokens: int | None = None
    position_seeds: bool = False


Lessons = Mapping[tuple[str, str], Learned]
"""By backend and its name for the model."""

NOTHING: Lessons = {}


def clocks(settings: Settings) -> Clocks:
    """The policy's clocks as configured."""
    gateway = settings.gateway
    return Clocks(
        deadline_s=gateway.deadline_s,
        head_s=gateway.head_s,
        first_token_s=gateway.first_token_s,
        stall_s=gateway.stall_s,
        whole_s=gateway.whole_s,
        rest_s=gateway.rest_s,
        refusal_s=gateway.refusal_s,
    )


def limits(settings: Settings) -> Limits:
    """How much a backend may send, and a request may keep."""
    return Limits(settings.gateway.max_reply_bytes, settings.gateway.max_held_bytes)


def build_table(
    settings: Settings,
    *,
    local: LocalModel | None,
    engine: EngineParts | None = None,
    learned: Lessons = NOTHING,
) -> Table:
    """The routes of every served model. What the configuration says counts before what was learned.

    Raises:
        ConfigError: a backend without a URL, or a route to a backend that is switched off.
    """
    return _Builder(settings, local, engine, learned).table()


def check_compat(settings: Settings, table: Table) -> None:
    """Look whether the models that ``[compat]`` names are served.

    Raises:
        ConfigError: one is not; it names those that are.
    """
    compat = settings.compat
    named = [("[compat] model", compat.model)]
    named += [
        (f"[[compat.functions]] {function.name!r}: model", function.model) for function in compat.functions
    ]
    for where, name in named:
        if name is not None and name not in table and name.lower() not in table:
            raise ConfigError(f"{where} = {name!r} is not served; served are {', '.join(table)}")


def describe_local(settings: LocalSettings) -> LocalModel | None:
    """The CPU model that would be loaded; None when it is switched off or ``sive[local]`` is missing."""
    if not settings.enabled or not all(
        importlib.util.find_spec(name) for name in ("ctranslate2", "tokenizers")
    ):
        return None
    from sive.wires.local import LocalWire

    told = LocalWire(settings).describe()
    return LocalModel(told.name, told.weights, told.context_tokens, told.why)


def local_rung(local: LocalModel) -> Rung:
    """The CPU model as the last rung of a route."""
    backend = OpenAIBackend(
        "local",
        LOCAL_URL,
        known_fields=LOCAL_FIELDS,
        context_tokens=local.context_tokens,
        wire="local",
        is_local=True,
        resume="text",
        endpoints=frozenset(),
        tools=False,
        adapters=False,
    )
    return Rung(backend, local.name, local.why, local.weights)


class _Builder:
    def __init__(
        self, settings: Settings, local: LocalModel | None, engine: EngineParts | None, learned: Lessons
    ) -> None:
        self._settings = settings
        self._learned = learned
        self._local = local
        self._engine = engine
        self._engine_models: Mapping[str, EngineModel] = {m.name: m for m in engine.models} if engine else {}
        self._snb = _snb(settings.environment)
        self._backends = {backend.name: make_backend(backend) for backend in settings.backend}

    def table(self) -> Table:
        configured = {
            name: self._model(name, model)
            for name, model in self._settings.model.items()
            if not (name == "local" and self._local is None)
        }
        engine_only = self._engine_models.keys() - configured.keys()
        return configured | {name: self._model(name, ModelSettings()) for name in sorted(engine_only)}

    def _model(self, name: str, settings: ModelSettings) -> Model:
        if settings.route == "default":
            rungs = self._default_rungs(name)
        else:
            rungs = [self._rung(rung) for rung in settings.route]
        weights = settings.weights or next(
            (rung.weights for rung in rungs if not rung.backend.is_local), None
        )
        if weights is None and name == "local" and rungs:
            weights = rungs[0].weights
        own = self._engine_models.get(name)
        written = () if settings.route == "default" else settings.route
        return Model(
            name=name,
            rungs=tuple(
                _marked(
                    rung,
                    is_first=not number,
                    weights=weights,
                    said=written[number].degraded if written else None,
                )
                for number, rung in enumerate(rungs)
            ),
            weights=weights,
            parent=own.parent if own else None,
            refuses_degraded=settings.degrade == "refuse",
            guards_json=settings.guard_json,
            hedges=settings.hedge,
            system_prompt=settings.system_prompt or (own.system_prompt if own else None),
            sampling=own.sampling if own else {},
        )

    def _default_rungs(self, name: str) -> list[Rung]:
        rungs: list[Rung] = []
        environment = self._settings.environment
        if name in self._engine_models:
            rungs.append(self._engine_rung(name, "the engine serves it"))
        if not environment.offline:
            if self._snb is not None:
                rungs.append(self._informed(Rung(self._snb, name, "SNB_BACKEND_URL is set")))
            if environment.hf_token is not None:
                rungs.append(
                    Rung(self._hf(), environment.ia_model, "HF_TOKEN is set", weights=environment.ia_model)
                )
        if self._local is not None:
            rungs.append(local_rung(self._local))
        return rungs

    def _rung(self, rung: RungSettings) -> Rung:
        if rung.backend == "local":
            if self._local is None:
                raise ConfigError(f"a route names 'local', but {self._why_no_local()}")
            found = local_rung(self._local)
            is_other = rung.model not in ("auto", found.model)
            why = f"{found.why}; the route asks for {rung.model}" if is_other else found.why
            return replace(
                found, why=why, weights=rung.weights or found.weights, system_prompt=rung.system_prompt
            )
        if rung.backend == "engine":
            found = self._engine_rung(rung.model, "configured")
            return replace(found, weights=rung.weights or found.weights, system_prompt=rung.system_prompt)
        backend = self._backends.get(rung.backend) or self._hf()
        found = Rung(backend, rung.model, "configured", rung.weights, system_prompt=rung.system_prompt)
        return self._informed(found)

    def _informed(self, rung: Rung) -> Rung:
        """With what its backend says of the model, where the configuration says nothing."""
        learned = self._learned.get((rung.backend.name, rung.model))
        if learned is None:
            return rung
        backend = rung.backend
        backend = replace(
            backend,
            context_tokens=backend.context_tokens or learned.context_tokens,
            position_seeds=backend.position_seeds or learned.position_seeds,
        )
        weights = rung.weights or learned.weights
        return replace(rung, backend=backend, weights=weights, says_weights=rung.weights is None)

    def _why_no_local(self) -> str:
        if not self._settings.local.enabled:
            return "[local] enabled = false: leave that rung out, or enable it"
        return "ctranslate2 or tokenizers is missing: install sive with its extra 'local'"

    def _engine_rung(self, name: str, why: str) -> Rung:
        if self._engine is not None and self._engine.may_lack_models and name not in self._engine_models:
            return Rung(self._engine.backend, name, why)
        if self._engine is None or name not in self._engine_models:
            served = ", ".join(self._engine_models) or "nothing"
            raise ConfigError(f"a route asks the engine for {name!r}, which serves {served}")
        found = self._engine_models[name]
        return self._informed(Rung(self._engine.backend, found.engine_name or name, why, found.weights))

    def _hf(self) -> Backend:
        if "hf" in self._backends:
            return self._backends["hf"]
        return make_backend(
            BackendSettings(name="hf", kind="hf", api_key=self._settings.environment.hf_token)
        )


def _marked(rung: Rung, *, is_first: bool, weights: str | None, said: bool | None) -> Rung:
    """Is it another voice? The first rung is the model's own; the CPU only under a name of its own."""
    if said is not None:
        is_degraded = said
    elif rung.backend.is_local or not is_first:
        is_degraded = rung.weights is None or rung.weights != weights
    else:
        is_degraded = False
    return Rung(rung.backend, rung.model, rung.why, rung.weights, is_degraded, rung.system_prompt)


def _snb(environment: EnvironmentSettings) -> Backend | None:
    """What earlier deployments name: a Gradio app, or, below ``/v1``, what speaks OpenAI's protocol."""
    if not environment.snb_backend_url:
        return None
    url, prefix = environment.snb_backend_url, environment.snb_api_prefix
    url = (url if "://" in url else f"https://{url}").rstrip("/")
    try:
        if prefix.endswith("/v1"):
            return OpenAIBackend("snb", f"{url}/{prefix.strip('/')}", probe="token")
        # The token is the Hub's: whatever else stands there must not see it.
        key = environment.hf_token if is_space(url) else None
        snb = BackendSettings(name="snb", kind="gradio", url=AnyHttpUrl(url), prefix=prefix, api_key=key)
    except ValidationError as exc:
        raise ConfigError(f"SNB_BACKEND_URL: {exc.errors()[0]['msg']} (it is {url!r})") from exc
    return make_backend(snb)
