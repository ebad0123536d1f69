"""Which sive the commands talk to."""

from dataclasses import dataclass
from pathlib import Path

import httpx2
from sive.config import GatewaySettings, keys_in_environment, load
from sive.errors import ConfigError

NO_KEY = "none-needed"
PROBE_S = 1.0
LOOPBACK = ("http://127.", "http://localhost:", "http://[::1]")


@dataclass(frozen=True, slots=True)
class Target:
    """A running sive: ``url`` without ``/v1``. ``variable``: where its key is looked for."""

    url: str
    api_key: str
    variable: str

    @property
    def is_near(self) -> bool:
        """Is it on this machine, where no proxy can reach it?"""
        return self.url.startswith(LOOPBACK)


def target(url: str | None, api_key: str | None, config: Path | None) -> Target:
    """The sive that was named, else the one the configuration would start on this machine."""
    gateway = _gateway(url, config)
    if api_key is None:
        api_key = gateway.api_keys[0].get_secret_value() if gateway.api_keys else NO_KEY
    named = url or near_url(gateway.host, gateway.port)
    with_scheme = named if "://" in named else f"http://{named}"
    return Target(with_scheme.rstrip("/").removesuffix("/v1"), api_key, gateway.api_keys_env)


def near_url(host: str, port: int) -> str:
    """Where this machine reaches a server of its own: one that listens everywhere also listens here."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - nothing is bound
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _gateway(url: str | None, config: Path | None) -> GatewaySettings:
    """What is configured; of a sive that is named only its keys are wanted, whatever lies in this folder."""
    try:
        return load(config, asks_backends=False).settings.gateway
    except ConfigError:
        if url is None or config is not None:
            raise
        return GatewaySettings(api_keys=keys_in_environment())


def is_up(found: Target) -> bool:
    """Does a sive answer there?"""
    try:
        reply = httpx2.get(f"{found.url}/health", timeout=PROBE_S, trust_env=not found.is_near)
        return bool(reply.json() == {"status": "ok"})
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError):
        return False
