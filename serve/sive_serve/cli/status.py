"""`sive status`."""

from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sive.capabilities import Capabilities, in_words
from sive.errors import SiveError

from sive_serve.cli.client import target


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
        raise SiveError(f"{found.url} answered HTTP {exc.response.status_code}: is --api-key right?") from exc
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as exc:
        raise SiveError(
            f"no sive answers at {found.url}: start one with `sive serve`, or name it with --url"
        ) from exc
    _show(said, found.url)


def _show(said: dict[str, Any], url: str) -> None:
    console = Console()
    console.print(f"sive {said['version']} at {url}, up {said['uptime_s']:.0f} s")
    if engine := said["engine"]:
        _show_engine(engine, console)
    table = Table("model", "rung", "as", "why", "can", "state", "last")
    for name, model in said["models"].items():
        for rung in model["rungs"]:
            state = "ready" if rung["ready"] else rung["resting"]
            about = (
                rung["why"],
                in_words(Capabilities(**rung["can"])),
                state + _degraded(rung),
                rung["last"],
            )
            row = (name, rung["backend"], rung["model"], *about)
            table.add_row(*map(Text, row))
            name = ""
    console.print(table)


def _show_engine(engine: dict[str, Any], console: Console) -> None:
    left = f", ready in about {engine['ready_in_s']} s" if engine["ready_in_s"] else ""
    if engine["to_fetch_bytes"]:
        left = (
            f", {engine['fetched_bytes'] / 1e6:.0f} of {engine['to_fetch_bytes'] / 1e6:.0f} MB fetched{left}"
        )
    detail = f": {engine['detail']}" if engine["detail"] else ""
    said = f"engine {engine['phase']} for {engine['since_s']:.0f} s, {engine['restarts']} restarts"
    console.print(said + left + detail, markup=False)
    if not engine["adapters"]:
        return
    table = Table("adapter", "state", "version", "pinned", "languages")
    for name, one in engine["adapters"].items():
        pinned = "yes" if one["pinned"] else "no"
        row = (name, one["phase"], one["version"] or "-", pinned, ", ".join(one["languages"]))
        table.add_row(*map(Text, row))
    console.print(table)


def _degraded(rung: dict[str, Any]) -> str:
    return ", degraded" if rung["degraded"] else ""
