"""A file that was fetched and is not the pinned one, remembered: it is not fetched again and again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sive.errors import AdapterError

from sive_adapters.part import Stat

FILE = "refused.json"

TIMES = 2
"""So often a file has to come whole with the same wrong hash: once alone may be damage on the way."""


class OtherFileError(AdapterError):
    """A file came whole, with another SHA-256 than the one that is pinned.

    ``name`` and ``stat`` say which file it was, ``digest`` what came.
    """

    def __init__(self, message: str, *, name: str, stat: Stat, digest: str) -> None:
        super().__init__(message)
        self.name = name
        self.stat = stat
        self.digest = digest


def remember(working: Path, refused: OtherFileError, pinned: Mapping[str, str]) -> None:
    """Note in a working folder what came, and how often it has been just that.

    Raises:
        OSError: it cannot be written.
    """
    if not refused.stat.is_known:
        return  # a change of it could not be seen
    came = {
        "file": refused.name,
        "stat": _identity(refused.stat),
        "pinned": pinned[refused.name],
        "digest": refused.digest,
    }
    before = _read(working)
    count = _count(before) + 1 if came.items() <= before.items() else 1
    beside = working / f"{FILE}.new"
    beside.write_text(json.dumps({**came, "count": count, "why": str(refused)}), "utf-8")
    beside.replace(working / FILE)


def check_not_refused(working: Path, stats: Mapping[str, Stat], pinned: Mapping[str, str]) -> None:
    """Look whether the very file that is there now came often enough with another hash than is pinned now.

    Raises:
        AdapterError: it did.
    """
    said = _read(working)
    name = str(said.get("file"))
    if _count(said) < TIMES or name not in stats:
        return
    if said.get("pinned") == pinned.get(name) and said.get("stat") == _identity(stats[name]):
        raise AdapterError(
            f"{said.get('why')}; it came so {said['count']} times and is not fetched again until it changes "
            f"there: add or update the adapter, or remove {working / FILE}, to fetch it all the same"
        )


def _read(working: Path) -> dict[str, Any]:
    try:
        said = json.loads((working / FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _count(said: Mapping[str, Any]) -> int:
    count = said.get("count")
    return count if isinstance(count, int) else 0


def _identity(stat: Stat) -> list[int | str | None]:
    """What tells one state of a file from another, as ``Stat.is_of``: the time only without an ETag."""
    return [stat.size, stat.etag, None if stat.etag else stat.modified]
