"""Changes of adapters, asked of running sives: a phase at a time, downloads as bars."""

from pathlib import Path
from typing import Any

import httpx2
import typer
from sive import sse
from sive.config import load
from sive.errors import AdapterError
from sive_adapters.store import Progress

from sive_serve.cli.bars import DownloadBars
from sive_serve.cli.client import Target, target

SILENCE_S = 60.0
"""A change says something every ten seconds."""

SAID = {
    "fetching": "fetching",
    "checking": "checking its files",
    "loading": "loading it into the engine",
    "probing": "comparing what it reads",
}


def change_everywhere(
    change: dict[str, str], *, urls: list[str], admin_key: str | None, config: Path | None
) -> bool:
    """Ask each sive in turn; say of each what became of it, and return whether all did it.

    Raises:
        AdapterError: there is no admin key to ask with.
    """
    keys = load(config, asks_backends=False).settings.gateway.admin_keys
    key = admin_key or (keys[0].get_secret_value() if keys else None)
    if key is None:
        raise AdapterError("changes need an admin key: set SIVE_ADMIN_KEYS, or give --admin-key")
    targets = [target(_secured(url), key, config) for url in urls] or [target(None, key, config)]
    done = [_changed(change, found) for found in targets]
    return all(done)


def _secured(url: str) -> str:
    """An address without a scheme, elsewhere: an admin key goes out encrypted, unless http:// is written."""
    is_near = url.startswith(("127.", "localhost", "[::1]"))
    return url if "://" in url or is_near else f"https://{url}"


def _changed(change: dict[str, str], found: Target) -> bool:
    try:
        version = _ask(change, found)
    except AdapterError as exc:
        typer.echo(f"{found.url}: {exc}", err=True)
        return False
    what = f"serves version {version}" if version else "is done"
    typer.echo(f"{found.url}: {change['name']} {what}")
    return True


def _ask(change: dict[str, str], found: Target) -> str:
    """Return the version that answers now; empty when none should.

    Raises:
        AdapterError: it was refused, or there is no sive.
    """
    headers = {"authorization": f"Bearer {found.api_key}", "accept": "text/event-stream"}
    timeout = httpx2.Timeout(10.0, read=SILENCE_S)
    url = f"{found.url}/admin/adapters"
    last: dict[str, Any] = {}
    try:
        with (
            DownloadBars() as bars,
            httpx2.Client(timeout=timeout, trust_env=not found.is_near) as client,
            client.stream("POST", url, json=change, headers=headers) as reply,
        ):
            if reply.status_code != 200:
                reply.read()
                raise AdapterError(_refusal(reply))
            splitter = sse.Splitter()  # httpx2 would also end a line at U+2028, which JSON may hold
            for piece in reply.iter_bytes():
                for last in splitter.payloads(piece):
                    _show(last, bars)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as exc:
        raise AdapterError(f"no sive answers there ({exc or type(exc).__name__}): is it running?") from exc
    if "error" in last:
        raise AdapterError(str(last["error"]["message"]))
    if "adapters" not in last:
        raise AdapterError("it broke off: ask for `sive status` there")
    return str(last["adapters"].get(change["name"], {}).get("version") or "")


def _show(said: dict[str, Any], bars: DownloadBars) -> None:
    if "what" in said:
        bars.told(Progress(said["what"], said["done_bytes"], said["total_bytes"]))
    elif said.get("phase") in SAID:
        bars.say(f"  {SAID[said['phase']]}")


def _refusal(reply: httpx2.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {reply.status_code}: is that a sive?"
