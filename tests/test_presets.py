"""Hosts by their kind: where they are asked, what they need, and how the policy uses what they can."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from sive.assemble import build_table
from sive.backends.gradio import GradioBackend
from sive.backends.make import make_backend
from sive.backends.openai import OpenAIBackend
from sive.backends.presets import PRESETS
from sive.backends.replicate import ReplicateBackend
from sive.capabilities import capabilities, in_words
from sive.config import BackendSettings, load
from sive.config.hosts import KINDS_OF, Kind
from sive.errors import ConfigError
from sive.events import Open
from sive.health import Health
from sive.policy import Clocks, Policy
from sive.routes import Model
from sive_serve.direct import is_direct

from tests.chain_play import DONE, Play, call, chunk, payloads, rung
from tests.conftest import clean_environment
from tests.lab.asking import ask
from tests.lab.hosts import Hosts
from tests.lab.upstream import Exchange, answers, says
from tests.test_chain_hedge import SLOW_S, known


def backend(kind: str, **more: Any) -> Any:
    """What a ``[[backend]]`` of this kind is."""
    return make_backend(BackendSettings(name="b", kind=kind, **more))


@pytest.mark.parametrize(
    ("kind", "more", "url"),
    [
        ("hf", {}, "https://router.huggingface.co/v1"),
        ("together", {}, "https://api.together.xyz/v1"),
        ("openrouter", {}, "https://openrouter.ai/api/v1"),
        ("runpod-serverless", {"endpoint_id": "abc"}, "https://api.runpod.ai/v2/abc/openai/v1"),
        ("runpod-lb", {"endpoint_id": "abc"}, "https://abc.api.runpod.ai/v1"),
        ("runpod-queue", {"endpoint_id": "abc"}, "https://api.runpod.ai/v2/abc"),
        ("replicate", {}, "https://api.replicate.com"),
        ("gradio", {"space": "Me/My_Space"}, "https://me-my-space.hf.space"),
    ],
)
def test_a_kind_knows_where_it_is(kind: str, more: dict[str, Any], url: str) -> None:
    """And another place may be said."""
    assert backend(kind, **more).url == url
    assert backend(kind, url="http://127.0.0.1:1/v1").url.startswith("http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("openai", "backend 'b' has no url: say where its /v1 is"),
        ("hf-endpoint", "backend 'b' has no url: say where its /v1 is"),
        ("runpod-lb", "backend 'b' is 'runpod-lb', and has no endpoint_id"),
        ("gradio", "backend 'b' has no url: say url, or space"),
    ],
)
def test_what_a_kind_needs_is_told(kind: str, message: str) -> None:
    """With the way out."""
    with pytest.raises(ConfigError, match=message):
        backend(kind)


def test_a_key_of_another_kind_is_refused() -> None:
    """It would mean nothing there."""
    with pytest.raises(ValidationError, match="'function' is for kind 'gradio', not 'openai'"):
        backend("openai", url="http://a/v1", function="/chat")
    with pytest.raises(ValidationError, match="a 'gradio' backend cannot go on with an answer"):
        backend("gradio", url="http://a", resume="text")
    assert backend("replicate", template="chatml", resume="text").resume == "text"
    with pytest.raises(ValidationError, match="an argument is a name, or a constant"):
        backend("gradio", url="http://a", arguments=[{"default": 1}])


def test_sive_config_shows_the_keys_of_a_kind_and_no_secret(tmp_path: Path) -> None:
    """Not those of others."""
    file = tmp_path / "sive.toml"
    text = '[[backend]]\nname = "r"\nkind = "replicate"\ninput = { top_k = 5 }\n'
    file.write_text(text + 'headers = { Authorization = "hush" }\n')
    command = [sys.executable, "-m", "sive_serve.cli", "config", "--config", str(file)]
    shown = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, check=True
    ).stdout
    assert "backend.0.input.top_k = 5" in shown
    assert "backend.0.template = inputs" in shown
    assert "backend.0.function" not in shown
    assert "hush" not in shown


def test_every_kind_has_a_preset_and_every_key_a_kind() -> None:
    """The configuration and the presets name the same kinds."""
    assert set(get_args(Kind)) == set(PRESETS)
    assert {kind for kinds in KINDS_OF.values() for kind in kinds} <= set(PRESETS)


def test_headers_of_a_host_may_be_said_and_are_sent(hosts: Hosts) -> None:
    """The kind's own stay, unless they are said otherwise."""
    host = hosts.add(answers("a"))
    ask(backend("hf-endpoint", url=host.url, headers={"x-more": "1"}))
    ask(backend("hf-endpoint", url=host.url, headers={"x-scale-up-timeout": "600"}))
    first, second = (one.headers for one in host.seen)
    assert (first["x-scale-up-timeout"], first["x-more"]) == ("5", "1")
    assert second["x-scale-up-timeout"] == "600"


@pytest.fixture
def hosts() -> Any:
    """Hosts on one loop."""
    with Hosts() as hosts:
        yield hosts


# Words of hosts


def test_a_load_balancer_without_workers_sends_to_the_next_rung(hosts: Hosts) -> None:
    """RunPod says so with a 400, which would be the caller's fault anywhere else."""
    host = hosts.add(says(400, {"error": "no workers available"}))
    spare = hosts.add(answers("spare"))
    heard = ask(backend("runpod-lb", url=host.url), backend("openai", url=spare.url))
    assert heard.text == "spare"


def test_a_model_that_loads_says_for_how_long() -> None:
    """Hugging Face's ``estimated_time``."""
    body = b'{"error":"Model X is currently loading","estimated_time":20.0}'
    assert Policy().judge(503, {}, body).retry_after_s == 20
    assert Policy().judge(503, {"retry-after": "9"}, body).retry_after_s == 9
    assert Policy().judge(503, {}, b'{"error":"x","estimated_time":"soon"}').retry_after_s is None


@pytest.mark.parametrize("code", [402, 429, 502])
def test_an_error_of_openrouters_inside_a_200_is_no_answer(code: int, hosts: Hosts) -> None:
    """The next rung answers; a missing payment rests long."""

    async def manner(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.piece(b": OPENROUTER PROCESSING\n\n")
        await exchange.event({"id": "x", "error": {"code": code, "message": "secret"}, "choices": []})
        await exchange.done()

    spare = hosts.add(answers("spare"))
    heard = ask(
        make_backend(BackendSettings(name="or", kind="openrouter", url=hosts.add(manner).url)),
        backend("openai", url=spare.url),
    )
    assert heard.text == "spare"
    assert "secret" not in heard.body.decode()
    assert (("or", "") in heard.health.open_keys()) == (code == 402)


# Old names of the environment


@pytest.mark.parametrize("url", ["me-space.hf.space", "https://me-space.hf.space/"])
def test_snb_backend_url_is_a_gradio_rung(url: str) -> None:
    """With or without its scheme; a Space is shown the Hub's token."""
    loaded = load(environ={"SNB_BACKEND_URL": url, "SNB_API_PREFIX": "/api", "HF_TOKEN": "hf_x"})
    rungs = build_table(loaded.settings, local=None)["spinoza"].rungs
    snb = rungs[0].backend
    assert isinstance(snb, GradioBackend)
    assert (snb.name, snb.url.rstrip("/"), snb.prefix) == ("snb", "https://me-space.hf.space", "/api")
    assert snb.authorization() == {"authorization": "Bearer hf_x"}
    assert [rung.backend.name for rung in rungs] == ["snb", "hf"]


def test_the_hubs_token_is_shown_to_no_other_host() -> None:
    """SNB_BACKEND_URL may be anybody's."""
    for url in ("http://me-space.hf.space", "https://example.org", "https://hf.space.example.org"):
        loaded = load(environ={"SNB_BACKEND_URL": url, "HF_TOKEN": "hf_x"})
        assert build_table(loaded.settings, local=None)["spinoza"].rungs[0].backend.authorization() == {}


def test_snb_api_prefix_below_v1_still_speaks_openai() -> None:
    """As before."""
    loaded = load(environ={"SNB_BACKEND_URL": "pod.example", "SNB_API_PREFIX": "/v1"})
    snb = build_table(loaded.settings, local=None)["spinoza"].rungs[0].backend
    assert isinstance(snb, OpenAIBackend)
    assert snb.url == "https://pod.example/v1"


# What the policy makes of what they can

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def test_a_request_with_tools_goes_first_to_who_has_them() -> None:
    """The route's order else."""
    asked = call(stream=True, tools=[TOOL])
    assert Play(rung("plain", tools=False), rung("able"), asked=asked).opened == ["able"]
    assert Play(rung("plain", tools=False), rung("able")).opened == ["plain"]
    model = Model("m", (rung("plain", tools=False),), guards_json=False)
    assert is_direct(call(), model, Health(Policy()), 0)
    assert not is_direct(call(tools=[TOOL]), model, Health(Policy()), 0)


def test_tools_are_left_out_and_named_where_nobody_has_them() -> None:
    """An answer without is better than none, and says so."""
    play = Play(rung("plain", tools=False), asked=call(stream=True, tools=[TOOL], tool_choice="auto"))
    [opened] = [one for one in play.done if isinstance(one, Open)]
    assert not {"tools", "tool_choice"} & set(opened.request.body)
    play.streams(1, chunk("x"), chunk(finish="stop"), DONE)
    assert payloads(play.heard)[0]["sive"]["dropped"] == ["tool_choice", "tools"]


def test_what_costs_quota_is_no_hedge() -> None:
    """A second asking would spend it for nothing in most cases."""
    health = known("a")
    hedged = Play(rung("a"), rung("b", quota=True), rung("c"), health=health, hedges=True)
    hedged.passes(SLOW_S)
    assert hedged.opened == ["a", "c"]


def test_one_who_does_not_stream_is_given_the_time_of_a_whole_answer() -> None:
    """No first token can be seen there."""
    clocks = Clocks(first_token_s=2, whole_s=50, head_s=100)
    assert Play(rung("a", streams=False), clocks=clocks).until == 50
    assert Play(rung("a", first_token_s=7.0), clocks=clocks).until == 7
    assert Play(rung("a", first_token_s=7.0), clocks=replace(clocks, silence_s=3)).until == 3
    assert Play(rung("a"), clocks=clocks).until == 2


def test_one_who_does_not_stream_is_asked_for_one_piece_and_heard_as_a_stream(hosts: Hosts) -> None:
    """Tool calls and usage too; whoever wants one piece gets it as it came."""
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "t", "function": {"name": "f"}}]}
    whole = {"id": "w", "object": "chat.completion", "created": 1, "model": "up"}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    host = hosts.add(says(200, whole | {"choices": [choice], "usage": {"prompt_tokens": 1}}))
    heard = ask(backend("openai", url=host.url, streaming=False), stream_options={"include_usage": True})
    [first, last] = heard.events
    assert first["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **message["tool_calls"][0]}]
    assert (last["usage"], heard.is_done) == ({"prompt_tokens": 1}, True)
    assert not {"stream", "stream_options"} & set(host.seen[0].body)


@pytest.mark.parametrize("answer", [{"error": {"message": "x"}}, {"choices": []}, {"choices": 1}])
def test_one_piece_that_is_no_answer_is_none(answer: Any, hosts: Hosts) -> None:
    """The next rung is asked."""
    spare = hosts.add(answers("spare"))
    odd = make_backend(BackendSettings(name="o", url=hosts.add(says(200, answer)).url, streaming=False))
    assert ask(odd, backend("openai", url=spare.url)).text == "spare"


def test_a_kind_is_what_translates_it() -> None:
    """Three protocols, the rest is data."""
    assert isinstance(backend("replicate"), ReplicateBackend)
    assert isinstance(backend("together"), OpenAIBackend)
    assert in_words(capabilities(backend("hf", context_tokens=4096))) == "4096 tokens, tools, quota"
    assert in_words(capabilities(backend("gradio", space="a/b"))) == "text"
    assert "whole answers" in in_words(capabilities(backend("runpod-queue", endpoint_id="a")))
