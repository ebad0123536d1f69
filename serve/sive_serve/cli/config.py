"""`sive config`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import AnyHttpUrl, BaseModel, SecretStr
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sive.config import BackendSettings, load

MASK = "********"
SECRET = re.compile(r"(api[_-]?keys?|[._-]token|secret|password|authorization)$", re.IGNORECASE)


def show(config: Path | None) -> None:
    """Print every effective value and its source; secrets as stars."""
    loaded = load(config, asks_backends=False)
    console = Console()
    rows = [
        (key, MASK if SECRET.search(key) and value else _shown(value), loaded.sources.get(key, "default"))
        for key, value in _leaves(loaded.settings, "")
    ]
    if not console.is_terminal:  # for grep: nothing cut, nothing wrapped
        for key, shown, source in rows:
            typer.echo(f"{key} = {shown}  # {source}")
        return
    console.print(f"configuration: {loaded.path or 'none found, the packaged defaults'}", markup=False)
    table = Table("key", "value", "from")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, BaseModel):
        names = type(value).model_fields
        has = value.has if isinstance(value, BackendSettings) else names.__contains__
        items = [(name, getattr(value, name)) for name in names if has(name)]
        items += list((value.model_extra or {}).items())
    elif isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        items = [(str(number), one) for number, one in enumerate(value)]
    else:
        yield key, value
        return
    for name, one in items:
        yield from _leaves(one, f"{key}.{name}" if key else name)


def _shown(value: Any) -> str:
    if isinstance(value, SecretStr) or (
        isinstance(value, tuple) and any(isinstance(v, SecretStr) for v in value)
    ):
        return MASK
    if isinstance(value, AnyHttpUrl):
        port = f":{value.port}" if value.port else ""
        return f"{value.scheme}://{value.host}{port}{value.path or ''}" + (f"?{MASK}" if value.query else "")
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
