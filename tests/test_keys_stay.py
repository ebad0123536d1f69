"""Keys stay where they belong: no backend hears another's, nor a caller's, whatever is asked and fails."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from tests.conftest import Served, launch, until
from tests.lab import upstream
from tests.lab.endpoints import by_path, embeds, responds, sends_messages
from tests.lab.hosts import Hosts
from tests.lab.neighbours import redirects
from tests.lab.upstream import Exchange, Manner, Upstream, answers, cuts_after, says

HI = [{"role": "user", "content": "hi"}]
CALLERS = ("callers-key", "callers-other-key")
ASKED: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": HI},
    "embeddings": {"input": "hi"},
    "messages": {"messages": HI, "max_tokens": 9},
    "responses": {"input": "hi"},
}
"""A request for each endpoint."""

ALLOWED = {
    "accept-encoding",
    "authorization",
    "content-length",
    "content-type",
    "host",
    "x-request-id",
    "x-sive-hop",
    "x-sive-require",
}
"""All that a backend is told in headers."""


async def lists_models(exchange: Exchange) -> None:
    """What a backend says of its models."""
    data = [{"id": "x", "object": "model", "weights": "w"}]
    await exchange.json({"object": "list", "data": data})


@dataclass
class Stage:
    """A gateway, its backends by name, and who must never be asked."""

    served: Served
    hosts: dict[str, Upstream]
    thief: Upstream

    def key(self, name: str) -> str:
        """The key of a backend."""
        return f"key-of-{name}"

    def heard(self, host: Upstream) -> str:
        """All that a backend was told: paths, headers and bodies."""
        return "\n".join(f"{one.path} {one.headers} {one.body}" for one in host.seen)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A chain of backends that fail in all ways, each with a key of its own; the last has none."""
    with Hosts() as made:
        thief = made.add(answers("stolen"))
        able: dict[str, Manner] = {"/models": lists_models, "/embeddings": embeds}
        able |= {"/messages": sends_messages("a"), "/responses": responds("a")}
        manners: dict[str, Manner] = {
            "refused": says(401, {"error": {"message": "key-of-refused is wrong", "code": "bad"}}),
            "moved": redirects(307, f"{thief.url}/chat/completions"),
            "down": says(503),
            "reset": upstream.resets,
            "cut": by_path({"/models": lists_models, "/chat/completions": cuts_after(2)}),
            "well": by_path(able | {"/chat/completions": answers("b")}),
            "open": by_path(able | {"/chat/completions": answers("c")}),
        }
        hosts = {name: made.add(manner) for name, manner in manners.items()}
        backends = "".join(
            f'[[backend]]\nname = "{name}"\nurl = "{host.url}"\nresume = "text"\n'
            f'probe = "{"token" if name in ("cut", "well") else "passive"}"\n'
            + ("" if name == "open" else f'api_key_env = "KEY_OF_{name.upper()}"\n')
            for name, host in hosts.items()
        )
        rungs = ", ".join(f'{{ backend = "{name}", model = "x" }}' for name in hosts)
        last = '[model.open]\nroute = [{ backend = "open", model = "x" }]\n'
        config = f"[gateway]\nprobe_interval_s = 0.2\n{backends}[model.m]\nroute = [{rungs}]\n{last}"
        keys = {f"KEY_OF_{name.upper()}": f"key-of-{name}" for name in hosts}
        folder = tmp_path_factory.mktemp("keys")
        with launch(folder, config, SIVE_API_KEYS=",".join(CALLERS), **keys) as served:
            yield Stage(served, hosts, thief)


def ask(stage: Stage, endpoint: str, model: str = "m", **body: Any) -> httpx2.Response:
    """POST with all that a caller may show a key in."""
    headers = {
        "authorization": f"Bearer {CALLERS[0]}",
        "x-api-key": CALLERS[1],
        "api-key": CALLERS[1],
        "cookie": f"session={CALLERS[1]}",
        "openai-organization": CALLERS[1],
        "proxy-authorization": f"Basic {CALLERS[1]}",
        "x-stainless-lang": "python",
    }
    asked = {"model": model, **ASKED[endpoint], **body}
    return httpx2.post(f"{stage.served.url}/v1/{endpoint}", json=asked, headers=headers, timeout=30)


def test_no_key_travels(stage: Stage) -> None:
    """Over failovers, resumes, probes, lists of models and all endpoints, streamed and not."""
    assert ask(stage, "chat/completions", stream=True).headers["x-sive-backend"] == "cut"
    carried_on = [one for one in stage.hosts["well"].seen if one.body.get("continue_final_message")]
    assert [one.headers["authorization"] for one in carried_on] == ["Bearer key-of-well"]
    for endpoint in ASKED:
        for model in ("m", "open"):
            assert ask(stage, endpoint, model).status_code == 200
            if endpoint != "embeddings":
                assert ask(stage, endpoint, model, stream=True).status_code == 200
    assert stage.served.get("/status", headers={"authorization": f"Bearer {CALLERS[0]}"}).status_code == 200
    well = stage.hosts["well"].seen
    until(lambda: any(one.path.endswith("/models") for one in well), 20, "the list of models")
    assert any(one.body.get("max_tokens") == 1 for one in well), "it was not probed"
    for name, host in stage.hosts.items():
        assert host.seen, f"{name} was never asked"
        others = [stage.key(other) for other in stage.hosts if other != name]
        for secret in (*others, *CALLERS):
            assert secret not in stage.heard(host), f"{name} heard {secret}"
        for one in host.seen:
            assert one.headers.keys() <= ALLOWED
            wanted = None if name == "open" else f"Bearer {stage.key(name)}"
            assert one.headers.get("authorization") == wanted
    assert stage.thief.seen == []


def test_no_caller_is_told_a_key_or_an_address(stage: Stage) -> None:
    """Neither in answers, errors, pages nor the log."""
    key = {"authorization": f"Bearer {CALLERS[0]}"}
    told = [ask(stage, endpoint, stream=True).text for endpoint in ("chat/completions", "responses")]
    told += [ask(stage, "messages", "nobody").text, ask(stage, "responses", tools=[{"type": "mcp"}]).text]
    told += [
        stage.served.get(path, headers=key).text for path in ("/status", "/ready", "/metrics", "/v1/models")
    ]
    told.append(stage.served.output.read_text())
    for text in told:
        for name, host in stage.hosts.items():
            assert stage.key(name) not in text
            assert f":{host.port}" not in text
        assert not any(caller in text for caller in CALLERS)
