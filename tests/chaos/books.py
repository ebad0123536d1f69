"""The gateway's own counters: every cut is either mended or told to the caller."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Books:
    """``cuts``: answers that backends broke off; ``resumed`` and ``told``: what became of them."""

    cuts: int
    resumed: int
    told: int

    @property
    def add_up(self) -> bool:
        """Is none missing, and none counted twice?"""
        return self.cuts == self.resumed + self.told

    def __str__(self) -> str:
        sign = "=" if self.add_up else "≠"
        return f"{self.cuts} cuts {sign} {self.resumed} carried on + {self.told} told to the caller"


def read_books(metrics: str) -> Books:
    """From Prometheus' text."""
    return Books(
        cuts=_sum(metrics, "sive_cuts_total"),
        resumed=_sum(metrics, "sive_resumes_total", 'outcome="ok"'),
        told=_sum(metrics, "sive_streams_cut_total"),
    )


def _sum(metrics: str, name: str, having: str = "") -> int:
    samples = re.findall(rf"^{name}{{(.*)}} (.*)$", metrics, re.MULTILINE)
    return int(sum(float(value) for labels, value in samples if having in labels))
