"""Which sive the commands talk to."""

from dataclasses import dataclass
from pathlib import Path

import httpx2
from sive.config import Settings, load

PROBE_S = 1.0


@dataclass(frozen=True, slots=True)
class Target:
    """A running sive: ``url`` without ``/v1``."""

    url: str
    api_key: str


def target(url: str | None, api_key: str | None, config: Path | None) -> Target:
    """The sive that was named, else the one the configuration would start on this machine."""
    settings = load(config).settings
    if api_key is None:
        keys = settings.gateway.api_keys
        api_key = keys[0].get_secret_value() if keys else "none-needed"
    return Target((url or _own_url(settings)).rstrip("/").removesuffix("/v1"), api_key)


def _own_url(settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.gateway.port}"


def is_up(found: Target) -> bool:
    """Does a sive answer there?"""
    try:
        return bool(httpx2.get(f"{found.url}/health", timeout=PROBE_S).json() == {"status": "ok"})
    except (httpx2.HTTPError, ValueError):
        return False
