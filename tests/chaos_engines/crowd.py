"""Many callers at once, while one engine after the other is killed and returns."""

import itertools
import random
import signal
import threading
import time
from dataclasses import dataclass, field

from tests.chaos_engines.stage import BACKENDS, Stage, books, caller, differences, request
from tests.conftest import Served, until
from tests.lab.answers import Answer, Json, ask
from tests.lab.engines import VICTIMS, VOICES, counters, total

CALLERS = 32
LENGTHS = (40, 120, 300)  # tokens: short answers end between deaths, long ones live through them
PIECES = 4  # one answer in so many is asked for in one piece


def key(body: Json) -> tuple[str, int, bool]:
    """What two equal requests have in common."""
    return body["model"], body["max_tokens"], body["stream"]


def bodies() -> list[Json]:
    """Every request that the crowd may make."""
    return [
        request(voice, max_tokens=length, stream=stream)
        for voice, length, stream in itertools.product(VOICES, LENGTHS, (True, False))
    ]


@dataclass
class Crowd:
    """The callers, until ``stop``; what they got is compared at once."""

    gateway: Served
    uncut: dict[tuple[str, int, bool], Answer]
    answered: int = 0
    resumed: int = 0
    wrong: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin to ask."""
        for number in range(CALLERS):
            thread = threading.Thread(target=self._call, args=(random.Random(number),), daemon=True)
            self._threads.append(thread)
            thread.start()

    def run_out(self, at: float) -> None:
        """Let them ask until then."""
        self._over.wait(max(0.0, at - time.monotonic()))

    def stop(self) -> None:
        """Let everybody finish what was begun."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _call(self, dice: random.Random) -> None:
        while not self._over.is_set():
            body = request(
                dice.choice(VOICES), max_tokens=dice.choice(LENGTHS), stream=dice.randrange(PIECES) > 0
            )
            self._judge(body)

    def _judge(self, body: Json) -> None:
        got = caller(self.gateway, body)
        wrong = differences(got, self.uncut[key(body)], stream=body["stream"])
        with self._lock:
            self.answered += 1
            self.resumed += got.is_resumed
            self.wrong += [f"{key(body)}: {what}" for what in wrong]


def run(stage: Stage, seconds: float, *, returns: bool = True) -> list[str]:
    """Let the crowd ask for so long while the engines die in turn; what went wrong.

    ``returns`` False: only one dies, and nobody waits for its return.
    """
    for pod in stage.pods.values():
        pod.wait_ready()
    stage.wait_used("pod-a", stage.default)
    asked = total(counters(stage.default), "sive_requests_total")
    pod = stage.pods["pod-b"]
    uncut = {
        key(body): ask(
            pod.engine_url, "/chat/completions", {**body, "model": pod.engine_model(body["model"])}
        )
        for body in bodies()
    }
    crowd = Crowd(stage.default, uncut)
    crowd.start()
    try:
        deaths = _kill_in_turn(stage, crowd, seconds, returns=returns)
    finally:
        crowd.stop()
    counted = total(counters(stage.default), "sive_requests_total") - asked
    wrong = [*crowd.wrong, *books(stage.default)]
    if not crowd.resumed:
        wrong.append("no answer was struck at all: the trial proves nothing")
    if counted != crowd.answered:
        wrong.append(f"{counted} requests counted, {crowd.answered} made")
    measured = f"{deaths} deaths, {crowd.answered} answers, {crowd.resumed} resumed, {len(wrong)} wrong"
    return stage.card.result(f"{CALLERS} callers", measured, wrong)


def _kill_in_turn(stage: Stage, crowd: Crowd, seconds: float, *, returns: bool) -> int:
    """Kill one process after the other, pod by pod, each only when the one before is back in use."""
    until_at = time.monotonic() + seconds
    deaths = 0
    for backend, victim in zip(itertools.cycle(BACKENDS), itertools.cycle(VICTIMS), strict=False):
        seen = crowd.answered
        until(lambda seen=seen: crowd.answered >= seen + CALLERS, 120, "the crowd served")
        pod = stage.pods[backend]
        restarts = pod.restarts
        stage.card.say(f"kill {victim} of {backend}; {crowd.answered} answers, {len(crowd.wrong)} wrong")
        pod.member(victim).send_signal(signal.SIGKILL)
        deaths += 1
        if returns:
            pod.wait_ready(restarts=restarts + 1)
            stage.wait_rested(backend, stage.default)
        if not returns or time.monotonic() >= until_at:
            break
    crowd.run_out(until_at)
    return deaths
