"""`make demo`: a pod with a real engine dies and comes back while the philosophers are asked.

Two sives on this machine: "the pod" runs vLLM with the tiny models of the tests, "the gateway" stands in
front of it and falls to its own CPU. Prints a timeline, and leaves nothing running.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
from openai import OpenAI
from rich.console import Console

TINY = Path(__file__).parent.parent / "tests" / "data" / "tiny"
PHILOSOPHERS = ("spinoza", "bergson", "kant")
QUESTION = "What is freedom?"
PATIENCE_S = 180

GATEWAY = """
[[backend]]
name = "pod"
url = "{pod}/v1"
"""
MODEL = """
[model.{name}]
route = [{{ backend = "pod", model = "{name}" }}, {{ backend = "local", model = "auto" }}]
system_prompt = "You are {name}."
"""

console = Console(highlight=False)
started = time.monotonic()


def say(text: str, style: str = "") -> None:
    """One line of the timeline."""
    console.print(f"{time.monotonic() - started:6.1f} s  {text}", style=style, markup=False)


def until(is_so: Callable[[], Any], what: str) -> None:
    """Wait for something, within PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > deadline:
            sys.exit(f"demo: gave up after {PATIENCE_S} s waiting for {what}")
        time.sleep(0.2)


@contextlib.contextmanager
def sive(folder: Path, *arguments: str) -> Iterator[tuple[str, int]]:
    """A `sive serve` on a free port; its URL and process id. Ended when the demo leaves, however it does."""
    folder.mkdir(exist_ok=True)
    output = folder / "output.txt"
    command = [sys.executable, "-m", "sive_serve.cli", "serve", "--port", "0", *arguments]
    environment = os.environ | {"SIVE_OFFLINE": "1", "SIVE_CONFIG": str(folder / "sive.toml")}
    environment.pop("SIVE_API_KEYS", None)
    with output.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        until(lambda: "sive on" in output.read_text() or process.poll() is not None, "a sive to start")
        found = re.search(r"sive on (\S+)/v1", output.read_text())
        if found is None:
            sys.exit(output.read_text())
        yield found.group(1), process.pid
    finally:
        process.terminate()
        process.wait(60)


def engine_of(pod: str) -> dict[str, Any]:
    """What the pod says of its engine; nothing while it does not answer."""
    try:
        said: dict[str, Any] = httpx2.get(f"{pod}/status", timeout=5).json()["engine"]
    except httpx2.HTTPError:
        return {"phase": "unreachable"}
    return said


def wait_until_used(gateway: str) -> None:
    """The gateway finds out by a token, within 10 s."""

    def is_used() -> bool:
        models = httpx2.get(f"{gateway}/ready", timeout=5).json()["models"]
        return all(models[name][0]["ready"] for name in PHILOSOPHERS)

    began = time.monotonic()
    until(is_used, "the gateway to use the pod")
    say(f"the gateway uses the pod, {time.monotonic() - began:.1f} s after it was ready", "dim")


def wait_for_engine(pod: str) -> None:
    """Show the boot phases until the engine is ready."""
    seen = ""

    def is_ready() -> bool:
        nonlocal seen
        phase = engine_of(pod)["phase"]
        if phase != seen:
            say(f"engine: {phase}", "dim")
            seen = phase
        return phase == "ready"

    until(is_ready, "the engine")


def ask(client: OpenAI) -> list[str]:
    """Ask every philosopher the same; who answered."""
    speakers = []
    for name in PHILOSOPHERS:
        messages: Any = [{"role": "user", "content": QUESTION}]
        answer = client.chat.completions.create(
            model=name, messages=messages, temperature=0, max_tokens=100, stream=True
        )
        text, about = "", {}
        for chunk in answer:
            about = (chunk.model_extra or {}).get("sive") or about
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        mark = ", DEGRADED" if about["degraded"] else ""
        say(f"{name}: {text.strip()}")
        say(f"    ({about['backend']}{mark})", "yellow" if mark else "green")
        speakers.append(about["backend"])
    return speakers


def descendants(pid: int) -> list[int]:
    """Process ids below ``pid``, the engine's among them."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *descendants(child))]


def kill_engine(pod_pid: int) -> None:
    """SIGKILL to vLLM's own process, the one below the guard."""
    guard, vllm, *_ = descendants(pod_pid)
    say(f"kill -9 {vllm}   (vLLM; its guard is {guard})", "red")
    os.kill(vllm, signal.SIGKILL)


def expect(speakers: list[str], wanted: str) -> None:
    """The demo fails loudly when the wrong backend spoke."""
    if speakers != [wanted] * len(PHILOSOPHERS):
        sys.exit(f"demo: expected {wanted!r} to answer, but {speakers} did")


def main() -> None:
    """Pod and gateway up; ask; kill the engine; ask; wait; ask."""
    if not (TINY / "adapters.toml").is_file():
        sys.exit(f"demo: the tiny models are not in {TINY}: make models")
    with tempfile.TemporaryDirectory(prefix="sive-demo-") as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        (home / "pod").mkdir()
        (home / "pod" / "sive.toml").write_text("")
        engine = ("--engine", str(TINY / "base"), "--adapters", str(TINY / "adapters.toml"))
        pod, pod_pid = stack.enter_context(sive(home / "pod", *engine))
        say(f"the pod: {pod}, its engine boots")
        (home / "gateway").mkdir()
        models = "".join(MODEL.format(name=name) for name in PHILOSOPHERS)
        (home / "gateway" / "sive.toml").write_text(GATEWAY.format(pod=pod) + models)
        gateway, _ = stack.enter_context(sive(home / "gateway"))
        say(f"the gateway: {gateway}, answers already: {QUESTION!r}")
        client = stack.enter_context(OpenAI(base_url=f"{gateway}/v1", api_key="none-needed", max_retries=0))
        expect(ask(client), "local")
        wait_for_engine(pod)
        wait_until_used(gateway)
        expect(ask(client), "pod")
        kill_engine(pod_pid)
        expect(ask(client), "local")
        wait_for_engine(pod)
        wait_until_used(gateway)
        expect(ask(client), "pod")
        below = [pod_pid, *descendants(pod_pid)]
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), "all processes to be gone")
    say("everything is stopped: " + " ".join(map(str, below)), "dim")


if __name__ == "__main__":
    main()
