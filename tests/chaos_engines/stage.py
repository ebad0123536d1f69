"""The stage: two pods, a gateway with short clocks and one with the default ones, and the scorecard."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests.conftest import Served, launch, until
from tests.lab.answers import Answer, Json, ask
from tests.lab.engines import VOICES, Pod, Rung, counters, gateway_config, running_pods, total

SHOWN = 10
USED_AGAIN_S = 10.0  # the longest a healthy primary may stay unused
CALLER_S = 130  # a little more than the gateway's deadline_s
SHORT = {"first_token_s": 5, "stall_s": 4}
BACKENDS = ("pod-a", "pod-b")


@dataclass
class Scorecard:
    """What was done and what came of it; ``deviations`` must stay empty."""

    started: float = field(default_factory=time.monotonic)
    deviations: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Show progress."""
        print(f"{time.monotonic() - self.started:7.1f} s  {text}", flush=True)

    def result(self, name: str, measured: str, wrong: list[str]) -> list[str]:
        """Note one line of the scorecard; what is wrong with it."""
        line = f"{'FAIL' if wrong else 'ok  '}  {name:<22} {measured}"
        self.results.append(line)
        self.deviations += [f"{name}: {what}" for what in wrong]
        self.say(line)
        for what in wrong[:SHOWN]:
            self.say(f"      {what}")
        return wrong

    def take_back(self, wrong: list[str]) -> None:
        """The last line proved nothing and is tried again."""
        self.results.pop()
        del self.deviations[-len(wrong) :]

    def print(self) -> None:
        """Show all of it once more."""
        print("\n".join(["", *self.results, "", *self.deviations[: 4 * SHOWN]]))
        print(f"{len(self.deviations)} deviations in {time.monotonic() - self.started:.0f} s")


@dataclass
class Stage:
    """Both pods and both gateways, running."""

    pods: dict[str, Pod]
    short: Served
    default: Served
    card: Scorecard

    def speaker(self, gateway: Served, voice: str) -> str:
        """Ask for one token: which backend gives it."""
        body = request(voice, max_tokens=1, stream=False)
        return (caller(gateway, body).backends or ["nobody"])[-1]

    def wait_used(self, backend: str, gateway: Served) -> float:
        """Wait until every voice is spoken by ``backend`` again; the seconds it took."""
        began = time.monotonic()
        for voice in VOICES:
            until(lambda voice=voice: self.speaker(gateway, voice) == backend, 60, f"{voice} on {backend}")
        return time.monotonic() - began

    def wait_rested(self, backend: str, gateway: Served) -> None:
        """Wait until no breaker of a backend is open."""
        until(lambda: open_breakers(gateway, backend) == 0, 60, f"the breakers of {backend} closed")


@contextlib.contextmanager
def running_stage(folder: Path, card: Scorecard) -> Iterator[Stage]:
    """Boot everything; ended when the block is left, however it is left."""
    with contextlib.ExitStack() as stack:
        card.say("two engines boot")
        pods = stack.enter_context(running_pods(folder))
        rungs = [Rung(name, f"{pod.served.url}/v1") for name, pod in zip(BACKENDS, pods, strict=True)]
        gateways = [
            stack.enter_context(launch(folder, gateway_config({"": rungs}, **clocks)))
            for clocks in (SHORT, {})
        ]
        yield Stage(dict(zip(BACKENDS, pods, strict=True)), *gateways, card)


def request(voice: str, *, max_tokens: int, stream: bool = True, ignore_eos: bool = True) -> Json:
    """A greedy request for exactly so many tokens (fewer where its own end counts)."""
    body: Json = {
        "model": voice,
        # An empty system message keeps away the one that a pod's packaged models have.
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": "Qu'est-ce que la beauté ?"},
        ],
        "temperature": 0,
        "max_tokens": max_tokens,
        "ignore_eos": ignore_eos,
        "stream": stream,
    }
    return {**body, "stream_options": {"include_usage": True}} if stream else body


def caller(gateway: Served, body: Json, into: Answer | None = None) -> Answer:
    """Ask a gateway; a broken connection is an answer with an error."""
    answer = into or Answer()
    try:
        return ask(f"{gateway.url}/v1", "/chat/completions", body, timeout=CALLER_S, into=answer)
    except httpx2.HTTPError as exc:
        answer.error = {"message": repr(exc)}
        return answer


def open_breakers(gateway: Served, backend: str) -> float:
    """How many models of a backend rest."""
    return total(counters(gateway), "sive_backend_open", f'backend="{backend}"')


def differences(got: Answer, uncut: Answer, *, stream: bool = True) -> list[str]:
    """Name what differs between a caller's answer and the uncut one."""
    wrong = got.faults(stream=stream)
    if got.text != uncut.text:
        wrong.append(f"{len(got.text)} characters, {len(uncut.text)} uncut: {got.text[-40:]!r}")
    if got.finish_reasons != uncut.finish_reasons or got.usage != uncut.usage:
        wrong.append(f"ended {got.finish_reasons} {got.usage}, uncut {uncut.finish_reasons} {uncut.usage}")
    return wrong


def books(gateway: Served) -> list[str]:
    """Whether the counters add up: every cut was resumed or ended in an error event, and there were none."""
    sampled = counters(gateway)
    cuts = total(sampled, "sive_cuts_total")
    resumed = total(sampled, "sive_resumes_total", 'outcome="ok"')
    given_up = total(sampled, "sive_streams_cut_total")
    in_flight = total(sampled, "sive_requests_in_flight")
    wrong = (
        [] if cuts == resumed + given_up else [f"{cuts} cuts, but {resumed} resumed + {given_up} given up"]
    )
    wrong += [f"{given_up} answers ended in an error"] if given_up else []
    return wrong + ([f"{in_flight} still in flight"] if in_flight else [])
