"""`python -m tests.bench [GROUP ...] [--rounds N] [--short] [--soak N] [--write]`."""

import argparse
import signal
import sys
from dataclasses import replace
from importlib import import_module

from tests.bench.effort import SHORT, Effort
from tests.bench.processes import ROOT, Missing
from tests.bench.report import Section, write

GROUPS = (
    "gateway",
    "backends",
    "failover",
    "lag",
    "soak",
    "local",
    "memory",
    "start",
    "adapters",
    "checks",
    "changes",
    "page",
    "netlify",
)
DOCUMENT = ROOT / "docs" / "benchmarks.md"


def main() -> None:
    """Measure what was asked for, print it, and with ``--write`` put it into docs/benchmarks.md."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; all when none")
    parser.add_argument("--rounds", type=int, help=f"default {Effort.rounds}")
    parser.add_argument("--soak", type=int, metavar="REQUESTS", help=f"of the soak; default {Effort.soak:,}")
    parser.add_argument(
        "--short", action="store_true", help="only see whether it runs: the numbers are worthless"
    )
    parser.add_argument("--write", action="store_true", help="update docs/benchmarks.md")
    asked = parser.parse_args()
    if unknown := set(asked.groups) - set(GROUPS):
        parser.error(f"there is no group {sorted(unknown)[0]!r}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended on the way out
    effort = _effort(asked)
    for group in asked.groups or GROUPS:
        section = _measured(group, effort)
        print(f"\n## {group}\n\n{section.markdown()}", flush=True)
        if asked.write and section.figures:
            write(DOCUMENT, section)


def _effort(asked: argparse.Namespace) -> Effort:
    usual = SHORT if asked.short else Effort()
    return replace(usual, rounds=asked.rounds or usual.rounds, soak=asked.soak or usual.soak)


def _measured(group: str, effort: Effort) -> Section:
    try:
        section: Section = import_module(f"tests.bench.{group}").measure(effort)
    except Missing as missing:
        return Section(group, remarks=[f"Not measured: {missing}"])
    return section


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
