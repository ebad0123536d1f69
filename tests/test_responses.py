"""Responses where no backend has them: made of chat completions, so that all that protects those does."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from tests.conftest import Serve, Served, until
from tests.lab import upstream
from tests.lab.endpoints import by_path, chats, responds
from tests.lab.hosts import Hosts
from tests.lab.upstream import Upstream, answers, chunk, cuts_after, says
from tests.test_endpoints import ask, events
from tests.test_gateway import LOCAL_LAST, routed

EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Hosts that speak what a test needs."""
    with Hosts() as made:
        yield made


@pytest.fixture
def sdk(serve: Serve, hosts: Hosts) -> Iterator[tuple[openai.OpenAI, Upstream]]:
    """The SDK in front of a gateway in front of a host that only chats."""
    host = hosts.add(chats("Deus ", "sive ", "Natura"))
    served = serve(routed(host) + 'system_prompt = "You are Spinoza."\n')
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        yield client, host


def ends_with(finish_reason: str) -> upstream.Manner:
    """Streams one word and an end for another reason than that all is said."""

    async def manner(exchange: upstream.Exchange) -> None:
        await exchange.head()
        await exchange.event(chunk(exchange, {"content": "one"}))
        await exchange.event(chunk(exchange, {}, finish_reason))
        await exchange.done()

    return by_path({"/chat/completions": manner})


def test_the_sdk_gets_a_response(sdk: tuple[openai.OpenAI, Upstream]) -> None:
    """One object: text, usage, who spoke, what was asked; the request became a chat."""
    client, host = sdk
    answer = client.responses.create(
        model="m",
        instructions="Be brief.",
        input=[
            {"role": "user", "content": "hi"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ho"}]},  # type: ignore[list-item]
            {"role": "developer", "content": [{"type": "input_text", "text": "go on"}]},
        ],
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        metadata={"who": "me"},
    )
    assert (answer.output_text, answer.status, answer.model) == ("Deus sive Natura", "completed", "m")
    assert (answer.instructions, answer.metadata, answer.temperature) == ("Be brief.", {"who": "me"}, 0.5)
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 3)
    assert answer.model_extra is not None
    assert answer.model_extra["sive"]["backend"] == "b0"
    assert [seen.path for seen in host.seen] == ["/v1/responses", "/v1/chat/completions"]
    body = host.seen[1].body
    assert [(one["role"], one["content"]) for one in body["messages"]] == [
        ("system", "Be brief."),
        ("user", "hi"),
        ("assistant", "ho"),
        ("system", "go on"),
    ]
    assert (body["max_tokens"], body["temperature"], body["top_p"]) == (9, 0.5, 0.9)
    assert "metadata" not in body
    client.responses.create(model="m", input="hi")
    assert host.seen[2].body["messages"][0] == {"role": "system", "content": "You are Spinoza."}


def test_the_sdk_gets_the_events_of_a_response(sdk: tuple[openai.OpenAI, Upstream]) -> None:
    """In their order, counted, and such that the SDK's own accumulator makes the response of them."""
    client, _ = sdk
    told = list(client.responses.create(model="m", input="hi", stream=True))
    kinds = [one.type for one in told]
    assert list(dict.fromkeys(kinds)) == EVENTS
    assert [one.sequence_number for one in told] == list(range(len(told)))
    with client.responses.stream(model="m", input="hi") as stream:
        assert [one.delta for one in stream if one.type == "response.output_text.delta"] == [
            "Deus ",
            "sive ",
            "Natura",
        ]
        whole = stream.get_final_response()
    assert (whole.output_text, whole.model) == ("Deus sive Natura", "m")
    assert whole.usage is not None
    assert whole.usage.total_tokens == 10


def test_an_answer_that_reached_its_limit_is_incomplete(serve: Serve, hosts: Hosts) -> None:
    """finish_reason "length" is max_output_tokens, streamed and in one piece."""
    served = serve(routed(hosts.add(ends_with("length"))))
    whole = ask(served, "responses").json()
    assert (whole["status"], whole["incomplete_details"]["reason"]) == ("incomplete", "max_output_tokens")
    told = events(ask(served, "responses", stream=True))
    assert told[-1]["type"] == "response.incomplete"
    assert told[-1]["response"]["output"][0]["content"][0]["text"] == "one"


def test_a_cut_answer_is_carried_on(serve: Serve, hosts: Hosts) -> None:
    """The next rung goes on with the next word, in the same response; the caller sees one stream."""
    first = hosts.add(by_path({"/chat/completions": cuts_after(3)}))
    second = hosts.add(by_path({"/chat/completions": answers("and ", "more")}))
    served = serve(routed(first, second).replace('name = "b1"', 'name = "b1"\nresume = "text"'))
    told = events(ask(served, "responses", stream=True))
    assert told[-1]["type"] == "response.completed"
    assert len({one["response"]["id"] for one in told if "response" in one}) == 1
    text = "".join(one["delta"] for one in told if one["type"] == "response.output_text.delta")
    assert text == "w0 w1 w2 and more"
    assert told[-1]["response"]["output"][0]["content"][0]["text"] == text
    assert told[-1]["response"]["sive"]["resumed"] is True
    whole = ask(served, "responses").json()  # nothing of it was shown: it begins anew
    assert whole["output"][0]["content"][0]["text"] == "and more"


def test_what_nobody_carries_on_is_a_failed_response(serve: Serve, hosts: Hosts) -> None:
    """With the text so far, and an event of which the SDK makes an exception."""
    host = hosts.add(by_path({"/chat/completions": cuts_after(2)}))
    served = serve(routed(host))
    told = events(ask(served, "responses", stream=True))
    assert [one["type"] for one in told][-2:] == ["response.failed", "error"]
    assert [one["sequence_number"] for one in told] == list(range(len(told)))
    failed = told[-2]["response"]
    assert (failed["id"], failed["status"]) == (told[0]["response"]["id"], "failed")
    assert failed["output"][0]["content"][0]["text"] == "w0 w1 "
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.responses.create(model="m", input="hi", stream=True)
        with pytest.raises(openai.APIError, match="broke off"):
            list(stream)


def test_the_cpu_answers_when_the_rung_that_has_responses_is_gone(serve: Serve, hosts: Hosts) -> None:
    """A route may mix both kinds: who passes through comes first, who only chats stands in."""
    host = hosts.add(by_path({"/responses": responds("a")}))
    served = serve(routed(host, last=LOCAL_LAST))
    assert ask(served, "responses").headers["x-sive-backend"] == "b0"
    host.manner = says(503)
    for stream in (False, True):
        answer = ask(served, "responses", stream=stream)
        assert answer.headers["x-sive-backend"] == "local"
        assert answer.headers["x-sive-degraded"] == "true"
    assert events(answer)[-1]["type"] in ("response.completed", "response.incomplete")
    assert events(answer)[-1]["response"]["model"] == "sive-embedded"


@pytest.mark.parametrize("choice", [{"message": None}, {"message": "hi"}, {"index": "0", "message": {}}])
def test_a_chat_of_another_shape_is_the_next_rungs(choice: Any, serve: Serve, hosts: Hosts) -> None:
    """Whatever is wrong with it, nothing of it is believed."""
    odd = {"id": "x", "choices": [{"index": 0, "finish_reason": "stop", **choice}]}
    first = hosts.add(by_path({"/chat/completions": says(200, odd)}))
    served = serve(routed(first, hosts.add(chats("a"))) + "guard_json = false\n")
    answer = ask(served, "responses")
    assert (answer.status_code, answer.headers["x-sive-backend"]) == (200, "b1")
    assert answer.json()["output"][0]["content"][0]["text"] == "a"


def test_usage_of_another_shape_is_no_usage(serve: Serve, hosts: Hosts) -> None:
    """The answer is one all the same."""

    async def counts(exchange: upstream.Exchange) -> None:
        usage = {"prompt_tokens": 1, "prompt_tokens_details": [1], "completion_tokens_details": "none"}
        await exchange.head()
        await exchange.event(chunk(exchange, {"content": "one"}) | {"usage": usage})
        await exchange.event(chunk(exchange, {}, "stop"))
        await exchange.done()

    served = serve(routed(hosts.add(by_path({"/chat/completions": counts}))))
    for stream in (True, False):
        answer = ask(served, "responses", stream=stream)
        said = events(answer)[-1]["response"] if stream else answer.json()
        assert said["output"][0]["content"][0]["text"] == "one"
        assert said["usage"]["input_tokens_details"]["cached_tokens"] == 0


def test_what_is_more_than_text_is_named(serve: Serve, hosts: Hosts) -> None:
    """Where no rung has responses, a 501 names the field; where one has, it is the rung's."""
    config = routed(hosts.add(chats("a")), hosts.add(by_path({"/responses": responds("a")})))
    served = serve(config + '[model.chats]\nroute = [{ backend = "b0", model = "x" }]\n')
    image = {"type": "input_image", "image_url": "data:,"}
    call: dict[str, Any] = {"type": "function_call_output", "call_id": "c", "output": "1"}
    for param, body in {
        "tools": {"tools": [{"type": "function", "name": "f", "parameters": {}}]},
        "previous_response_id": {"previous_response_id": "resp_1"},
        "background": {"background": True},
        "conversation": {"conversation": "conv_1"},
        "text": {"text": {"format": {"type": "json_object"}}},
        "include": {"include": ["message.output_text.logprobs"]},
        "input[0]": {"input": [call]},
        "input[0].content": {"input": [{"role": "user", "content": [image]}]},
        "input[0].role": {"input": [{"role": "critic", "content": "no"}]},
    }.items():
        answer = ask(served, "responses", **{"model": "chats"} | body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (501, param)
        assert param in answer.json()["error"]["message"]
        assert ask(served, "responses", **body).headers["x-sive-backend"] == "b1"


def test_a_wrong_request_is_the_callers(serve: Serve) -> None:
    """Like anywhere: the field by its name, and nobody is asked."""
    served = serve()
    for param, value in {"input": None, "max_output_tokens": 0, "model": "other", "stream": 1}.items():
        answer = ask(served, "responses", **{"model": "local", param: value})
        assert answer.status_code == (404 if param == "model" else 400)
        assert answer.json()["error"]["param"] == param


def test_fields_that_mean_nothing_here_are_no_reason_to_refuse(
    sdk: tuple[openai.OpenAI, Upstream],
) -> None:
    """Defaults spelled out, and what only concerns storing; nothing is stored, and the answer says so."""
    client, host = sdk
    answer = client.responses.create(
        model="m",
        input="hi",
        store=True,
        tools=[],
        tool_choice="auto",
        text={"format": {"type": "text"}},
        truncation="disabled",
        parallel_tool_calls=True,
        background=False,
        extra_body={"seed": 7},
    )
    assert answer.model_extra is not None
    assert answer.model_extra["store"] is False
    assert host.seen[-1].body["seed"] == 7
    assert "truncation" not in host.seen[-1].body


def test_a_waiting_stream_shows_life_and_can_be_cancelled(serve: Serve, hosts: Hosts) -> None:
    """Comments before the first token, and the end of a cancelled request is the protocol's own."""
    host = hosts.add(by_path({"/chat/completions": upstream.says_head_only}))
    served: Served = serve(routed(host, more="[gateway]\nhead_s = 0.2\n"))
    asked = {"model": "m", "input": "hi", "stream": True}
    headers = {"x-request-id": "mine"}
    with httpx2.stream(
        "POST", f"{served.url}/v1/responses", json=asked, headers=headers, timeout=30
    ) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith(": waiting")
        assert httpx2.post(f"{served.url}/v1/requests/mine/cancel", timeout=10).json()["cancelled"] == 1
        rest = list(lines)
    assert "event: response.failed" in rest
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "request_cancelled"
    until(lambda: host.seen[-1].left_at is not None, what="the abort")
