"""The CPU model of gpt2's size, through the real server, against transformers on the same weights."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bench import client, servers, weights
from tests.bench.effort import Effort
from tests.bench.processes import ROOT, Missing, clean_environment
from tests.bench.report import Figure, Section

PROMPT_TOKENS, NEW_TOKENS, REPEATS, STREAMS = 64, 48, 3, 4
THREADS = 1
"""What sive gives one stream, and so what transformers gets."""

TORCH_PYTHON = ROOT / ".venv-torch" / "bin" / "python"


def measure(effort: Effort) -> Section:
    """Alternate between sive and transformers ``rounds`` times; within a round the median of a few runs."""
    section = Section("local")
    plain, int8 = weights.prepared()
    prompt, ids = weights.prompt_of(PROMPT_TOKENS)
    ours, theirs, gaps = [], [], []
    with servers.sive(f'[local]\nmodel = "{int8}"\n', name="sive-local") as served:
        client.stream(served.port, prompt, NEW_TOKENS)  # loads the model
        for number in range(effort.rounds):
            print(f"local: round {number + 1} of {effort.rounds}", file=sys.stderr)
            ours.append(_ours(served.port, prompt))
            together = client.streams(STREAMS, served.port, prompt, NEW_TOKENS)
            gaps.append(together[-1].texts_at[0] - together[0].texts_at[0])
            if TORCH_PYTHON.is_file():
                theirs.append(_theirs(plain, ids))
    section.figures += _figures(ours, theirs)
    section.figures.append(
        Figure(f"first token of stream {STREAMS} of {STREAMS} after stream 1's", 0.4, "s", gaps)
    )
    section.remarks += _remarks(ours, theirs)
    return section


def _ours(port: int, prompt: str) -> dict[str, float]:
    runs = [client.stream(port, prompt, NEW_TOKENS) for _ in range(REPEATS)]
    if any(run.tokens != NEW_TOKENS or len(run.texts_at) != NEW_TOKENS for run in runs):
        raise Missing(
            "the local model's answer was shorter than asked, or its tokens did not come one by one"
        )
    return {
        "first_token_s": statistics.median(run.first_token_s for run in runs),
        "tokens_per_s": statistics.median(run.tokens_per_s for run in runs),
    }


def _theirs(folder: Path, ids: list[int]) -> dict[str, Any]:
    command = [TORCH_PYTHON, Path(__file__).with_name("reference.py"), folder, THREADS, NEW_TOKENS, REPEATS]
    done = subprocess.run(
        [str(part) for part in command],
        input=json.dumps(ids),
        capture_output=True,
        check=True,
        text=True,
        timeout=300,
        env=clean_environment(OMP_NUM_THREADS=str(THREADS)),
    )
    said = json.loads(done.stdout)
    return {name: value if name == "versions" else statistics.median(value) for name, value in said.items()}


def _figures(ours: list[dict[str, float]], theirs: list[dict[str, Any]]) -> list[Figure]:
    if not theirs:
        return []
    pairs = list(zip(ours, theirs, strict=True))
    speed = [our["tokens_per_s"] / their["tokens_per_s"] for our, their in pairs]
    first = [our["first_token_s"] / their["first_token_s"] for our, their in pairs]
    return [
        Figure("decoding over transformers' in bfloat16", 1.4, "x", speed, at_least=True),
        Figure(f"first token of {PROMPT_TOKENS} prompt tokens over transformers'", 1, "x", first),
    ]


def _remarks(ours: list[dict[str, float]], theirs: list[dict[str, Any]]) -> list[str]:
    def told(name: str, rows: list[dict[str, Any]]) -> str:
        first_ms = 1000 * statistics.median(row["first_token_s"] for row in rows)
        speed = statistics.median(row["tokens_per_s"] for row in rows)
        return f"{name}: first token after {first_ms:.0f} ms, then {speed:.0f} tokens/s."

    setting = f"{PROMPT_TOKENS} prompt tokens, {NEW_TOKENS} new ones, greedy, {THREADS} thread a stream."
    if not theirs:
        return [
            setting,
            told("sive, over HTTP", ours),
            "transformers was not measured: there is no .venv-torch.",
        ]
    return [setting, told("sive, over HTTP", ours), told(f"{theirs[0]['versions']}, in process", theirs)]
