"""Where files come from, whatever the protocol: opened from a source, all with the same methods."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from sive_adapters.download import Bucket
from sive_adapters.folder import Folder
from sive_adapters.hub import Repository
from sive_adapters.object_store import Patience
from sive_adapters.part import Stat
from sive_adapters.progress import Told
from sive_adapters.sources import Source


class Origin(Protocol):
    """A folder of files somewhere. ``source``: as it was asked for, a branch resolved to its commit."""

    @property
    def source(self) -> Source:
        """Where it is."""

    def look(self, names: Iterable[str]) -> dict[str, Stat]:
        """Look at files; those that are not there are left out."""

    def list(self) -> dict[str, Stat]:
        """Return the files of the folder itself, none of those below it."""

    def fetch(self, name: str, stat: Stat, working: Path, *, what: str, told: Told) -> tuple[str, Stat]:
        """Fetch a file to ``working/files/name``; return its SHA-256 and what it turned out to be.

        What it needs on the way also lies in ``working``, and lets it go on after a kill.
        """


def open_origin(source: Source, patience: Patience) -> Origin:
    """Return the files of a source.

    Raises:
        AdapterError: it cannot be reached, or is not there.
    """
    if source.kind == "hf":
        return Repository(source)
    if source.kind == "file":
        return Folder(source)
    return Bucket(source, patience)
