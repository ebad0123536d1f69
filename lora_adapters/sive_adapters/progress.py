"""How far a download is, told to whoever shows it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is. ``what``: for people, for instance ``spinoza: adapter_model.safetensors``."""

    what: str
    done_bytes: int
    total_bytes: int | None


Told = Callable[[Progress], None]
"""Called at most about ten times a second a file, and once at its end; from any thread, one at a time."""


def nobody(progress: Progress) -> None:
    """Tell nobody."""
