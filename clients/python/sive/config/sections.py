"""The sections of ``sive.toml`` as frozen, typed settings; see docs/configuration.md for every key."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, SecretStr, field_validator

from sive.config.hosts import HostSettings

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+")
"""``null`` is none: every sandboxed page has it."""

MIN_TOKEN_SECRET_CHARS = 32
"""Of a secret that signs tokens: whoever sees one token can try secrets against it at leisure."""

Seconds = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GatewaySettings(Section):
    """``[gateway]``: what ``sive serve`` listens on, and for how long it tries.

    ``deadline_s`` counts only time in which the caller got nothing. ``head_s``: after it a stream gets
    its 200 and ``: waiting`` comments while rungs are still tried. ``rest_s``: the longest that a backend
    is left alone after failures. ``admin_keys``: from ``SIVE_ADMIN_KEYS``; without one nobody may change what
    is served. ``token_secrets``: from ``SIVE_TOKEN_SECRETS``; what pages' short-lived tokens are signed with.
    ``probe_interval_s``: about how often an idle backend is asked for a token. ``adapters``: the
    ``adapters.toml`` that pods with an ``admin_key`` are kept at; ``adapters_remove``: what it does not list
    is removed there.
    ``max_reply_bytes``: of what a backend sends in one piece; ``max_held_bytes``: of all that one request
    keeps in memory, over all attempts.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    api_keys: tuple[SecretStr, ...] = ()
    api_keys_env: str = "SIVE_API_KEYS"
    admin_keys: tuple[SecretStr, ...] = ()
    token_secrets: tuple[SecretStr, ...] = ()
    deadline_s: Seconds = 120
    connect_s: Seconds = 3
    head_s: Seconds = 5
    first_token_s: Seconds = 10
    stall_s: Seconds = 8
    whole_s: Seconds = 100
    rest_s: Annotated[float, Field(gt=0, le=10)] = 5
    refusal_s: Seconds = 300
    probe_interval_s: Seconds = 3
    drain_s: Seconds = 20
    max_body_bytes: Annotated[int, Field(gt=0)] = 10_000_000
    max_reply_bytes: Annotated[int, Field(gt=0)] = 32_000_000
    max_held_bytes: Annotated[int, Field(gt=0)] = 64_000_000
    cors_origins: tuple[str, ...] = ()
    adapters: Path | None = None
    adapters_remove: bool = False

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_spelled_as_browsers_do(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                wanted = "scheme://host or scheme://host:port in lower case, without a path, or '*'"
                raise ValueError(f"{origin!r} is no origin of a page: write {wanted}")
        return origins

    @field_validator("api_keys", "admin_keys")
    @classmethod
    def _keys_say_something(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(key.get_secret_value().strip() for key in keys):
            raise ValueError("an empty key would let everybody in: leave it out")
        return keys

    @field_validator("token_secrets")
    @classmethod
    def _secrets_cannot_be_guessed(cls, secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        lengths = [len(secret.get_secret_value().strip()) for secret in secrets]
        if lengths and min(lengths) < MIN_TOKEN_SECRET_CHARS:
            raise ValueError(
                f"a secret of {min(lengths)} characters can be guessed from one token: "
                f"{MIN_TOKEN_SECRET_CHARS} at least (openssl rand -hex 32)"
            )
        return secrets


class BackendSettings(HostSettings):
    """``[[backend]]``: something that can answer. ``name`` is what callers see; never a URL.

    ``fields``: ``all`` passes every field of a request on (vLLM, another sive), ``openai`` drops the
    ones OpenAI does not know and names them in ``sive.dropped``. ``resume``: how it carries on an answer
    that broke off elsewhere; learned from its answers when left out. ``probe``: ``token`` asks it for one
    token while nobody else does, ``passive`` waits for a caller's request. ``position_seeds``: it draws the
    noise of a seed by position, as vLLM does on GPUs, so that sampled answers can be carried on exactly.
    ``admin_key``: of a sive with an engine that is to be kept at the gateway's list of adapters.
    ``endpoints``: what it has beside chat completions and completions; learned when left out.
    ``headers``: sent with every request. ``tools``, ``adapters``, ``quota``, ``streaming``: what it can do,
    and whether it runs out; its kind's when left out. ``first_token_s``: its own patience.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    url: AnyHttpUrl | None = None
    api_key: SecretStr | None = None
    api_key_env: str | None = None
    admin_key: SecretStr | None = None
    admin_key_env: str | None = None
    fields: Literal["all", "openai"] | None = None
    context_tokens: Annotated[int, Field(gt=0)] | None = None
    resume: Literal["tokens", "text", "none"] | None = None
    probe: Literal["token", "passive"] | None = None
    max_in_flight: Annotated[int, Field(gt=0)] | None = None
    position_seeds: bool = False
    endpoints: tuple[Literal["embeddings", "messages", "responses"], ...] | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    tools: bool | None = None
    adapters: bool | None = None
    quota: bool | None = None
    streaming: bool | None = None
    first_token_s: Seconds | None = None


class RungSettings(Section):
    """One entry of a route: a backend, and the name it knows the model by."""

    backend: str
    model: str
    weights: str | None = None
    degraded: bool | None = None
    system_prompt: str | None = None


class ModelSettings(Section):
    """``[model.NAME]``: a served model and its ordered rungs.

    ``route = "default"`` is the engine, SNB_BACKEND_URL, HF_TOKEN, local: whichever are there.
    ``degrade = "refuse"``: an error rather than another voice. ``guard_json``: answers in one piece are
    streamed from the backend and put together here, so that they survive its death; false passes them
    through. ``hedge``: when a first token is later than 95 % of them, the next rung is asked as well.
    ``greeting``: how a conversation begins for clients of the older services. ``line`` and ``questions``: one
    line of character, and what to ask first, for the chat page.
    """

    route: Literal["default"] | Annotated[tuple[RungSettings, ...], Field(min_length=1)] = "default"
    degrade: Literal["allow", "refuse"] = "allow"
    guard_json: bool = True
    hedge: bool = False
    system_prompt: str | None = None
    greeting: str | None = None
    line: str | None = None
    questions: tuple[str, ...] = ()
    weights: str | None = None


class EngineSettings(BaseModel):
    """``[engine]``: the vLLM child process. Keys sive does not know go to vLLM's own ``--config``.

    ``adapters``: path of an ``adapters.toml``; ``adapters_dir``: where their versions are kept. ``command``:
    the ``vllm`` program, found when left out. ``start_s``: an engine not ready by then is restarted.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    model: str
    served_model_name: str | None = None
    adapters: Path | None = None
    adapters_dir: Path | None = None
    command: Path | None = None
    start_s: Seconds = 1800
    max_model_len: Annotated[int, Field(gt=0)] | None = None

    @property
    def passed_through(self) -> dict[str, Any]:
        """Keys for vLLM's ``--config``, spelled as the file spells them."""
        return dict(self.model_extra or {})


class LocalSettings(Section):
    """``[local]``: the CPU model.

    ``model``: ``auto`` (the best that is on disk and fits in memory), ``embedded``, a prepared model's
    name such as ``openai-community/gpt2``, or a folder. ``slots`` requests run at once on one thread
    each, ``queue`` more wait. A model is loaded only when ``headroom_mb`` are free, a large one only when
    more is.
    """

    enabled: bool = True
    model: str = "auto"
    weights_dir: Path | None = None
    slots: Annotated[int, Field(ge=1, le=64)] = 4
    queue: Annotated[int, Field(ge=0, le=1024)] = 8
    headroom_mb: Annotated[int, Field(ge=0)] = 350
    max_tokens: Annotated[int, Field(ge=1)] = 128


class FunctionSettings(Section):
    """One of ``[compat] functions``: a Gradio function of an older Space, and the model that answers for it.

    ``name`` is its ``api_name``. ``philosopher``: it takes a third argument, which names another model.
    """

    name: Annotated[str, Field(pattern=r"^/?[A-Za-z0-9_.-]+$")]
    model: str | None = None
    philosopher: bool = False


class CompatSettings(Section):
    """``[compat]``: the doors of the older services.

    ``port``: a second one to listen on, none when left out. ``model`` answers clients that name nobody.
    ``greeting_in_history``: ``/init`` puts the greeting into the history it returns, as a first answer.
    """

    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    model: str | None = None
    greeting_in_history: bool = False
    functions: tuple[FunctionSettings, ...] = (FunctionSettings(name="/chat_function"),)

    @field_validator("functions")
    @classmethod
    def _names_differ(cls, functions: tuple[FunctionSettings, ...]) -> tuple[FunctionSettings, ...]:
        names = [function.name.strip("/") for function in functions]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two functions are called {sorted(twice)[0]!r}: give each its own name")
        return functions


class EnvironmentSettings(Section):
    """What only the environment says: names that earlier deployments set, and ``SIVE_OFFLINE``.

    ``adapters_dir``: ``SIVE_ADAPTERS_DIR``, where versions of adapters are kept.
    ``snb_api_prefix``: where the old Space's API lies; one that ends in ``/v1`` speaks OpenAI's protocol.
    """

    snb_backend_url: str | None = None
    snb_api_prefix: str = "/gradio_api"
    hf_token: SecretStr | None = None
    ia_model: str = "Qwen/Qwen2.5-14B-Instruct"
    offline: bool = False
    adapters_dir: Path = Path("~/.cache/sive/adapters")


class Settings(Section):
    """Everything that is configured; built once by ``load`` and passed down."""

    gateway: GatewaySettings = GatewaySettings()
    backend: tuple[BackendSettings, ...] = ()
    model: dict[str, ModelSettings] = Field(default_factory=dict)
    engine: EngineSettings | None = None
    local: LocalSettings = LocalSettings()
    compat: CompatSettings = CompatSettings()
    environment: EnvironmentSettings = EnvironmentSettings()

    @field_validator("backend")
    @classmethod
    def _names_are_unique(cls, backends: tuple[BackendSettings, ...]) -> tuple[BackendSettings, ...]:
        names = [backend.name for backend in backends]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two backends are called {sorted(twice)[0]!r}: give each its own name")
        return backends
