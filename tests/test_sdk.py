"""`from sive import OpenAI, AsyncOpenAI`: the SDK's own clients, with another import."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import openai
import pytest
from sive import AsyncOpenAI, OpenAI

from tests.conftest import clean_environment, until
from tests.lab import upstream
from tests.lab.hosts import refused_url
from tests.lab.upstream import Upstream

HI = [{"role": "user", "content": "Qui es-tu ?"}]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "SIVE_", "HF_", "SNB_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def client(port: int) -> OpenAI:
    """The drop-in, pointed at a host."""
    return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="sk-test")


def test_the_host_answers_as_with_the_plain_sdk() -> None:
    """A healthy host gets the request with the caller's key, and its answer comes back whole."""
    with Upstream(upstream.answers("Je ", "suis ", "là.")) as host, client(host.port) as sdk:
        answer = sdk.chat.completions.create(model="m", messages=HI)
        assert answer.choices[0].message.content == "Je suis là."
        assert answer.model == "m"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
        assert host.seen[0].headers["authorization"] == "Bearer sk-test"


def test_streams_arrive_piece_by_piece_without_what_was_not_asked_for() -> None:
    """Chunks come as they are; the usage that sive asks for itself is not shown."""
    with Upstream(upstream.answers("é", "œ", "—")) as host, client(host.port) as sdk:
        chunks = list(sdk.chat.completions.create(model="m", messages=HI, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "éœ—"
        assert all(chunk.usage is None for chunk in chunks)
        asked = list(
            sdk.chat.completions.create(
                model="m", messages=HI, stream=True, stream_options={"include_usage": True}
            )
        )
        assert asked[-1].usage is not None
        assert asked[-1].usage.completion_tokens == 3


def test_no_host_falls_to_the_cpu() -> None:
    """When nobody listens the CPU answers, and says that it is another voice."""
    with client(1) as sdk:
        raw = sdk.chat.completions.with_raw_response.create(model="m", messages=HI, max_tokens=8)
        assert raw.headers["x-sive-backend"] == "local"
        assert raw.headers["x-sive-degraded"] == "true"
        assert raw.parse().choices[0].message.content
        streamed = list(sdk.chat.completions.create(model="m", messages=HI, max_tokens=8, stream=True))
        assert streamed[0].model_extra["sive"]["degraded"] is True  # type: ignore[index]


@pytest.mark.parametrize(
    "manner", [upstream.resets, upstream.says(502), upstream.says(503), upstream.html(504)]
)
def test_a_broken_host_falls_to_the_cpu(manner: upstream.Manner) -> None:
    """Resets, 502, 503 and 504 are a host that is not there."""
    with Upstream(manner) as host, client(host.port) as sdk:
        answer = sdk.chat.completions.create(model="m", messages=HI, max_tokens=8)
        assert answer.model_extra["sive"]["backend"] == "local"  # type: ignore[index]


def test_a_silent_host_falls_to_the_cpu_within_the_callers_timeout() -> None:
    """The SDK's own timeout is how long a host may stay silent."""
    with Upstream(upstream.stays_silent) as host, client(host.port) as sdk:
        chunks = sdk.with_options(timeout=0.5).chat.completions.create(
            model="m", messages=HI, max_tokens=8, stream=True
        )
        assert next(iter(chunks)).model_extra["sive"]["backend"] == "local"  # type: ignore[index]


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
def test_a_wrong_key_does_not_answer_gpt2(status: int, raised: type[openai.APIStatusError]) -> None:
    """What the caller can mend is the SDK's usual exception, asked once."""
    with Upstream(upstream.says(status)) as host, client(host.port) as sdk:
        with pytest.raises(raised):
            sdk.chat.completions.create(model="m", messages=HI)
        assert len(host.seen) == 1


def test_a_cut_stream_is_carried_on_by_the_cpu() -> None:
    """When the host is gone in the middle the CPU goes on from there, and says that it is another voice."""
    with Upstream(upstream.cuts_after(3)) as host, client(host.port) as sdk:
        chunks = list(sdk.chat.completions.create(model="m", messages=HI, stream=True, max_tokens=9))
    assert "".join(c.choices[0].delta.content or "" for c in chunks).startswith("w0 w1 w2 ")
    assert chunks[-1].choices[0].finish_reason == "length"
    said = chunks[-1].model_extra["sive"]  # type: ignore[index]
    assert (said["backend"], said["degraded"], said["resumed"]) == ("local", True, True)
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_cut_stream_that_nobody_can_carry_on_raises() -> None:
    """Half an answer is an error for the caller, never a clean end: tools are more than one text."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with Upstream(upstream.cuts_after(3)) as host, client(host.port) as sdk:
        stream = sdk.chat.completions.create(model="m", messages=HI, stream=True, tools=tools)  # type: ignore[call-overload]
        with pytest.raises(openai.APIError, match="broke off"):
            list(stream)


def test_with_options_keeps_the_chain() -> None:
    """A copy with other options still falls over."""
    with client(1) as sdk:
        answer = sdk.with_options(max_retries=2, timeout=20).chat.completions.create(
            model="m", messages=HI, max_tokens=8
        )
        assert answer.model_extra["sive"]["backend"] == "local"  # type: ignore[index]


def test_a_stream_left_half_way_stops_the_host() -> None:
    """Closing the stream closes the connection to the host."""
    with Upstream(upstream.talks_forever) as host, client(host.port) as sdk:
        with sdk.chat.completions.create(model="m", messages=HI, stream=True) as stream:
            next(iter(stream))
        until(lambda: host.seen[0].left_at is not None)


def test_other_routes_go_to_the_host_as_they_are() -> None:
    """What the chain does not know is passed on."""
    with Upstream(upstream.says(200, {"object": "list", "data": []})) as host, client(host.port) as sdk:
        assert list(sdk.models.list()) == []
        assert host.seen[0].path == "/v1/models"


def test_without_a_host_the_packaged_models_are_served_here() -> None:
    """No key, no URL, no variables: the philosophers answer in this process."""
    with OpenAI() as sdk:
        answer = sdk.chat.completions.create(model="spinoza", messages=HI)
        assert "Spinoza" in (answer.choices[0].message.content or "")
        with pytest.raises(openai.NotFoundError, match="served are: spinoza"):
            sdk.chat.completions.create(model="hegel", messages=HI)


def test_a_sive_toml_gives_its_models_their_routes(tmp_path: Path) -> None:
    """Configured models take their rungs in order; the file is found as `sive serve` finds it."""
    with Upstream(upstream.resets) as first, Upstream(upstream.answers("second")) as second:
        (tmp_path / "sive.toml").write_text(
            f"""
            [[backend]]
            name = "a"
            url = "{first.url}"
            [[backend]]
            name = "b"
            url = "{second.url}"
            [model.m]
            route = [{{ backend = "a", model = "x" }}, {{ backend = "b", model = "y", degraded = false }}]
            """
        )
        with OpenAI() as sdk:
            answer = sdk.chat.completions.create(model="m", messages=HI)
        assert answer.choices[0].message.content == "second"
        assert answer.model == "m"
        assert second.seen[0].body["model"] == "y"


def test_no_backends_patience_is_longer_than_the_callers_timeout(tmp_path: Path) -> None:
    """Its own first_token_s is for those who have not said how long they wait."""
    with Upstream(upstream.stays_silent) as first, Upstream(upstream.answers("second")) as second:
        (tmp_path / "sive.toml").write_text(
            f"""
            [gateway]
            deadline_s = 20
            [[backend]]
            name = "a"
            url = "{first.url}"
            first_token_s = 600
            [[backend]]
            name = "b"
            url = "{second.url}"
            [model.m]
            route = [{{ backend = "a", model = "x" }}, {{ backend = "b", model = "y", degraded = false }}]
            """
        )
        with OpenAI(timeout=0.5) as sdk:
            answer = sdk.chat.completions.create(model="m", messages=HI)
        assert answer.choices[0].message.content == "second"


def test_what_the_caller_adds_to_the_url_arrives() -> None:
    """default_query and extra_query, as some hosts need them."""
    with Upstream(upstream.answers("ok")) as host, client(host.port) as sdk:
        sdk.with_options(default_query={"api-version": "1"}).chat.completions.create(model="m", messages=HI)
        assert host.seen[0].path == "/v1/chat/completions?api-version=1"


def test_the_models_of_this_process_are_listed() -> None:
    """Where there is no host, the table answers."""
    with OpenAI() as sdk:
        assert [model.id for model in sdk.models.list()] == ["spinoza", "bergson", "kant", "local"]


def test_responses_are_answered_in_this_process() -> None:
    """Whole and streamed, as the CPU's; one model can be looked up, and an unknown one is named."""
    with OpenAI() as sdk:
        answer = sdk.responses.create(model="kant", input="What is duty?", max_output_tokens=12)
        with sdk.responses.stream(model="kant", input="What is duty?") as stream:
            kinds = [event.type for event in stream]
        assert sdk.models.retrieve("kant").id == "kant"
        with pytest.raises(openai.NotFoundError, match="'hegel' does not exist; served are: spinoza"):
            sdk.models.retrieve("hegel")
    assert answer.output_text
    assert kinds[-1] == "response.completed"


def test_what_nobody_in_this_process_can_do_is_said() -> None:
    """An error with a status, not a connection to nowhere that failed."""
    with OpenAI() as sdk:
        with pytest.raises(openai.APIStatusError, match="no backend of 'kant' has /v1/embeddings") as lacking:
            sdk.embeddings.create(model="kant", input="duty")
        with pytest.raises(openai.NotFoundError, match="POST /images/generations: this client has no host"):
            sdk.images.generate(prompt="duty")
    assert lacking.value.status_code == 501


FAILED = {"id": "resp_1", "object": "response", "status": "failed", "error": {"code": "x", "message": "why"}}


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"model": "m", "input": "?"}, 200),
        ({"model": "m", "input": "?"}, 404),
        ({"prompt": {"id": "pmpt_1"}}, 200),
        ({"model": "m", "previous_response_id": "resp_0", "input": []}, 200),
    ],
)
def test_responses_of_a_host_are_its_own_affair(asked: dict[str, object], status: int) -> None:
    """They go there as they are and come back so, failed ones too: only the host knows what they mean."""

    async def replies(exchange: upstream.Exchange) -> None:
        await exchange.json(FAILED, status)

    with Upstream(replies) as host, client(host.port) as sdk:
        if status == 404:
            with pytest.raises(openai.NotFoundError):
                sdk.responses.create(**asked)  # type: ignore[call-overload]
        else:
            answer = sdk.responses.create(**asked)  # type: ignore[call-overload]
            assert (answer.status, answer.error.message) == ("failed", "why")
    assert [one.body for one in host.seen] == [asked]


def test_responses_of_a_model_with_a_route_take_it(tmp_path: Path) -> None:
    """As its chat does: when the backend is gone the CPU answers, and says that it is another voice."""
    (tmp_path / "sive.toml").write_text(
        f'[[backend]]\nname = "pod"\nurl = "{refused_url()}"\n[model.m]\n'
        'route = [{ backend = "pod", model = "m" }, { backend = "local", model = "auto" }]\n'
    )
    with OpenAI(base_url=refused_url(), api_key="x") as sdk:
        answer = sdk.responses.create(model="m", input="Qui es-tu ?", max_output_tokens=8)
        assert answer.model_extra["sive"]["degraded"] is True  # type: ignore[index]
        with pytest.raises(openai.APIConnectionError):
            sdk.responses.create(model="other", input="?")


def test_a_client_without_a_host_may_be_given_one() -> None:
    """Then what the process does not have is asked there."""

    async def replies(exchange: upstream.Exchange) -> None:
        await exchange.json(FAILED)

    with Upstream(replies) as host, OpenAI() as sdk:
        there = sdk.with_options(base_url=f"http://127.0.0.1:{host.port}/v1", api_key="k")
        assert there.responses.retrieve("resp_1").id == "resp_1"
        there.responses.create(model="kant", input="?")
    assert [one.path for one in host.seen] == ["/v1/responses/resp_1", "/v1/responses"]


@pytest.mark.parametrize("model", [["a"], {"a": 1}, 5])
def test_a_model_that_is_no_name_is_told(model: object) -> None:
    """As an error of the request, not of ours."""
    with OpenAI() as sdk, pytest.raises(openai.BadRequestError, match="'model' must be a string"):
        sdk.responses.create(model=model, input="?")  # type: ignore[call-overload]


def test_a_stream_closed_by_another_thread_ends_with_an_error() -> None:
    """Whoever reads it is not left waiting, and does not take it for the end."""
    with Upstream(upstream.stalls) as host, client(host.port) as sdk:
        stream = sdk.chat.completions.create(model="m", messages=HI, stream=True)
        closer = threading.Timer(0.3, stream.close)
        closer.start()
        with pytest.raises((openai.APIError, httpx2.HTTPError, httpx2.StreamError)):
            list(stream)
        closer.join()


def test_event_loops_come_and_go() -> None:
    """One client in many loops keeps nothing of the closed ones."""
    sdk = AsyncOpenAI(base_url="http://127.0.0.1:1/v1", api_key="k")

    async def ask() -> None:
        await sdk.chat.completions.create(model="m", messages=HI, max_tokens=4)

    for _ in range(3):
        asyncio.run(ask())
    assert len(sdk._client._transport._shim._wires) == 1  # type: ignore[attr-defined]


def test_async_and_sync_give_the_same() -> None:
    """AsyncOpenAI streams, falls over, and works in one event loop after another."""

    async def ask(port: int) -> str:
        async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k") as sdk:
            stream = await sdk.chat.completions.create(model="m", messages=HI, stream=True, max_tokens=8)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    with Upstream(upstream.answers("un ", "deux")) as host:
        assert asyncio.run(ask(host.port)) == "un deux"
        assert asyncio.run(ask(host.port)) == "un deux"
    assert asyncio.run(ask(1))


def test_an_async_caller_who_is_cancelled_stops_the_host() -> None:
    """Cancelling the task closes the connection, before the head and in the middle of the stream."""

    async def leave(port: int) -> None:
        async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k") as sdk:

            async def listen() -> None:
                async for _ in await sdk.chat.completions.create(model="m", messages=HI, stream=True):
                    pass

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(listen(), 0.5)

    for manner in (upstream.talks_forever, upstream.stays_silent):
        with Upstream(manner) as host:
            asyncio.run(leave(host.port))
            until(lambda host=host: host.seen[0].left_at is not None)


def test_many_threads_share_one_client() -> None:
    """The private loop serves all threads of a process."""
    said: list[str | None] = []
    with Upstream(upstream.answers("ok")) as host, client(host.port) as sdk:

        def ask() -> None:
            said.append(sdk.chat.completions.create(model="m", messages=HI).choices[0].message.content)

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert said == ["ok"] * 16


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_can_ask_too() -> None:
    """A client made and used before a fork works in the child."""
    with Upstream(upstream.answers("ok")) as host, client(host.port) as sdk:
        assert sdk.chat.completions.create(model="m", messages=HI).choices[0].message.content == "ok"
        child = os.fork()
        if child == 0:
            answer = sdk.chat.completions.create(model="m", messages=HI).choices[0].message.content
            os._exit(0 if answer == "ok" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


ENDS = """
from sive import OpenAI
hi = [{"role": "user", "content": "hi"}]
for _ in OpenAI().chat.completions.create(model="spinoza", messages=hi, stream=True):
    %s
"""


@pytest.mark.parametrize("then", ["pass", "break"])
def test_a_process_may_end_right_after_an_answer(then: str, tmp_path: Path) -> None:
    """Without closing anything, also in the middle of a stream: no abort from the engine's threads."""
    for _ in range(4):
        command = [sys.executable, "-c", ENDS % then]
        ended = subprocess.run(
            command, env=clean_environment(HOME=str(tmp_path)), cwd=tmp_path, capture_output=True, check=False
        )
        assert ended.returncode == 0, ended.stderr.decode()
        assert ended.stderr == b""


def test_a_foreign_http_client_is_refused() -> None:
    """Failover lives in the transport, so another http_client would lose it silently."""
    with pytest.raises(TypeError, match="brings its own http_client"):
        OpenAI(api_key="k", http_client=openai.DefaultHttpxClient())
