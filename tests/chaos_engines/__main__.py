"""`python -m tests.chaos_engines [--positions N] [--minutes M]`: a scorecard, and 1 when it deviates."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos_engines import crowd, strikes
from tests.chaos_engines.stage import Scorecard, running_stage
from tests.chaos_engines.strikes import SIGNALS, Strike
from tests.lab.engines import VICTIMS, VLLM

EVERY_STRIKE = [Strike(number, victim) for number in SIGNALS for victim in VICTIMS]


def chaos(folder: Path, card: Scorecard, *, positions: int, minutes: float) -> None:
    """Strike in every way, then kill in turn under many callers."""
    with running_stage(folder, card) as stage:
        uncut = strikes.oracle(stage)
        for blow in EVERY_STRIKE:
            strikes.strike(stage, blow, positions, uncut)
        crowd.run(stage, minutes * 60)


def main() -> int:
    """Run it, and print the scorecard however far it came."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos_engines", description=__doc__)
    parser.add_argument("--positions", type=int, default=6, help="answers under way at each signal")
    parser.add_argument("--minutes", type=float, default=3, help="how long the crowd asks")
    asked = parser.parse_args()
    if not VLLM.is_file():
        sys.exit("chaos-engines: no vLLM here: make engine")
    card = Scorecard()
    with tempfile.TemporaryDirectory(prefix="sive-chaos-") as folder:
        try:
            chaos(Path(folder), card, positions=asked.positions, minutes=asked.minutes)
        except KeyboardInterrupt:
            card.deviations.append("interrupted")
        except AssertionError as exc:
            card.deviations.append(str(exc))
    card.print()
    return 1 if card.deviations else 0


if __name__ == "__main__":
    sys.exit(main())
