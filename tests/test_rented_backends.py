"""Replicate and RunPod's queue as rungs: what a job's state means, and what becomes of one nobody reads."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sive import farewell, sse
from sive.backends import Backend
from sive.backends.conversation import conversation
from sive.backends.make import make_backend
from sive.backends.pieces import TextChunks
from sive.backends.replicate import Reading, inputs_of
from sive.config import BackendSettings
from sive.health import Health
from sive.policy import Clocks, Policy
from sive.routes import Rung
from sive.wires import WireRequest
from sive.wires.aiohttp import AiohttpWire
from sive.wires.http import HttpWire
from sive.wires.httpx import HttpxWire

from tests.lab.asking import PATIENT, ask
from tests.lab.callers import Listener, seen
from tests.lab.hosts import Hosts
from tests.lab.rented import TEXT, Replicate, RunpodQueue
from tests.lab.upstream import Exchange, Upstream, says
from tests.test_gradio_backend import TURNS

BOOTS = "its model starts (a cold boot)"


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Hosts on a loop that the tests of this file share."""
    with Hosts() as hosts:
        yield hosts


def replicate(host: Upstream, **settings: Any) -> Backend:
    """A backend that asks this host."""
    url = f"http://127.0.0.1:{host.port}"
    return make_backend(BackendSettings(name="r8", kind="replicate", url=url, api_key="r8_x", **settings))


def runpod(host: Upstream) -> Backend:
    """A backend that asks this host's queue."""
    url = f"http://127.0.0.1:{host.port}/v2/abc"
    return make_backend(BackendSettings(name="rp", kind="runpod-queue", url=url))


# Replicate


@pytest.mark.parametrize(
    ("settings", "path", "more"),
    [
        ({}, "/v1/models/meta/llama/predictions", {}),
        ({"deployment": "me/spinoza"}, "/v1/deployments/me/spinoza/predictions", {}),
        ({"version": "abc123"}, "/v1/predictions", {"version": "abc123"}),
    ],
)
def test_a_prediction_is_one_of_a_model_a_deployment_or_a_version(
    settings: dict[str, Any], path: str, more: dict[str, Any], hosts: Hosts
) -> None:
    """With constants of the configuration, and an end that Replicate itself puts to it."""
    host = hosts.add(Replicate())
    heard = ask(replicate(host, input={"top_k": 5}, **settings), named="meta/llama", temperature=0.5)
    assert heard.text == TEXT
    created = host.seen[0]
    assert created.path == path
    inputs = {"prompt": "hi", "temperature": 0.5, "top_k": 5}
    assert created.body == {"input": inputs, "stream": True, **more}
    assert created.headers["cancel-after"] == "10m"


@pytest.mark.parametrize("status", ["failed", "canceled", "aborted"])
def test_a_prediction_that_ends_at_once_says_how(status: str, hosts: Hosts) -> None:
    """``aborted``: its deadline came before it began."""
    heard = ask(replicate(hosts.add(Replicate(status=status))))
    said = {"failed": "failed", "canceled": "was cancelled", "aborted": "was given up before it began"}
    assert heard.failures == [(f"prediction_{status}", f"the prediction {said[status]}")]


@pytest.mark.parametrize("reason", ["error", "canceled", "aborted"])
def test_a_stream_that_ends_in_a_failure_never_ends_well(reason: str, hosts: Hosts) -> None:
    """Its text was shown: the end is an error event; without text it is the next rung's turn."""
    heard = ask(replicate(hosts.add(Replicate(ends=reason))))
    assert (heard.text, heard.is_done) == (TEXT, False)
    assert "predict.py" not in heard.body.decode()
    heard = ask(replicate(hosts.add(Replicate(ends=reason, says=()))))
    assert heard.status == 503
    assert heard.failures[0][1].startswith("the prediction ")


def test_a_cold_boot_is_told_while_it_is_waited_for_and_when_it_took_too_long(hosts: Hosts) -> None:
    """In the comments of a stream, and in the reason; the prediction is not left behind."""
    host = Replicate(boots=True)
    clocks = Clocks(first_token_s=0.6, head_s=0.2)
    heard = ask(replicate(hosts.add(host)), clocks=clocks)
    assert f": waiting; r8: {BOOTS}".encode() in heard.body
    [(reason, message)] = heard.failures
    assert (reason, message.startswith("no first token within 0.6"), message.endswith(BOOTS)) == (
        "silent",
        True,
        True,
    )
    assert host.cancelled == ["p0"]


def test_its_own_patience_counts_where_a_host_has_one(hosts: Hosts) -> None:
    """A model that boots may take longer than a pod."""
    heard = ask(
        replicate(hosts.add(Replicate(boots=True)), first_token_s=0.4), clocks=Clocks(first_token_s=9)
    )
    assert heard.failures[0][1].startswith("no first token within 0.4")


def test_a_prediction_that_was_read_to_its_end_is_not_cancelled(hosts: Hosts) -> None:
    """There is nothing left to stop."""
    host = Replicate()
    upstream = hosts.add(host)
    assert ask(replicate(upstream)).is_done
    assert ask(replicate(upstream), stream=False).status == 200
    assert host.cancelled == []


@pytest.mark.parametrize("wire", [HttpWire, AiohttpWire, HttpxWire])
def test_whoever_leaves_before_its_first_word_cancels_it_too(wire: Any, hosts: Hosts) -> None:
    """Nobody pays for what nobody reads, whichever way it was asked."""
    host = Replicate(boots=True)
    upstream = hosts.add(host)

    async def is_asked(_: Listener) -> None:
        await seen(lambda: any("/streams/" in one.path for one in upstream.seen))

    ask(replicate(upstream), until=is_asked, wire=wire)
    assert host.cancelled == ["p0"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "how", [{"drops": True}, {"refuses": 404}, {"refuses": 502}, {"stream_at": "http://other.example"}]
)
def test_what_nobody_can_read_is_cancelled(how: dict[str, Any], stream: bool, hosts: Hosts) -> None:
    """A reply that ends is not yet a prediction that did."""
    host = Replicate(**how)
    upstream = hosts.add(host)
    heard = ask(replicate(upstream), stream=stream)
    assert not heard.is_done
    created = [number for number, one in enumerate(upstream.seen) if one.path.endswith("/predictions")]
    assert host.cancelled == [f"p{number}" for number in created]


def test_a_farewell_is_forgotten_with_its_loop() -> None:
    """One that closed before the reply came, and whose timer never rings."""

    class Deaf:
        """A wire of one request, whose reply never comes."""

        def send(self, request: WireRequest, receiver: object) -> "Deaf":
            """Take it; what receives stays with it."""
            return self

    async def leaves() -> None:
        farewell.say(wire := Deaf(), WireRequest("POST", "http://x"))
        sent.append(weakref.ref(wire))

    sent: list[weakref.ref[Deaf]] = []
    for _ in range(3):
        asyncio.run(leaves())
    gc.collect()
    assert [one() is None for one in sent] == [True, True, False]


def test_a_model_without_events_is_waited_for_whole(hosts: Hosts) -> None:
    """Said in the configuration; else that is the reason."""
    host = hosts.add(Replicate(status="succeeded", streams=False))
    heard = ask(replicate(host, streaming=False))
    assert (heard.text, heard.deltas, heard.is_done) == (TEXT, [TEXT], True)
    assert host.seen[0].headers["prefer"] == "wait=60"
    silent = Replicate(streams=False)
    heard = ask(replicate(hosts.add(silent)))
    assert heard.failures[0][0] == "no_stream"
    assert silent.cancelled == ["p0"]


@pytest.mark.parametrize(("status", "reason"), [("starting", "cold_boot"), ("processing", "too_slow")])
def test_what_did_not_end_in_time_is_cancelled(status: str, reason: str, hosts: Hosts) -> None:
    """And a cold boot rests as long as it takes."""
    host, health = Replicate(status=status, streams=False), Health(Policy(PATIENT))
    heard = ask(replicate(hosts.add(host), streaming=False), health=health)
    assert heard.failures[0][0] == reason
    assert host.cancelled == ["p0"]
    assert list(health.open_keys()) == ([("r8", "up")] if reason == "cold_boot" else [])


@pytest.mark.parametrize(
    ("host", "settings", "reason"),
    [
        (Replicate(streams=False), {"streaming": False}, "cold_boot"),
        (Replicate(streams=False), {}, "no_stream"),
        (Replicate(boots=True), {"first_token_s": 0.3}, "silent"),
    ],
)
def test_a_cold_model_lets_a_warm_one_of_the_same_host_answer(
    host: Replicate, settings: dict[str, Any], reason: str, hosts: Hosts
) -> None:
    """What is said of one model is not true of the others there."""
    backend, health = replicate(hosts.add(host), **settings), Health(Policy(PATIENT))
    heard = ask(backend, health=health, named="o/cold")
    assert heard.failures[0][0] == reason
    ended_at = heard.report.ended_at or 0.0
    assert health.rest(Rung(backend, "o/cold", "test"), ended_at) is not None
    assert health.rest(Rung(backend, "o/warm", "test"), ended_at) is None


@pytest.mark.parametrize("output", [None, {"text": "inside"}, ["a", {"text": "inside"}], 5])
def test_an_output_that_is_no_text_is_no_answer(output: Any, hosts: Hosts) -> None:
    """However well the prediction ended."""
    host = hosts.add(says(201, {"id": "p0", "status": "succeeded", "output": output}))
    for stream in (True, False):
        heard = ask(replicate(host, streaming=False), stream=stream, guard_json=stream)
        assert heard.failures == [("no_answer", "the prediction's output is no text")]
        assert heard.status == 503


def test_an_empty_output_is_an_answer(hosts: Hosts) -> None:
    """A model may have nothing to say, or to add."""
    host = hosts.add(says(201, {"id": "p0", "status": "succeeded", "output": []}))
    heard = ask(replicate(host, streaming=False))
    assert (heard.text, heard.is_done, heard.failures) == ("", True, [])


def test_events_that_are_refused_are_no_fault_of_the_callers(hosts: Hosts) -> None:
    """The prediction was taken, and then there is no such way to read it."""
    taken = Replicate()

    async def refuses_events(exchange: Exchange) -> None:
        if "/streams/" in exchange.seen.path:
            await exchange.json({"detail": "Method not allowed."}, 405)
        else:
            await taken(exchange)

    heard = ask(replicate(hosts.add(refuses_events)))
    assert (heard.status, heard.failures[0]) == (503, ("http_405", "HTTP 405: it refused the call"))


def test_a_throttled_host_says_in_words_when_to_come_again(hosts: Hosts) -> None:
    """Replicate has no Retry-After header."""
    throttled = {"detail": "Request was throttled. Your rate limit resets in ~30s.", "status": 429}
    heard = ask(replicate(hosts.add(says(429, throttled))))
    assert heard.headers["retry-after"] == "30"


def test_inputs_that_a_model_does_not_take_are_no_fault_of_the_callers(hosts: Hosts) -> None:
    """Its 422 is about our inputs, so the next rung is asked."""
    heard = ask(replicate(hosts.add(says(422, {"detail": "input.x is required"}))))
    assert heard.failures[0][0] == "http_422"
    assert heard.status == 503


def test_a_conversation_becomes_the_inputs_of_its_template() -> None:
    """Prompt and system prompt, ChatML, or messages."""
    said = conversation({"model": "m", "messages": TURNS, "stop": ["\n", "END"]})
    inputs, dropped = inputs_of(said, "inputs")
    assert inputs == {
        "prompt": "User: q\n\nAssistant: a\n\nUser: Qui ?\n\nAssistant:",
        "system_prompt": "Sois bref.",
        "stop_sequences": "\n,END",
    }
    assert dropped == []
    chatml, _ = inputs_of(said, "chatml")
    assert chatml["prompt"].startswith("<|im_start|>system\nSois bref.<|im_end|>\n<|im_start|>user\nq")
    assert chatml["prompt"].endswith("<|im_start|>user\nQui ?<|im_end|>\n<|im_start|>assistant\n")
    assert chatml["stop_sequences"] == "\n,END,<|im_end|>"
    begun = conversation({"model": "m", "messages": [*TURNS, {"role": "assistant", "content": "Moi"}]})
    assert inputs_of(begun, "chatml")[0]["prompt"].endswith("<|im_start|>assistant\nMoi")
    assert inputs_of(begun, "inputs")[1] == ["messages.prefill"]
    messages, _ = inputs_of(said, "messages")
    assert messages["messages"] == TURNS
    assert inputs_of(conversation({"model": "m", "prompt": "p", "stop": ["a,b"]}), "inputs") == (
        {"prompt": "p"},
        ["stop"],
    )


def test_every_offset_may_be_where_a_read_ends() -> None:
    """Also between the lines of a piece that has some."""
    said = "event: output\nid: 1:0\ndata: œ\ndata: \ndata:  🙂\n\nevent: done\ndata: {}\n\n".encode()
    for at in range(1, len(said)):
        reading = Reading(TextChunks("completions", "m"))
        events = sse.split(reading(said[:at]) + reading(said[at:]))
        chunks = [data.json() for one in events if (data := sse.read(one)) and not data.is_done]
        assert [one["choices"][0]["text"] for one in chunks] == ["œ\n\n 🙂", ""]


# RunPod's queue


@pytest.mark.parametrize(
    ("status", "reason", "rests", "cancelled"),
    [
        ("IN_QUEUE", "cold_start", True, ["j1"]),
        ("IN_PROGRESS", "too_slow", False, ["j1"]),
        ("FAILED", "job_failed", False, []),
        ("TIMED_OUT", "job_failed", False, []),
    ],
)
def test_a_job_that_gives_no_answer_says_why(
    status: str, reason: str, rests: bool, cancelled: list[str], hosts: Hosts
) -> None:
    """One that still waits is taken out of the queue, and its endpoint rests while workers start."""
    host, health = RunpodQueue(status), Health(Policy(PATIENT))
    heard = ask(runpod(hosts.add(host)), health=health)
    assert (heard.failures[0][0], host.cancelled) == (reason, cancelled)
    assert (("rp", "") in health.open_keys()) == rests


REFUSED = {
    "message": "temperature must be non-negative",
    "type": "BadRequestError",
    "param": None,
    "code": 400,
}


@pytest.mark.parametrize("said", [{"error": REFUSED}, {"object": "error", **REFUSED}])
@pytest.mark.parametrize("stream", [True, False])
def test_what_the_worker_refuses_is_the_callers_answer(said: Any, stream: bool, hosts: Hosts) -> None:
    """RunPod calls such a job complete; its endpoint stays in the route however often that comes."""
    host, health = hosts.add(RunpodQueue(refuses=said)), Health(Policy(PATIENT))
    for _ in range(4):
        heard = ask(runpod(host), stream=stream, health=health)
        assert (heard.status, heard.json, heard.failures) == (400, {"error": REFUSED}, [])
    assert health.open_keys() == {}


def test_a_request_too_long_for_the_worker_goes_to_one_who_reads_more(hosts: Hosts) -> None:
    """As where the engine says so itself."""
    said = {"object": "error", "message": "This model's maximum context length is 4096 tokens.", "code": 400}
    spare = runpod(hosts.add(RunpodQueue()))
    heard = ask(runpod(hosts.add(RunpodQueue(refuses=said))), replace(spare, name="spare"))
    assert (heard.text, heard.failures[0][0]) == (TEXT, "context_length")


def test_a_worker_that_broke_is_no_refusal(hosts: Hosts) -> None:
    """Its 5xx is nobody's answer."""
    said = {"error": {"message": "CUDA: /src/worker.py", "type": "InternalServerError", "code": 500}}
    heard = ask(runpod(hosts.add(RunpodQueue(refuses=said))))
    assert heard.status == 503
    assert "CUDA" not in heard.body.decode()


def test_an_endpoint_without_workers_is_judged_as_one(hosts: Hosts) -> None:
    """A 400 in RunPod's words for it: that counts against the endpoint, and is nobody's wrong request."""
    heard = ask(runpod(hosts.add(says(400, {"error": "no workers available"}))))
    assert (heard.status, heard.failures) == (503, [("http_400", "HTTP 400")])


def test_a_job_asks_as_runpods_worker_wants_it(hosts: Hosts) -> None:
    """OpenAI's request inside, nothing about streaming, and an end that RunPod itself puts to it."""
    host = hosts.add(RunpodQueue())
    assert ask(runpod(host)).text == TEXT
    [request] = host.seen
    assert request.path == "/v2/abc/runsync?wait=60000"
    assert request.body["input"]["openai_route"] == "/v1/chat/completions"
    asked = request.body["input"]["openai_input"]
    assert asked == {"model": "up", "messages": [{"role": "user", "content": "hi"}]}
    assert request.body["policy"] == {"executionTimeout": 120_000, "ttl": 180_000}
