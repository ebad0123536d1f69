"""`sive config`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import AnyHttpUrl, BaseModel, SecretStr
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sive.config import load

MASK = "********"
SECRET = re.compile(r"(api[_-]?key|token|secret|password)s?$")


def show(config: Path | None) -> None:
    """Print every effective value and its source; secrets as stars."""
    loaded = load(config)
    console = Console()
    console.print(f"configuration: {loaded.path or 'none found, the packaged defaults'}", markup=False)
    table = Table("key", "value", "from")
    for key, value in _leaves(loaded.settings, ""):
        shown = MASK if SECRET.search(key) and value else _shown(value)
        table.add_row(Text(key), Text(shown), Text(loaded.sources.get(key, "default")))
    console.print(table)


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, BaseModel):
        items = [(name, getattr(value, name)) for name in type(value).model_fields]
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
        return str(value).replace(f"{value.username}:{value.password}@" if value.password else "", "")
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
