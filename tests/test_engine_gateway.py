"""A real vLLM behind a real `sive serve`: boot, adapters, death, return, and nothing left behind."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest

from tests.conftest import TINY, Served, launch, until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

BOOT_S = 240
VOICES = ("base", "spinoza", "bergson", "kant")
EXPECTED: dict[str, dict[str, str]] = json.loads((TINY / "expected.json").read_text(encoding="utf-8"))
CONFIG = """
[gateway]
first_token_s = 60
[engine]
model = "{tiny}/base"
adapters = "{tiny}/adapters.toml"
max_model_len = 512
dtype = "float32"
"""


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One sive with one engine for the whole file; its port answers while the engine still boots."""
    with launch(tmp_path_factory.mktemp("pod"), CONFIG.format(tiny=TINY)) as served:
        yield served


def phase(pod: Served) -> str:
    """What the engine is doing."""
    return str(pod.get("/status").json()["engine"]["phase"])


def messages(question: str) -> list[dict[str, str]]:
    """A conversation of one question, with a system message that keeps the default one away."""
    return [{"role": "system", "content": ""}, {"role": "user", "content": question}]


def ask(pod: Served, model: str, question: str, **headers: str) -> httpx2.Response:
    """One greedy answer."""
    body = {"model": model, "messages": messages(question), "temperature": 0, "max_tokens": 120}
    return httpx2.post(f"{pod.url}/v1/chat/completions", json=body, headers=headers, timeout=90)


def said(answer: httpx2.Response) -> str:
    """The text of an answer."""
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"]).strip()


def is_like(text: str, wanted: str) -> bool:
    """The trained answer, up to a word that a CPU's arithmetic may turn."""
    return SequenceMatcher(None, text, wanted).ratio() > 0.9


def below(served: Served) -> list[psutil.Process]:
    """All processes of a sive, the engine's among them."""
    return psutil.Process(served.process.pid).children(recursive=True)


def test_while_the_engine_boots_the_cpu_answers(pod: Served) -> None:
    """From the first second, and it says that it is another voice and why."""
    assert phase(pod) != "ready"
    answer = ask(pod, "spinoza", "Who are you?")
    assert answer.headers["x-sive-backend"] == "local"
    assert answer.headers["x-sive-degraded"] == "true"
    refused = ask(pod, "spinoza", "Who are you?", **{"x-sive-require": "adapter"})
    assert refused.status_code == 503
    assert "the engine is not ready" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    ready = pod.get("/ready").json()["models"]["spinoza"]
    assert [rung["ready"] for rung in ready] == [False, True]


def test_the_adapters_answer_as_trained(pod: Served) -> None:
    """The same question: four voices, each its own, under the served name."""
    until(lambda: phase(pod) == "ready", BOOT_S, "the engine ready")
    for question, answers in EXPECTED.items():
        for voice in VOICES:
            answer = ask(pod, voice, question)
            assert is_like(said(answer), answers[voice]), (voice, question, said(answer))
            assert answer.headers["x-sive-degraded"] == "false"
            assert answer.json()["model"] == voice
    listed = {model["id"]: model for model in pod.get("/v1/models").json()["data"]}
    assert listed["spinoza"]["parent"] == "base"
    assert listed["spinoza"]["weights"].startswith(listed["base"]["weights"] + "+spinoza@")
    assert len({listed[voice]["weights"] for voice in VOICES}) == 4


def test_base_and_adapters_mix_in_one_batch(pod: Served) -> None:
    """Twelve streams at once, the base model's among them: no voice leaks into another."""
    until(lambda: phase(pod) == "ready", BOOT_S, "the engine ready")
    question = next(iter(EXPECTED))

    async def stream(sdk: openai.AsyncOpenAI, voice: str) -> str:
        chunks: Any = await sdk.chat.completions.create(
            model=voice,
            messages=messages(question),
            temperature=0,
            max_tokens=120,
            stream=True,  # type: ignore[arg-type]
        )
        return "".join(
            [chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices]
        ).strip()

    async def all_at_once() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=f"{pod.url}/v1", api_key="none", max_retries=0) as sdk:
            voices = VOICES * 3
            return list(
                zip(voices, await asyncio.gather(*(stream(sdk, voice) for voice in voices)), strict=True)
            )

    for voice, text in asyncio.run(all_at_once()):
        assert is_like(text, EXPECTED[question][voice]), (voice, text)


def test_wrong_requests_to_the_engine_are_its_answers(pod: Served) -> None:
    """What vLLM refuses goes back as it came; what plainly does not fit never reaches it."""
    until(lambda: phase(pod) == "ready", BOOT_S, "the engine ready")
    too_long = ask(pod, "spinoza", "word " * 600, **{"x-sive-require": "adapter"})
    assert too_long.status_code == 400
    assert too_long.json()["error"]["code"] == "context_length_exceeded"
    body = {"model": "spinoza", "messages": messages("x"), "logprobs": True, "top_logprobs": 999}
    refused = httpx2.post(f"{pod.url}/v1/chat/completions", json=body, timeout=30)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"]


def test_a_killed_engine_is_replaced_and_comes_back(pod: Served) -> None:
    """Kill -9: the next answer is the CPU's, at once; then the philosopher is back."""
    until(lambda: phase(pod) == "ready", BOOT_S, "the engine ready")
    question, answers = next(iter(EXPECTED.items()))
    engine = next(
        process for process in below(pod) if "EngineCore" in process.name() + " ".join(process.cmdline())
    )
    engine.send_signal(signal.SIGKILL)
    started = time.monotonic()
    answer = ask(pod, "spinoza", question)
    assert answer.headers["x-sive-backend"] == "local", answer.text
    assert time.monotonic() - started < 30
    until(lambda: phase(pod) != "ready", 30, "the engine's death seen")
    until(lambda: phase(pod) == "ready", BOOT_S, "the engine ready again")
    assert pod.get("/status").json()["engine"]["restarts"] >= 1
    assert is_like(said(ask(pod, "spinoza", question)), answers["spinoza"])


def test_nothing_survives_a_killed_gateway(pod: Served) -> None:
    """Kill -9 of sive itself: every process of the engine goes, and its shared memory."""
    shared = set(Path("/dev/shm").glob("psm_*"))
    processes = below(pod)
    assert len(processes) >= 3
    pod.process.kill()
    pod.process.wait()
    gone, alive = psutil.wait_procs(processes, timeout=40)
    assert alive == []
    assert gone
    until(lambda: not any(path.exists() for path in shared), 10, "the shared memory removed")


def test_a_missing_adapter_folder_is_one_line(tmp_path: Path) -> None:
    """In the log, named, with the way out; the adapter is refused, and whatever else there is starts."""
    adapters = tmp_path / "adapters.toml"
    entry = '[[adapter]]\nname = "hegel"\nsource = "file:hegel"\nbase_model = "file:{}/base"\n'
    adapters.write_text(entry.format(TINY))
    config = CONFIG.format(tiny=TINY).replace(f"{TINY}/adapters.toml", str(adapters))
    with launch(tmp_path, config) as served:
        until(lambda: _adapter(served, "hegel")["phase"] == "refused", 30, "hegel refused")
        (line,) = [one for one in served.output.read_text().splitlines() if "ERROR" in one]
        assert str(tmp_path / "hegel") in line


def _adapter(served: Served, name: str) -> dict[str, object]:
    """What /status says of an adapter."""
    said: dict[str, object] = served.get("/status").json()["engine"]["adapters"][name]
    return said
