"""Whether an adapter can be loaded and will do what it was trained to, looked at before any engine does."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sive_adapters.base_model import BaseModel


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or worth knowing with an adapter.

    ``code`` is stable; ``message`` names the thing, the value and the way out.
    """

    code: str
    message: str
    is_fatal: bool = True


def check(
    folder: Path,
    base: BaseModel | None,
    *,
    max_lora_rank: int | None = None,
    base_model: str | None = None,
    told: Callable[[int, int], None] = lambda done_bytes, total_bytes: None,
) -> tuple[Finding, ...]:
    """Return everything that is wrong with an adapter's folder; none fatal: it can be served."""
    raise NotImplementedError


def lora_rank(folder: Path) -> int:
    """Return the largest rank an adapter was trained with."""
    raise NotImplementedError
