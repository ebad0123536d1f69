"""What a benchmark found: figures beside their targets, tables, remarks; as Markdown."""

import os
import platform
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

PACKAGES = ("uvicorn", "uvloop", "httptools", "aiohttp", "pydantic", "ctranslate2", "tokenizers")


@dataclass(frozen=True)
class Figure:
    """A promise and what was measured, one value a round; its median is the result.

    ``stretch``: what would be better still.
    """

    name: str
    target: float
    unit: str
    values: Sequence[float]
    at_least: bool = False
    stretch: float | None = None

    @property
    def is_met(self) -> bool:
        """Does the median keep the promise?"""
        result = statistics.median(self.values)
        return result >= self.target if self.at_least else result <= self.target

    @property
    def row(self) -> tuple[str, ...]:
        """The figure as a line of a table."""
        target = f"{'≥' if self.at_least else '≤'} {self.target:g} {self.unit}"
        target += "" if self.stretch is None else f" (stretch {self.stretch:g})"
        verdict = "met" if self.is_met else "**missed**"
        low, high = min(self.values), max(self.values)
        spread = f"{shown(low)} to {shown(high)}, n = {len(self.values)}"
        return self.name, target, f"{shown(statistics.median(self.values))} {self.unit}", spread, verdict


@dataclass(frozen=True)
class Table:
    """A table beside the figures."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Section:
    """What one group of benchmarks found."""

    name: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The section, with the machine and the time it was measured at."""
        parts = [f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. {machine()}"]
        if self.figures:
            header = ("figure", "target", "median", "rounds", "")
            parts.append(_table(header, [figure.row for figure in self.figures]))
        parts += [f"{table.title}\n\n{_table(table.header, table.rows)}" for table in self.tables]
        if self.remarks:
            parts.append("\n".join(f"- {remark}" for remark in self.remarks))
        return "\n\n".join(parts) + "\n"


def shown(value: float) -> str:
    """A number with three figures or so."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def median(values: Iterable[float | None]) -> float | None:
    """The median of what was measured."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def cell(value: float | None, scale: float = 1) -> str:
    """A table's cell; a dash for what was not measured."""
    return "–" if value is None else shown(value * scale)


def machine() -> str:
    """The machine and the versions that were measured."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    versions = ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name)))
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    cpu = model.group(1) if model else platform.machine()
    return (
        f"{os.cpu_count()} cores of {cpu}, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, {versions}; load averages at the end {load}."
    )


def write(path: Path, section: Section) -> None:
    """Put a section between its markers in a Markdown file."""
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- bench {section.name} -->", f"<!-- /bench {section.name} -->"
    if begin not in text or end not in text:
        raise SystemExit(f"{path} has no markers {begin} and {end}")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}\n{section.markdown()}{end}{after}", encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    lines.insert(1, "|" + "|".join("---" if number == 0 else "--:" for number in range(len(header))) + "|")
    return "\n".join(lines)
