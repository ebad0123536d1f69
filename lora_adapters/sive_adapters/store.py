"""Adapters on disk: one folder a version, named by its content, that never changes."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from sive_adapters.progress import Progress, Told, nobody
from sive_adapters.sources import Source

__all__ = ["Progress", "Store", "Told", "Version", "nobody"]


@dataclass(frozen=True, slots=True)
class Version:
    """An adapter's files on disk: a folder that never changes.

    ``digest``: 64 hex digits, the SHA-256 over the sorted lines that ``sha256sum`` prints for its files.
    ``sha256``: file name to lowercase hex. ``source``: where it is from, a branch resolved to its commit.
    """

    name: str
    digest: str
    folder: Path
    sha256: Mapping[str, str]
    source: str = ""

    @property
    def short(self) -> str:
        """The first 12 digits of the digest, as in the folder's name."""
        return self.digest[:12]


class Store:
    """``root/NAME/DIGEST12/``: versions of read-only files; ``root/.parts/``: downloads under way."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, name: str, sha256: Mapping[str, str]) -> Version | None:
        """Return the version with these files if it is on disk; asks no network."""
        raise NotImplementedError

    def fetch(
        self, name: str, source: Source, sha256: Mapping[str, str] | None = None, *, told: Told = nobody
    ) -> Version:
        """Bring a version onto the disk, or find it there.

        Raises:
            AdapterError: it cannot be had, or its files are not the pinned ones.
        """
        raise NotImplementedError

    def versions(self, name: str) -> tuple[Version, ...]:
        """Return the versions of an adapter that are on disk, the newest first."""
        raise NotImplementedError

    def collect(self, keep: Collection[Path]) -> tuple[Path, ...]:
        """Remove the version folders that are not in ``keep``, and old parts; return what was removed."""
        raise NotImplementedError
