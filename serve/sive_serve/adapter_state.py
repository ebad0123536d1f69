"""What is known of one adapter of an engine."""

from dataclasses import dataclass
from typing import Literal

from sive_adapters.registry import Adapter
from sive_adapters.store import Progress, Version

Phase = Literal["waiting", "fetching", "checking", "loading", "probing", "serving", "refused"]


@dataclass(frozen=True, slots=True)
class AdapterState:
    """One desired adapter and how far it is.

    ``wanted``: the version that is desired, once it is on disk. ``serving``: the version that answers under
    its name now, which is another while it is being replaced. ``detail``: why it is refused; ``is_retried``:
    it could not be fetched, and that is tried again. ``progress``: of its download.
    """

    adapter: Adapter
    phase: Phase = "waiting"
    detail: str = ""
    wanted: Version | None = None
    serving: Version | None = None
    progress: Progress | None = None
    is_retried: bool = False

    @property
    def is_pinned(self) -> bool:
        """Does the list say what its files must be?"""
        return bool(self.adapter.release.sha256)

    @property
    def engine_name(self) -> str:
        """What the engine calls the version that answers; empty when none does."""
        return "" if self.serving is None else engine_name(self.adapter.name, self.serving)


def engine_name(name: str, version: Version) -> str:
    """Return what the engine calls one version of an adapter: ``spinoza@9f3c21ab77e0``."""
    return f"{name}@{version.short}"
