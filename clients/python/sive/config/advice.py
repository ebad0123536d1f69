"""What is allowed in a configuration and most likely not meant: a line for each, to be read at the start."""

import re
from urllib.parse import urlsplit

from sive.config.sections import BackendSettings, Settings

VERSIONED = re.compile(r"/v\d")
ENDPOINT = re.compile(r"/(chat/)?completions/?$")


def advice(settings: Settings) -> list[str]:
    """One line for each thing that looks wrong and may be right."""
    return [line for backend in settings.backend if (line := _about_url(backend))]


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
