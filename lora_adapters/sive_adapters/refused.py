"""A file that was fetched and is not the pinned one, remembered: it is not fetched to be refused again."""

import json
from collections.abc import Mapping
from pathlib import Path

from sive.errors import AdapterError

from sive_adapters.part import Stat

FILE = "refused.json"


class OtherFileError(AdapterError):
    """A file has another SHA-256 than the one that is pinned; ``name`` and ``stat`` say which file it was."""

    def __init__(self, message: str, *, name: str, stat: Stat) -> None:
        super().__init__(message)
        self.name = name
        self.stat = stat


def remember(working: Path, refused: OtherFileError, pinned: Mapping[str, str]) -> None:
    """Note in a working folder what was refused.

    Raises:
        OSError: it cannot be written.
    """
    if not refused.stat.is_known:
        return  # a change of it could not be seen
    said = {
        "file": refused.name,
        "stat": _identity(refused.stat),
        "pinned": pinned[refused.name],
        "why": str(refused),
    }
    beside = working / f"{FILE}.new"
    beside.write_text(json.dumps(said), "utf-8")
    beside.replace(working / FILE)


def check_not_refused(working: Path, stats: Mapping[str, Stat], pinned: Mapping[str, str]) -> None:
    """Look whether the very file that is there now was refused for the very hash that is pinned now.

    Raises:
        OtherFileError: it was.
    """
    try:
        said = json.loads((working / FILE).read_text("utf-8"))
        name, why = str(said["file"]), str(said["why"])
        is_same = said["pinned"] == pinned.get(name) and said["stat"] == _identity(stats[name])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if is_same:
        raise OtherFileError(why, name=name, stat=stats[name])


def _identity(stat: Stat) -> list[int | str | None]:
    """What tells one state of a file from another, as ``Stat.is_of``: the time only without an ETag."""
    return [stat.size, stat.etag, None if stat.etag else stat.modified]
