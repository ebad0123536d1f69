"""What is allowed in a configuration and most likely not meant: a line for each, to be read at the start."""

import re
from urllib.parse import urlsplit

from sive.config.sections import BackendSettings, Settings

VERSIONED = re.compile(r"/v\d")
ENDPOINT = re.compile(r"/(chat/)?completions/?$")


def advice(settings: Settings) -> list[str]:
    """One line for each thing that looks wrong and may be right."""
    lines = [line for backend in settings.backend if (line := _about_url(backend))]
    return [*lines, *_about_routes(settings)]


def _about_routes(settings: Settings) -> list[str]:
    """Backends that nobody asks, and the built-in one that will refuse."""
    rungs = [rung for model in settings.model.values() if model.route != "default" for rung in model.route]
    asked = {rung.backend for rung in rungs}
    own = {backend.name for backend in settings.backend}
    idle = [
        f"backend {name!r} is in no route, so it is never asked: name it in the route of a [model.NAME]"
        for name in sorted(own - asked)
    ]
    if "hf" in asked - own and settings.environment.hf_token is None:
        idle.append("a route names 'hf', and HF_TOKEN is not set: it will refuse every request")
    return idle


def _about_url(backend: BackendSettings) -> str:
    """Most hosts speak OpenAI's protocol below ``/v1``; some do elsewhere, so it is no error."""
    if backend.url is None or backend.kind != "openai":
        return ""
    path = urlsplit(str(backend.url)).path
    if ENDPOINT.search(path):
        base = ENDPOINT.sub("", path)
        return f"backend {backend.name!r}: its url ends in {path!r}; it should end in {base!r}, before that"
    if VERSIONED.search(path):
        return ""
    asked = path.rstrip("/") + "/chat/completions"
    return (
        f"backend {backend.name!r}: its url has no /v1, so it is asked at {asked!r}; "
        f"vLLM, sive and most hosts want {path.rstrip('/') + '/v1'!r} at its end"
    )
