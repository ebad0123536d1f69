"""Which sive the commands talk to."""

from dataclasses import dataclass
from pathlib import Path

import httpx2
from sive.config import Settings, load

PROBE_S = 1.0
LOOPBACK = ("http://127.", "http://localhost:", "http://[::1]")


@dataclass(frozen=True, slots=True)
class Target:
    """A running sive: ``url`` without ``/v1``."""

    url: str
    api_key: str

    @property
    def is_near(self) -> bool:
        """Is it on this machine, where no proxy can reach it?"""
        return self.url.startswith(LOOPBACK)


def target(url: str | None, api_key: str | None, config: Path | None) -> Target:
    """The sive that was named, else the one the configuration would start on this machine."""
    settings = load(config).settings
    if api_key is None:
        keys = settings.gateway.api_keys
        api_key = keys[0].get_secret_value() if keys else "none-needed"
    named = url or _own_url(settings)
    with_scheme = named if "://" in named else f"http://{named}"
    return Target(with_scheme.rstrip("/").removesuffix("/v1"), api_key)


def _own_url(settings: Settings) -> str:
    host = settings.gateway.host
    if host in ("0.0.0.0", "::"):  # noqa: S104 - listening everywhere is listening here
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.gateway.port}"


def is_up(found: Target) -> bool:
    """Does a sive answer there?"""
    try:
        reply = httpx2.get(f"{found.url}/health", timeout=PROBE_S, trust_env=not found.is_near)
        return bool(reply.json() == {"status": "ok"})
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError):
        return False
