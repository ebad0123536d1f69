"""Endpoints beyond chat: through to a backend that has them, from its name for the model to the caller's."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from tests.conftest import Serve, Served, until
from tests.lab import upstream
from tests.lab.endpoints import by_path, chats, embeds, responds, response, sends_messages, typed
from tests.lab.hosts import Hosts
from tests.lab.upstream import Upstream, answers, says
from tests.test_gateway import LOCAL_LAST, routed

HI = [{"role": "user", "content": "hi"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "embeddings": {"input": "hi"},
    "messages": {"messages": HI, "max_tokens": 9},
    "responses": {"input": "hi"},
}


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Hosts that speak what a test needs."""
    with Hosts() as made:
        yield made


def ask(served: Served, endpoint: str, headers: dict[str, str] | None = None, **body: Any) -> httpx2.Response:
    """POST a small request to an endpoint."""
    asked = {"model": "m", **REQUESTS[endpoint], **body}
    return httpx2.post(f"{served.url}/v1/{endpoint}", json=asked, headers=headers, timeout=30)


def events(response: httpx2.Response) -> list[dict[str, Any]]:
    """The payloads of a stream of typed events; each stands under the name of its type."""
    found = []
    for event in response.text.split("\n\n"):
        lines = [line for line in event.split("\n") if line and not line.startswith(":")]
        if lines:
            payload = json.loads(lines[1].removeprefix("data: "))
            assert lines[0] == f"event: {payload['type']}"
            found.append(payload)
    return found


def test_one_model_can_be_asked_about(serve: Serve) -> None:
    """GET /v1/models/{id} is the list's entry, also for names with slashes; others are a 404 that helps."""
    name = "org/team/model"
    with Upstream(answers("a")) as host:
        served = serve(routed(host).replace("[model.m]", f'[model."{name}"]'))
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as sdk:
            assert sdk.models.retrieve(name).id == name
            with pytest.raises(openai.NotFoundError, match=f"served are: {name}"):
                sdk.models.retrieve("other")
        assert served.get(f"/v1/models/{name}").json() == served.get("/v1/models").json()["data"][0]


def test_embeddings_go_to_the_rung_that_has_them(serve: Serve, hosts: Hosts) -> None:
    """The model's name there and back, who spoke, the tokens in the metrics."""
    host = hosts.add(by_path({"/embeddings": embeds}))
    served = serve(routed(host))
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as sdk:
        answer = sdk.embeddings.create(model="m", input=["one", "three"])
    assert [one.embedding[2] for one in answer.data] == [3.0, 5.0]
    assert answer.model == "m"
    assert answer.model_extra is not None
    assert answer.model_extra["sive"]["backend"] == "b0"
    assert host.seen[0].path == "/v1/embeddings"
    assert host.seen[0].body["model"] == "m0"
    raw = ask(served, "embeddings")
    assert raw.headers["x-sive-backend"] == "b0"
    assert raw.headers["x-request-id"]
    metrics = served.get("/metrics").text
    assert 'sive_requests_total{backend="b0",model="m",status="200"} 2.0' in metrics
    assert 'sive_tokens_total{backend="b0",kind="prompt",model="m"} 10.0' in metrics


def test_a_failure_before_a_byte_is_the_next_rungs(serve: Serve, hosts: Hosts) -> None:
    """503, silence and resets lead on, as for chat; the last host answers."""
    able = by_path({"/embeddings": embeds, "/messages": sends_messages("a"), "/responses": responds("a")})
    served = serve(routed(hosts.add(says(503)), hosts.add(upstream.resets), hosts.add(able)))
    for endpoint in REQUESTS:
        answer = ask(served, endpoint)
        assert answer.status_code == 200
        assert answer.headers["x-sive-backend"] == "b2"
        assert answer.json()["sive"]["degraded"] is True


def test_embeddings_are_no_stream(serve: Serve, hosts: Hosts) -> None:
    """Whatever a caller asks for: there is nothing to stream."""
    served = serve(routed(hosts.add(by_path({"/embeddings": embeds}))))
    assert ask(served, "embeddings", stream=True).json()["data"]


def test_a_404_is_remembered(serve: Serve, hosts: Hosts) -> None:
    """A host that has no such endpoint is asked once, then passed over; its chat is left alone."""
    able = by_path({"/embeddings": embeds, "/messages": sends_messages("a")})
    without = hosts.add(chats("a"))
    served = serve(routed(without, hosts.add(able)))
    for endpoint in ("embeddings", "messages"):
        for _ in range(3):
            assert ask(served, endpoint).headers["x-sive-backend"] == "b1"
    assert [seen.path for seen in without.seen] == ["/v1/embeddings", "/v1/messages"]
    chat = httpx2.post(f"{served.url}/v1/chat/completions", json={"model": "m", "messages": HI}, timeout=30)
    assert chat.headers["x-sive-backend"] == "b0"


def test_any_way_to_say_that_there_is_no_such_page_is_understood(serve: Serve, hosts: Hosts) -> None:
    """Plain text, an empty body, a wrong method, another sive's 501: none counts against the host's chat."""

    async def plain(exchange: upstream.Exchange) -> None:
        await exchange.head(404, "text/plain")
        await exchange.piece(b"404 page not found")
        await exchange.end()

    lacking = {"error": {"message": "no backend of 'm0' has it", "code": "not_implemented"}}
    ways = (plain, says(405, {"detail": "Method Not Allowed"}), says(501, lacking))
    able = hosts.add(by_path({"/embeddings": embeds}))
    chat = {"/chat/completions": answers("a")}
    made = [hosts.add(by_path(chat, otherwise=way)) for way in ways]
    served = serve(routed(*made, able))
    for _ in range(4):
        assert ask(served, "embeddings").headers["x-sive-backend"] == "b3"
    assert [len(host.seen) for host in made] == [1, 1, 1]
    assert served.get("/ready").json()["models"]["m"][0]["ready"] is True


def test_who_lacks_the_page_did_nothing_that_is_not_done_twice(serve: Serve, hosts: Hosts) -> None:
    """A request whose tools the host runs goes on to the rung that has the endpoint."""
    lacking = says(501, {"error": {"message": "no backend has it", "code": "not_implemented"}})
    served = serve(routed(hosts.add(lacking), hosts.add(by_path({"/responses": responds("a")}))))
    answer = ask(served, "responses", tools=[{"type": "web_search"}])
    assert (answer.status_code, answer.headers.get("x-sive-backend")) == (200, "b1")
    failing = serve(routed(hosts.add(says(500)), other := hosts.add(by_path({"/responses": responds("a")}))))
    assert ask(failing, "responses", tools=[{"type": "web_search"}]).status_code == 503
    assert other.seen == []


def test_a_model_that_is_unknown_is_no_missing_page(serve: Serve, hosts: Hosts) -> None:
    """The host is asked again once it has the model; its other models are left alone."""
    unknown = says(404, {"error": {"message": "The model `m0` does not exist.", "code": 404}})
    host, other = hosts.add(unknown), hosts.add(by_path({"/embeddings": embeds}))
    served = serve(routed(host, other))
    assert ask(served, "embeddings").headers["x-sive-backend"] == "b1"
    host.manner = by_path({"/embeddings": embeds})
    assert ask(served, "embeddings").headers["x-sive-backend"] == "b0"


def test_what_a_response_goes_on_from_may_be_unknown(serve: Serve, hosts: Hosts) -> None:
    """That is the caller's error, not a host without responses."""
    unknown = says(404, {"error": {"message": "Response with id 'resp_1' not found.", "code": 404}})
    host, other = hosts.add(unknown), hosts.add(by_path({"/responses": responds("a")}))
    served = serve(routed(host, other))
    answer = ask(served, "responses", previous_response_id="resp_1")
    assert answer.status_code == 404
    assert "resp_1" in answer.json()["error"]["message"]
    host.manner = by_path({"/responses": responds("b")})
    assert ask(served, "responses").headers["x-sive-backend"] == "b0"
    assert other.seen == []
    host.manner = chats("a")
    assert ask(served, "responses", previous_response_id="resp_1").headers["x-sive-backend"] == "b1"


def test_what_a_backend_is_said_to_have_not_is_not_asked(serve: Serve, hosts: Hosts) -> None:
    """``endpoints`` declares; a page of a proxy in front of a host says nothing of it."""
    able = by_path({"/embeddings": embeds})
    without, booting = hosts.add(able), hosts.add(upstream.html(404))
    config = routed(without, booting, hosts.add(able))
    served = serve(config.replace('name = "b0"', 'name = "b0"\nendpoints = ["messages"]'))
    assert ask(served, "embeddings").headers["x-sive-backend"] == "b2"
    booting.manner = able
    assert ask(served, "embeddings").headers["x-sive-backend"] == "b1"
    assert without.seen == []


def test_what_nobody_has_is_a_501(serve: Serve, hosts: Hosts) -> None:
    """At once, with an error that says so, and the CPU does not pretend."""
    served = serve(routed(hosts.add(chats("a")), last=LOCAL_LAST))
    for endpoint, kind in (("embeddings", None), ("messages", "error")):
        answer = ask(served, endpoint)
        assert answer.status_code == 501
        assert answer.json()["error"]["message"] == f"no backend of 'm' has /v1/{endpoint}"
        assert answer.json()["error"]["code"] == "not_implemented"
        assert answer.json().get("type") == kind


def test_messages_pass_through_whole(serve: Serve, hosts: Hosts) -> None:
    """Anthropic's protocol, with the caller's name for the model and the model's own system prompt."""
    host = hosts.add(by_path({"/messages": sends_messages("Deus ", "sive ", "Natura")}))
    served = serve(routed(host) + 'system_prompt = "You are Spinoza."\n')
    answer = ask(served, "messages").json()
    assert (answer["model"], answer["content"][0]["text"]) == ("m", "Deus sive Natura")
    assert host.seen[0].body["system"] == "You are Spinoza."
    ask(served, "messages", system="You are Kant.")
    assert host.seen[1].body["system"] == "You are Kant."
    streamed = ask(served, "messages", stream=True)
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    told = events(streamed)
    assert told[0]["message"]["model"] == "m"
    assert told[0]["message"]["sive"]["backend"] == "b0"
    assert [one["type"] for one in told][-2:] == ["message_delta", "message_stop"]
    assert "stream_options" not in host.seen[2].body
    assert 'kind="completion",model="m"} 9.0' in served.get("/metrics").text


def test_messages_that_break_off_end_in_an_error_event(serve: Serve, hosts: Hosts) -> None:
    """Anthropic's own error event, and no message_stop."""
    host = hosts.add(by_path({"/messages": sends_messages("a", "b", ends=False)}))
    told = events(ask(serve(routed(host)), "messages", stream=True))
    assert [one["type"] for one in told][-2:] == ["content_block_delta", "error"]
    assert told[-1]["error"]["type"] == "api_error"
    assert "broke off" in told[-1]["error"]["message"]


def test_anthropics_way_to_show_a_key(serve: Serve, hosts: Hosts) -> None:
    """``x-api-key`` opens as a bearer key does, and a refusal has the shape that Anthropic's SDK reads."""
    host = hosts.add(by_path({"/messages": sends_messages("a")}))
    served = serve(routed(host), SIVE_API_KEYS="k-1")
    refused = ask(served, "messages", {"x-api-key": "k-2"})
    assert refused.status_code == 401
    assert refused.json()["type"] == "error"
    assert refused.json()["error"]["type"] == "authentication_error"
    assert ask(served, "messages", {"x-api-key": "k-1"}).status_code == 200
    assert served.get("/v1/models", headers={"x-api-key": "k-1"}).status_code == 200
    assert "k-1" not in str(host.seen[0].headers)


def test_a_response_passes_through_whole(serve: Serve, hosts: Hosts) -> None:
    """A rung that has responses gives them as they are, streamed and in one piece."""
    host = hosts.add(by_path({"/responses": responds("Deus ", "sive")}))
    served = serve(routed(host) + 'system_prompt = "You are Spinoza."\n')
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as sdk:
        whole = sdk.responses.create(model="m", input="hi")
        assert (whole.output_text, whole.model, whole.id) == ("Deus sive", "m", "resp_lab")
        with sdk.responses.create(model="m", input="hi", stream=True, tools=[]) as stream:
            told = list(stream)
    assert [one.type for one in told] == [
        "response.created",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.completed",
    ]
    assert told[-1].response.model == "m"  # type: ignore[union-attr]
    assert host.seen[0].body["instructions"] == "You are Spinoza."
    assert 'kind="completion",model="m"} 6.0' in served.get("/metrics").text


def test_a_response_that_breaks_off_is_a_failed_one(serve: Serve, hosts: Hosts) -> None:
    """The protocol's own last event, and one of which SDKs make an exception: never a clean end."""
    host = hosts.add(by_path({"/responses": responds("a", "b", ends=False)}))
    served = serve(routed(host))
    told = events(ask(served, "responses", stream=True))
    assert [one["type"] for one in told][-3:] == ["response.output_text.delta", "response.failed", "error"]
    assert [one["sequence_number"] for one in told] == list(range(5))
    assert told[-2]["response"]["id"] == "resp_lab"
    assert told[-2]["response"]["error"]["code"] == "server_error"
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as sdk:
        stream = sdk.responses.create(model="m", input="hi", stream=True)
        with pytest.raises(openai.APIError, match="broke off"):
            list(stream)


def test_an_error_before_the_first_token_is_not_an_answer(serve: Serve, hosts: Hosts) -> None:
    """A stream that begins with an error, or is one inside a 200, is the next rung's."""

    async def fails(exchange: upstream.Exchange) -> None:
        if exchange.seen.body.get("stream"):
            await exchange.head()
            await typed(exchange, {"type": "error", "message": "http://inner key-1"})
            end = {"type": "response.completed", "response": response(exchange, "completed", "key-1")}
            await typed(exchange, end)
            await exchange.end()
        else:
            await exchange.json({"error": {"message": "http://inner key-1"}})

    served = serve(routed(hosts.add(fails), hosts.add(by_path({"/responses": responds("a")}))))
    for stream in (False, True):
        answer = ask(served, "responses", stream=stream)
        assert answer.headers["x-sive-backend"] == "b1"
        assert "key-1" not in answer.text


def test_what_may_have_been_done_is_not_done_twice(serve: Serve, hosts: Hosts) -> None:
    """A request that leaves something behind is sent once more only when nobody can have begun it."""
    first, second = hosts.add(says(500)), hosts.add(by_path({"/responses": responds("a")}))
    served = serve(routed(first, second))
    bodies: list[tuple[dict[str, Any], bool]] = [
        ({"store": True}, False),
        ({"conversation": "conv_1"}, False),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, False),
        ({"tools": [{"type": "function", "name": "f", "parameters": {}}]}, True),
        ({}, True),
    ]
    for body, asked_twice in bodies:
        before = len(second.seen)
        answer = ask(served, "responses", **body)
        assert answer.status_code == (200 if asked_twice else 503)
        assert len(second.seen) - before == asked_twice


def test_a_caller_who_leaves_stops_the_backend(serve: Serve, hosts: Hosts) -> None:
    """Whatever the endpoint, an abort reaches the host."""

    async def goes_on(exchange: upstream.Exchange) -> None:
        await exchange.head()
        payload = b'{"type":"response.output_text.delta","delta":"a","sequence_number":1}'
        while not exchange.gone.is_set():
            await exchange.piece(b"event: response.output_text.delta\ndata: " + payload + b"\n\n")
            await asyncio.sleep(0.01)

    host = hosts.add(by_path({"/responses": goes_on}))
    served = serve(routed(host))
    asked = {"model": "m", "input": "hi", "stream": True}
    with httpx2.stream("POST", f"{served.url}/v1/responses", json=asked, timeout=30) as stream:
        next(stream.iter_bytes())
    until(lambda: host.seen[0].left_at is not None, what="the abort")


def test_all_else_under_v1_stays_unknown(serve: Serve) -> None:
    """No path of an engine's own is passed through."""
    served = serve()
    for path in ("/v1/load_lora_adapter", "/v1/messages/count_tokens", "/v1/responses/resp_1/cancel"):
        answer = httpx2.post(served.url + path, json={}, timeout=10)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
