"""From the configuration of a backend to what answers."""

from dataclasses import replace

from sive.backends import Backend
from sive.backends.gradio import GRADIO_FIELDS, GradioBackend
from sive.backends.openai import OPENAI_FIELDS, OpenAIBackend
from sive.backends.presets import PRESETS, Preset
from sive.backends.replicate import REPLICATE_FIELDS, ReplicateBackend
from sive.backends.runpod import RunpodQueueBackend
from sive.backends.spaces import space_url
from sive.config import BackendSettings
from sive.errors import ConfigError


def make_backend(settings: BackendSettings) -> Backend:
    """What a ``[[backend]]`` describes; what it leaves open is its kind's.

    Raises:
        ConfigError: it does not say where it is.
    """
    preset = PRESETS[settings.kind]
    url = _url(settings, preset)
    return replace(
        _of_its_kind(settings, preset, url),
        api_key=settings.api_key,
        context_tokens=settings.context_tokens,
        resume=settings.resume or preset.resume,
        probe=settings.probe or preset.probe,
        max_in_flight=settings.max_in_flight,
        position_seeds=settings.position_seeds,
        tools=_said(settings.tools, preset.tools),
        adapters=_said(settings.adapters, preset.adapters),
        quota=_said(settings.quota, preset.quota),
        streams=_said(settings.streaming, preset.streams),
        first_token_s=settings.first_token_s,
        headers={**preset.headers, **settings.headers},
        endpoints=preset.endpoints if settings.endpoints is None else frozenset(settings.endpoints),
    )


def _of_its_kind(settings: BackendSettings, preset: Preset, url: str) -> Backend:
    name = settings.name
    match preset.speaks:
        case "gradio":
            return GradioBackend(
                name,
                url,
                function=settings.function,
                arguments=settings.arguments,
                history=settings.history,
                prefix=settings.prefix,
                space=settings.space,
                hub_url=settings.hub_url.rstrip("/"),
                known_fields=GRADIO_FIELDS,
            )
        case "replicate":
            return ReplicateBackend(
                name,
                url,
                deployment=settings.deployment,
                version=settings.version,
                inputs=settings.input,
                template=settings.template,
                known_fields=REPLICATE_FIELDS,
            )
        case "runpod":
            return RunpodQueueBackend(name, url)
        case "openai":
            only_openai = (settings.fields or preset.fields) == "openai"
            known = OPENAI_FIELDS | preset.knows if only_openai else None
            return OpenAIBackend(name, url, known_fields=known)


def _url(settings: BackendSettings, preset: Preset) -> str:
    if settings.url is not None:
        return str(settings.url)
    if preset.url is None and settings.space is not None:
        return space_url(settings.space)
    if preset.url is None:
        way_out = "say where its /v1 is" if preset.speaks == "openai" else 'say url, or space = "owner/name"'
        raise ConfigError(f"backend {settings.name!r} has no url: {way_out}")
    if "{endpoint_id}" in preset.url and settings.endpoint_id is None:
        raise ConfigError(
            f"backend {settings.name!r} is {settings.kind!r}, and has no endpoint_id:"
            ' say endpoint_id = "..." as its page shows it, or url'
        )
    return preset.url.replace("{endpoint_id}", settings.endpoint_id or "")


def _said(said: bool | None, usual: bool) -> bool:
    return usual if said is None else said
