"""`python -m tests.bench [gateway] [local] [memory] [start] [--rounds N] [--write]`."""

import argparse
import signal
import sys
from importlib import import_module

from tests.bench.processes import ROOT, Missing
from tests.bench.report import Section, write

GROUPS = ("gateway", "local", "memory", "start")
DOCUMENT = ROOT / "docs" / "benchmarks.md"


def main() -> None:
    """Measure what was asked for, print it, and with ``--write`` put it into docs/benchmarks.md."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; all when none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="update docs/benchmarks.md")
    asked = parser.parse_args()
    if unknown := set(asked.groups) - set(GROUPS):
        parser.error(f"there is no group {sorted(unknown)[0]!r}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended on the way out
    for group in asked.groups or GROUPS:
        section = _measured(group, asked.rounds)
        print(f"\n## {group}\n\n{section.markdown()}", flush=True)
        if asked.write and section.figures:
            write(DOCUMENT, section)


def _measured(group: str, rounds: int) -> Section:
    try:
        section: Section = import_module(f"tests.bench.{group}").measure(rounds)
    except Missing as missing:
        return Section(group, remarks=[f"Not measured: {missing}"])
    return section


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
