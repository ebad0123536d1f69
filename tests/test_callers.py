"""Third-party SDKs in front of a gateway: chat, streams, tools, errors by their own classes, and leaving."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import ROOT, launch, until
from tests.lab import upstream
from tests.lab.endpoints import by_path, embeds, sends_messages, typed
from tests.lab.hosts import Hosts
from tests.lab.tools import ARGUMENTS, calls_a_tool
from tests.lab.upstream import Exchange, Upstream, answers, cuts_after, says

WORDS = ["Deus ", "sive ", "Natura"]
PLACES = ROOT / ".venv-callers"
REFUSED = {
    "error": {"message": "temperature is odd", "type": "invalid_request_error", "param": "temperature"}
}

CALLERS = {
    "openai-python": ("bin/python", "openai_python.py"),
    "openai-node": ("", "openai_node.mjs"),
    "litellm": ("bin/python", "litellm_sdk.py"),
    "langchain-openai": ("bin/python", "langchain_chat.py"),
    "anthropic": ("bin/python", "anthropic_python.py"),
}
"""By what installs them: their interpreter, and their script."""

OPENAIS = {
    "wrong_key": "AuthenticationError",
    "unknown_model": "NotFoundError",
    "callers_own": "BadRequestError",
    "nobody": "InternalServerError",
    "cut": "APIError",
}
ERRORS = {
    "openai-python": OPENAIS,
    "openai-node": OPENAIS,
    "langchain-openai": {
        "wrong_key": "OpenAIAuthenticationError",
        "unknown_model": "OpenAIModelNotFoundError",
        "callers_own": "OpenAIInvalidRequestError",
        "nobody": "OpenAIAPIError",
        "cut": "APIError",
    },
    "litellm": OPENAIS | {"nobody": "ServiceUnavailableError", "cut": "MidStreamFallbackError"},
    "anthropic": OPENAIS
    | {
        "nobody": "ServiceUnavailableError",
        "lacking": "HTTPNotImplementedError",
        "cut": "APIStatusError",
    },
}
"""Which exception each SDK makes of which failure."""

EXPECTED = {
    "whole": "".join(WORDS),
    "usage": 10,
    "model": {"anthropic": "messages", "": "chat"},
    "backend": "chat",
    "stream": WORDS,
    "stream_usage": 10,
    "embedding": 4.0,
    "response": "".join(WORDS),
    "response_stream": WORDS,
    "response_end": "response.completed",
    "tool": ["weather", ARGUMENTS, "tool_calls"],
    "tool_result": "It is rain",
    "tool_stream": ["weather", ARGUMENTS, "tool_calls"],
}


async def endless_messages(exchange: Exchange) -> None:
    """A message of Anthropic's that goes on until the other side leaves."""
    await exchange.head()
    while not exchange.gone.is_set():
        delta = {"type": "text_delta", "text": "word "}
        await typed(exchange, {"type": "content_block_delta", "index": 0, "delta": delta})
        await asyncio.sleep(0.01)


@dataclass
class Stage:
    """A gateway, and the host whose answers never end."""

    url: str
    endless: Upstream


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One gateway with a model for each thing that callers do."""
    with Hosts() as hosts:
        manners = {
            "chat": by_path({"/chat/completions": answers(*WORDS)}),
            "tools": calls_a_tool,
            "embeddings": by_path({"/embeddings": embeds}),
            "messages": by_path({"/messages": sends_messages(*WORDS)}),
            "refuses": says(400, REFUSED),
            "down": says(503),
            "cut": by_path(
                {"/chat/completions": cuts_after(2), "/messages": sends_messages("a", ends=False)}
            ),
            "endless": by_path({"/chat/completions": upstream.talks_forever, "/messages": endless_messages}),
        }
        made = {name: hosts.add(manner) for name, manner in manners.items()}
        config = "".join(
            f'[[backend]]\nname = "{name}"\nurl = "{host.url}"\nprobe = "passive"\n'
            f'[model.{name}]\nroute = [{{ backend = "{name}", model = "{name}-there" }}]\n'
            for name, host in made.items()
        )
        with launch(tmp_path_factory.mktemp("callers"), config, SIVE_API_KEYS="k") as served:
            yield Stage(f"{served.url}/v1", made["endless"])


def outcome(name: str, stage: Stage) -> dict[str, Any]:
    """Install a caller if it is missing, run it, and read what it got."""
    subprocess.run([ROOT / "tests/install_callers.sh", name], check=True, timeout=100)
    place, (program, script) = PLACES / name, CALLERS[name]
    command = [place / program] if program else ["node"]
    command += [ROOT / "tests/callers" / script, *([] if program else [place]), stage.url, "k"]
    ours = ("PYTHONPATH", "OPENAI_", "ANTHROPIC_", "LITELLM_", "HTTP_PROXY", "http_proxy")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    got: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return got


@pytest.mark.parametrize("name", CALLERS)
def test_a_third_partys_sdk_gets_what_it_expects(name: str, stage: Stage) -> None:
    """Text, usage, tools and errors as from OpenAI itself; who leaves is heard by the host."""
    before = len(stage.endless.seen)
    got = outcome(name, stage)
    assert got.pop("errors") == ERRORS[name]
    got.pop("models", None)
    for what, value in got.items():
        wanted: Any = EXPECTED[what]
        if what == "model":
            wanted = wanted.get(name, wanted[""])
        if what.startswith("tool") and name == "langchain-openai" and isinstance(wanted, list):
            wanted = [wanted[0], json.loads(wanted[1]), wanted[2]]
        assert value == wanted, what
    asked = stage.endless.seen[before:]
    assert len(asked) == 1
    until(lambda: asked[0].left_at is not None, what="the abort")
