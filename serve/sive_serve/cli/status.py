"""`sive status`."""

from pathlib import Path
from typing import Any

import httpx2
import typer
from sive.capabilities import Capabilities, in_words
from sive.errors import SiveError

from sive_serve.cli.client import NO_KEY, Target, target
from sive_serve.cli.output import print_table


def status(*, url: str | None, api_key: str | None, config: Path | None) -> None:
    """Print a running sive's status.

    Raises:
        SiveError: nobody answers there, or the key is wrong.
    """
    found = target(url, api_key, config)
    try:
        reply = httpx2.get(
            f"{found.url}/status",
            headers={"authorization": f"Bearer {found.api_key}"},
            timeout=5,
            trust_env=not found.is_near,
        )
        said: dict[str, Any] = reply.raise_for_status().json()
    except httpx2.HTTPStatusError as exc:
        raise SiveError(f"{found.url} {_refused(exc.response.status_code, found)}") from exc
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as exc:
        raise SiveError(
            f"no sive answers at {found.url}: start one with `sive serve`, or name it with --url"
        ) from exc
    _show(said, found.url)


def _refused(status_code: int, found: Target) -> str:
    if status_code == 403:
        return "does not show its status to this key: a token opens only what a page asks for"
    if status_code != 401:
        return f"answered HTTP {status_code}: is that a sive?"
    if found.api_key == NO_KEY:
        return f"wants a key: give it with --api-key KEY, or set {found.variable} as it is set there"
    return f"refuses the key, from --api-key or {found.variable}: it is none of that sive's own"


def _show(said: dict[str, Any], url: str) -> None:
    typer.echo(f"sive {said['version']} at {url}, up {said['uptime_s']:.0f} s")
    if engine := said["engine"]:
        _show_engine(engine)
    rows = [
        (
            name,
            f"{rung['backend']} {rung['model']} ({rung['why']})",
            in_words(Capabilities(**rung["can"])),
            _state(rung),
            rung["last"],
        )
        for name, model in said["models"].items()
        for rung in model["rungs"]
    ]
    print_table(("model", "rung", "can", "state", "last"), rows)


def _show_engine(engine: dict[str, Any]) -> None:
    left = f", ready in about {engine['ready_in_s']} s" if engine["ready_in_s"] else ""
    if engine["to_fetch_bytes"]:
        left = (
            f", {engine['fetched_bytes'] / 1e6:.0f} of {engine['to_fetch_bytes'] / 1e6:.0f} MB fetched{left}"
        )
    detail = f": {engine['detail']}" if engine["detail"] else ""
    said = f"engine {engine['phase']} for {engine['since_s']:.0f} s, {engine['restarts']} restarts"
    typer.echo(said + left + detail)
    if not engine["adapters"]:
        return
    rows = [
        (
            name,
            one["phase"],
            one["version"] or "-",
            "yes" if one["pinned"] else "no",
            _joined(one["languages"]),
        )
        for name, one in engine["adapters"].items()
    ]
    print_table(("adapter", "state", "version", "pinned", "languages"), rows)


def _state(rung: dict[str, Any]) -> str:
    state = "ready" if rung["ready"] else f"{rung['resting']} ({rung['rests_for_s']:g} s more)"
    return state + (", degraded" if rung["degraded"] else "")


def _joined(languages: list[str]) -> str:
    return ", ".join(languages) or "-"
