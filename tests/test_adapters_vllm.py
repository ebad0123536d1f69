"""A real vLLM beside the checks: what they accept it serves, and what it takes silently they refuse.

``tests/lab/adapters.py`` has every adapter that is tried; that the checks refuse the broken ones, each for
its reason, and accept the sound ones, is in ``test_adapter_check.py``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import TINY, launch
from tests.lab.adapters import BROKEN, SOUND, Made, make
from tests.lab.engines import VLLM, Pod, free_ports

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not VLLM.is_file(), reason="no vLLM here: make engine"),
]

MAX_RANK = 16
QUESTION = [{"role": "user", "content": "What is freedom?"}]
DIFFERENT = 0.01
"""Nats of a token; the same weights give the same logprobs to the last digit here."""

CONFIG = """
[engine]
model = "{tiny}/base"
adapters = "{folder}/adapters.toml"
max_model_len = 256
dtype = "float32"
enforce-eager = true
max-lora-rank = {rank}
max-cpu-loras = 100
port = {port}
"""


@dataclass
class Loader:
    """A running engine that adapters can be loaded into; ``listed``: its name for the one that is listed."""

    url: str
    folder: Path
    listed: str

    def load(self, how: str, made: Made) -> httpx2.Response:
        """Make an adapter and ask the engine to load it; its files stay, since vLLM may read them again."""
        folder = self.folder / f"{len(list(self.folder.iterdir()))}"
        wanted = {"lora_name": how, "lora_path": str(make(made, folder))}
        return httpx2.post(f"{self.url}/load_lora_adapter", json=wanted, timeout=60)

    def unload(self, how: str) -> None:
        """Take its name away."""
        httpx2.post(f"{self.url}/unload_lora_adapter", json={"lora_name": how}, timeout=60).raise_for_status()

    def logprobs(self, model: str) -> list[tuple[str, float]]:
        """Ask a question, greedily, and return the first tokens' likeliest words."""
        body: dict[str, Any] = {
            "model": model,
            "messages": QUESTION,
            "max_tokens": 4,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 5,
        }
        answer = httpx2.post(f"{self.url}/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        tokens = answer.json()["choices"][0]["logprobs"]["content"]
        return [(top["token"], top["logprob"]) for token in tokens for top in token["top_logprobs"]]


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    """Boot one engine for all tests of this file."""
    folder = tmp_path_factory.mktemp("engine")
    entry = '[[adapter]]\nname = "spinoza"\nsource = "file:{0}/spinoza"\nbase_model = "file:{0}/base"\n'
    (folder / "adapters.toml").write_text(entry.format(TINY))
    (port,) = free_ports(1)
    config = CONFIG.format(tiny=TINY, folder=folder, rank=MAX_RANK, port=port)
    made = tmp_path_factory.mktemp("adapters")
    with launch(folder, config, VLLM_ALLOW_RUNTIME_LORA_UPDATING="1") as served:
        pod = Pod(served, port)
        pod.wait_ready()
        yield Loader(pod.engine_url, made, pod.engine_model("spinoza"))


def differ(ours: list[tuple[str, float]], theirs: list[tuple[str, float]]) -> bool:
    """Are these the likeliest words of different models?"""
    pairs = zip(ours, theirs, strict=True)
    return any(one[0] != other[0] or abs(one[1] - other[1]) > DIFFERENT for one, other in pairs)


@pytest.mark.parametrize("how", SOUND)
def test_what_the_checks_accept_is_loaded_and_speaks_otherwise_than_the_base(
    loader: Loader, how: str
) -> None:
    """Each sound adapter loads, and its likeliest words are not the base's."""
    reply = loader.load(how, SOUND[how])
    assert reply.status_code == 200, reply.text
    assert differ(loader.logprobs(how), loader.logprobs("base"))
    loader.unload(how)


@pytest.mark.parametrize("how", BROKEN)
def test_vllm_does_with_a_broken_one_what_the_table_says(loader: Loader, how: str) -> None:
    """Silent acceptance is what the checks are there for; when vLLM begins to refuse one, this tells."""
    reply = loader.load(how, BROKEN[how])
    assert (reply.status_code == 200) == (BROKEN[how].vllm == "serves"), reply.text
    if reply.status_code == 200:
        loader.unload(how)


@pytest.mark.parametrize("how", ["alpha of zero", "the model without its head"])
def test_some_that_vllm_takes_are_the_base_under_another_name(loader: Loader, how: str) -> None:
    """The worst kind: 200, and not a word of the adapter's."""
    assert loader.load(how, BROKEN[how]).status_code == 200
    assert not differ(loader.logprobs(how), loader.logprobs("base"))
    loader.unload(how)


def test_the_engine_took_no_harm(loader: Loader) -> None:
    """After all that was loaded and refused, base and adapter answer as in the beginning."""
    assert differ(loader.logprobs(loader.listed), loader.logprobs("base"))
    assert not differ(loader.logprobs("base"), loader.logprobs("base"))
