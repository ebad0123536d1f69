"""How much a benchmark measures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """``rounds`` of loads that take ``scale`` of their time; ``soak``: requests of the long run."""

    rounds: int = 5
    scale: float = 1.0
    soak: int = 1_000_000


SHORT = Effort(rounds=1, scale=0.25, soak=20_000)
"""Enough to see whether everything runs; its numbers say nothing."""
