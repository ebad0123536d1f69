"""One signal to one process of the primary's vLLM, while answers run at several positions.

What vLLM 0.32 itself does to a running stream (tried without a sive, `shutdown-timeout` 5 as in the engine):

- KILL api: EOF in the middle of the transfer. KILL core or worker, TERM worker: an error event and then
  `[DONE]`, at once or within 2 s; callers without a stream get a 500.
- TERM api: what runs goes on for 5 s. Then no token comes any more, but the connection stays open, and
  `/health` says 200, for as long as a caller stays: no `abort`, only silence. TERM core: the same answers,
  dead after 13 s.
- STOP core or worker: silence, `/health` says 200. STOP api: nothing is accepted; continued, it sends what
  the engine made meanwhile as one event of hundreds of token ids.
"""

import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import psutil

from tests.chaos_engines.stage import (
    USED_AGAIN_S,
    Stage,
    caller,
    differences,
    open_breakers,
    request,
)
from tests.conftest import until
from tests.lab.answers import Answer, ask
from tests.lab.engines import VOICES

TOKENS = 450
FIRST, LAST = 5, 180  # positions lie between; the rest must still run when the signal acts
NO_PROOF = "an answer was not struck at all: the trial proves nothing"
TRIES = 3
FROZEN_S = 15.0  # the longest a frozen primary may stay in rotation, with default clocks
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)


@dataclass(frozen=True)
class Strike:
    """A signal for a process of pod-a's vLLM: api, core or worker."""

    number: signal.Signals
    victim: str

    @property
    def name(self) -> str:
        """How the scorecard calls it."""
        return f"{self.number.name} {self.victim}"


@dataclass
class Streams:
    """Answers that run at once; the first was asked for first and is furthest."""

    voices: list[str]
    answers: list[Answer] = field(default_factory=list)
    running: list[Future[Answer]] = field(default_factory=list)

    @property
    def positions(self) -> list[int]:
        """How many tokens each caller has."""
        return [len(answer.pieces) for answer in self.answers]

    @property
    def done(self) -> list[Answer]:
        """All answers, when they have ended."""
        return [future.result() for future in self.running]


def positions(count: int) -> list[int]:
    """Return so many positions, the furthest first."""
    step = (LAST - FIRST) / max(1, count - 1)
    return [round(LAST - step * number) for number in range(count)] if count > 1 else [LAST // 2]


def oracle(stage: Stage) -> dict[str, Answer]:
    """Return each voice's uncut answer, from the engines themselves, which must agree."""
    uncut = {}
    for voice in VOICES:
        said = [
            ask(
                pod.engine_url,
                "/chat/completions",
                {**request(voice, max_tokens=TOKENS), "model": pod.engine_model(voice)},
            )
            for pod in stage.pods.values()
        ]
        assert said[0].text == said[1].text, f"the engines disagree about {voice}"
        uncut[voice] = said[0]
    return uncut


def strike(stage: Stage, blow: Strike, count: int, uncut: dict[str, Answer]) -> list[str]:
    """Strike, and again when an answer had ended before the signal acted; what went wrong."""
    wrong: list[str] = []
    for _ in range(TRIES):
        wrong = _strike(stage, blow, count, uncut)
        if wrong != [NO_PROOF]:
            break
        stage.card.take_back(wrong)
    return wrong


def _strike(stage: Stage, blow: Strike, count: int, uncut: dict[str, Answer]) -> list[str]:
    """Strike once, compare every caller's answer, and see the primary return; what went wrong."""
    pod = stage.pods["pod-a"]
    pod.wait_ready()
    stage.wait_used("pod-a", stage.short)
    restarts, victim = pod.restarts, pod.member(blow.victim)
    with ThreadPoolExecutor(count) as pool:
        streams = _start(stage, pool, positions(count))
        struck_at, at = time.monotonic(), streams.positions
        victim.send_signal(blow.number)
        try:
            answers = streams.done
            notes = _see_frozen(stage, struck_at) if blow.number == signal.SIGSTOP else []
        finally:
            _continue(victim)
    wrong = _compare(blow, streams.voices, answers, uncut)
    if blow.number != signal.SIGSTOP:
        until(lambda: pod.restarts > restarts, 90, f"the death after {blow.name} seen")
        pod.wait_ready()
    used_s = stage.wait_used("pod-a", stage.short)
    wrong += [f"healthy, but unused for {used_s:.1f} s"] if used_s > USED_AGAIN_S else []
    gap_s = max(answer.longest_gap_s for answer in answers)
    resumed = sum(answer.is_resumed for answer in answers)
    measured = f"at {at}: {resumed} resumed, gap {gap_s:.2f} s, used again after {used_s:.1f} s"
    return stage.card.result(blow.name, "; ".join([measured, *notes]), wrong)


def _start(stage: Stage, pool: ThreadPoolExecutor, wanted: Sequence[int]) -> Streams:
    """Start an answer for each position, so that all are there when the first one is."""
    streams = Streams([VOICES[number % len(VOICES)] for number in range(len(wanted))])
    for voice, position in zip(streams.voices, wanted, strict=True):
        behind = wanted[0] - position
        until(lambda behind=behind: behind <= max(streams.positions, default=0), 60, "the streams running")
        answer, body = Answer(), request(voice, max_tokens=TOKENS)
        streams.answers.append(answer)
        streams.running.append(pool.submit(caller, stage.short, body, answer))
    until(lambda: streams.positions[0] >= wanted[0] and min(streams.positions) > 0, 60, "the positions")
    return streams


def _compare(
    blow: Strike, voices: Sequence[str], answers: Sequence[Answer], uncut: dict[str, Answer]
) -> list[str]:
    wrong = [
        f"{voice}: {what}"
        for voice, answer in zip(voices, answers, strict=True)
        for what in differences(answer, uncut[voice])
    ]
    # After SIGTERM vLLM lets what runs finish for 5 s, so there may be nothing to resume.
    if blow.number != signal.SIGTERM and not all(answer.is_resumed for answer in answers):
        wrong.append(NO_PROOF)
    return wrong


def _see_frozen(stage: Stage, struck_at: float) -> list[str]:
    """See the gateway of the default clocks, which nobody asks, stop to use what is frozen."""
    left_s = FROZEN_S - (time.monotonic() - struck_at)
    until(lambda: open_breakers(stage.default, "pod-a") > 0, left_s, "the frozen primary's breaker open")
    return [f"out of rotation after {time.monotonic() - struck_at:.1f} s"]


def _continue(victim: psutil.Process) -> None:
    if victim.is_running():
        victim.send_signal(signal.SIGCONT)
