"""Gradio's own clients at the gateway, and the gateway beside a real Gradio app: what they see is the same.

``tests/install_callers.sh gradio gradio-client gradio-client-js`` installs them.
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import ROOT, Serve, until
from tests.lab import upstream
from tests.lab.space import APART_S, WORDS
from tests.lab.upstream import Upstream
from tests.test_door_gradio import events, messages
from tests.test_gateway import LOCAL_LAST, routed

CALLERS = ROOT / ".venv-callers"
HERE = Path(__file__).parent / "lab"
LITERAL = "//chat_function"
WHOLE = "".join(WORDS)
REFUSAL = "it is said so"
KEY = "sk-one"
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}

pytestmark = pytest.mark.timeout(300)  # a Gradio app starts in 10 s, on a busy machine in 60

Ask = Callable[..., list[dict[str, Any]]]


def installed(path: Path) -> Path:
    """A program that ``tests/install_callers.sh`` installs."""
    assert path.exists(), f"{path.relative_to(ROOT)} is missing: run tests/install_callers.sh"
    return path


def python_client(url: str, *calls: dict[str, Any], token: str = "") -> list[dict[str, Any]]:
    """Ask with ``gradio_client``."""
    python = installed(CALLERS / "gradio-client/bin/python")
    return _run([str(python), str(HERE / "gradio_callers/ask.py"), url], calls, token)


def js_client(url: str, *calls: dict[str, Any], token: str = "") -> list[dict[str, Any]]:
    """Ask with ``@gradio/client`` on Node."""
    node = shutil.which("node")
    assert node is not None, "node is missing"
    module = installed(CALLERS / "gradio-client-js/node_modules/@gradio/client/dist/index.js")
    return _run([node, str(HERE / "gradio_callers/ask.mjs"), str(module), url], calls, token)


def _run(command: list[str], calls: tuple[dict[str, Any], ...], token: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [*command, *([token] if token else [])],
        input=json.dumps(calls),
        env={**os.environ, **QUIET},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


@pytest.fixture(params=[python_client, js_client], ids=["gradio_client", "@gradio/client"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Each client in turn."""
    client: Ask = request.param
    return client


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Gradio app with the old Space's function."""
    python = installed(CALLERS / "gradio/bin/python")
    output = tmp_path_factory.mktemp("space") / "output.txt"
    for _ in range(5):  # it takes seconds to listen, in which its port may become somebody else's
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with output.open("a") as out:
            command = [str(python), str(HERE / "space.py"), str(port)]
            process = subprocess.Popen(command, env={**os.environ, **QUIET}, stdout=out, stderr=out)
        try:
            until(lambda: process.poll() is not None or _answers(url), 120, "the Gradio app")  # noqa: B023
            if process.poll() is None:
                yield url
                return
        finally:
            process.kill()
            process.wait()
    pytest.fail(output.read_text())


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx2.HTTPError, ValueError):
        return bool(httpx2.get(f"{url}/config", timeout=5).json()["dependencies"])
    return False


async def speaks(exchange: upstream.Exchange) -> None:
    """A backend that says what the real app says, as slowly; ``told`` is refused."""
    if exchange.body["messages"][-1]["content"] == "told":
        await exchange.json({"error": {"message": REFUSAL, "type": "invalid_request_error"}}, 400)
        return
    await exchange.head()
    for word in WORDS:
        await exchange.event(upstream.chunk(exchange, {"content": word}))
        await asyncio.sleep(APART_S)
    await exchange.event(upstream.chunk(exchange, {}, "stop"))
    await exchange.done()


def test_both_clients_call_the_old_function(serve: Serve, ask: Ask) -> None:
    """By the literal name and by the plain one, with arguments by place and by name, with a history."""
    with Upstream(speaks) as host:
        served = serve(routed(host))
        answers = ask(
            served.url,
            {"name": LITERAL, "data": ["Qui ?", []]},
            {"name": "/chat_function", "data": {"message": "Qui ?", "history": [["a", "b"]]}},
            {"name": "/chat_function", "data": {"message": "Qui ?"}},
            {"name": "/nope", "data": ["Qui ?"]},
            {"name": 0, "data": ["Qui ?", []]},
        )
        assert answers[0]["result"] == [WHOLE, [["Qui ?", WHOLE]]]
        assert answers[1]["result"] == [WHOLE, [["a", "b"], ["Qui ?", WHOLE]]]
        assert answers[2]["result"] == [WHOLE, [["Qui ?", WHOLE]]]
        assert "error" in answers[3]
        assert answers[4]["result"] == answers[0]["result"]
        assert "Traceback" not in served.output.read_text()


def test_a_client_that_names_no_function_finds_the_only_one(serve: Serve) -> None:
    """``gradio_client`` then takes the one that is public: the plain name is another name for it."""
    with Upstream(speaks) as host:
        served = serve(routed(host))
        (answer,) = python_client(served.url, {"data": ["Qui ?", []]})
        assert answer["result"][0] == WHOLE


def test_both_clients_see_the_text_grow_as_from_a_real_space(serve: Serve, space: str) -> None:
    """The outputs of a real Gradio app in their order; what comes while nobody reads goes together."""
    call = {"name": LITERAL, "data": ["Qui ?", []]}
    with Upstream(speaks) as host:
        served = serve(routed(host))
        for ask, asked in ((python_client, call), (js_client, {**call, "cancel_after": 99})):
            (ours,), (theirs,) = ask(served.url, asked), ask(space, asked)
            assert ours | {"outputs": []} == theirs | {"outputs": []}
            assert ours["outputs"] == [output for output in theirs["outputs"] if output in ours["outputs"]]
            assert ours["outputs"][-1] == theirs["outputs"][-1] == [WHOLE, [["Qui ?", WHOLE]]]


def test_both_clients_are_told_what_went_wrong(serve: Serve, ask: Ask) -> None:
    """The backend's own refusal, arguments of another kind, and nobody there; as errors, not as answers."""
    with Upstream(speaks) as host:
        served = serve(routed(host))
        told, wrong = ask(
            served.url,
            {"name": LITERAL, "data": ["told", []]},
            {"name": LITERAL, "data": ["x", "not a history"]},
        )
        assert told["error"] == REFUSAL
        assert "history: it must be [[question, answer], ...]" in wrong["error"]
        host.manner = upstream.says(503)
        (nobody,) = ask(served.url, {"name": LITERAL, "data": ["x", []]})
        assert "no backend could answer" in nobody["error"]


def test_both_clients_hear_an_answer_that_changes_its_voice(serve: Serve, ask: Ask) -> None:
    """The text goes on when its backend dies."""
    with Upstream(upstream.cuts_after(3, with_reset=True)) as host:
        served = serve(routed(host, last=LOCAL_LAST))
        (answer,) = ask(served.url, {"name": LITERAL, "data": ["Qui ?", []]})
        text, ((question, said),) = answer["result"]
        assert (question, said) == ("Qui ?", text)
        assert text.startswith("w0 w1 w2 ")
        assert len(text) > len("w0 w1 w2 ")


def test_both_clients_cancel(serve: Serve, ask: Ask) -> None:
    """With keys on too, though one of them sends none when it cancels."""
    with Upstream(upstream.talks_forever) as host:
        served = serve(routed(host), SIVE_API_KEYS=KEY)
        call = {"name": LITERAL, "data": ["Qui ?", []], "cancel_after": 2}
        (answer,) = ask(served.url, call, token=KEY)
        assert len(answer["outputs"]) >= 2
        until(lambda: host.seen[0].left_at, what="the upstream connection closed")
        until(lambda: "499" in served.output.read_text(), what="the line of the request")


def test_both_clients_bring_their_token(serve: Serve, ask: Ask) -> None:
    """As the gateway's key: a wrong one is a wrong one."""
    with Upstream(speaks) as host:
        served = serve(routed(host), SIVE_API_KEYS=KEY)
        call = {"name": LITERAL, "data": ["Qui ?", []]}
        assert ask(served.url, call, token=KEY)[0]["result"][0] == WHOLE
        assert "error" in ask(served.url, call, token=KEY + "x")[0]
        assert host.seen[0].headers.keys().isdisjoint({"authorization", "x-hf-authorization"})


def both_streams(url: str, data: list[Any]) -> tuple[list[dict[str, Any]], list[tuple[str, Any]]]:
    """A session's messages, and a call's own events, for the same call."""
    api = f"{url}/gradio_api"
    asked = {"data": data, "fn_index": 0, "session_hash": "raw"}
    with httpx2.Client(timeout=30) as client:
        assert client.post(f"{api}/queue/join", json=asked).status_code == 200
        session = messages(client.get(f"{api}/queue/data", params={"session_hash": "raw"}).text)
        event_id = client.post(f"{api}/call/chat_function", json={"data": data}).json()["event_id"]
        return session, events(client.get(f"{api}/call/chat_function/{event_id}").text)


@pytest.mark.parametrize("message", ["Qui ?", "told"])
def test_the_streams_are_a_real_spaces(serve: Serve, space: str, message: str) -> None:
    """The same messages in the same order with the same keys, and in the end the same outputs or error."""
    with Upstream(speaks) as host:
        served = serve(routed(host))
        (session, call), (real_session, real_call) = (
            both_streams(url, [message, []]) for url in (served.url, space)
        )
    ours, theirs = ({one["msg"]: one for one in said} for said in (session, real_session))
    assert list(ours) == list(theirs)
    for msg, one in ours.items():
        assert one.keys() == theirs[msg].keys()
        assert one.get("success") == theirs[msg].get("success")
    if message == "told":
        assert call == real_call
        assert ours["process_completed"]["output"] == theirs["process_completed"]["output"] == call[0][1]
        return
    assert call == [event for event in real_call if event in call]
    assert call[-1] == real_call[-1]
    for msg in ("process_generating", "process_completed"):
        assert ours[msg]["output"].keys() == theirs[msg]["output"].keys() | {"sive"}
    assert ours["process_completed"]["output"]["data"] == theirs["process_completed"]["output"]["data"]


def test_what_is_described_is_what_a_real_space_describes(serve: Serve, space: str) -> None:
    """No key of ``/config`` or ``/info`` is invented, and the function reads the same."""
    served = serve()
    ours, theirs = (httpx2.get(f"{url}/config", timeout=10).json() for url in (served.url, space))
    assert ours.keys() <= theirs.keys()
    assert {ours[key] == theirs[key] for key in ("version", "api_prefix", "protocol")} == {True}
    assert ours["dependencies"][0].keys() <= theirs["dependencies"][0].keys()
    assert ours["components"][0].keys() <= theirs["components"][0].keys()
    ours, theirs = (httpx2.get(f"{url}/gradio_api/info", timeout=10).json() for url in (served.url, space))
    mine, real = ours["named_endpoints"][LITERAL], theirs["named_endpoints"][LITERAL]
    for part in ("parameters", "returns"):
        for one, other in zip(mine[part], real[part], strict=True):
            assert one.keys() <= other.keys()
            assert {key: one[key] for key in ("label", "type", "component")} == {
                key: other[key] for key in ("label", "type", "component")
            }


def test_unknown_calls_and_sessions_are_a_real_spaces(serve: Serve, space: str) -> None:
    """The same last words, byte for byte; ours then end cleanly, where a real app breaks off."""
    served = serve()
    for path in ("/gradio_api/queue/data?session_hash=nope", "/gradio_api/call/chat_function/nope"):
        texts = []
        for url in (served.url, space):
            text = ""
            with (
                contextlib.suppress(httpx2.RemoteProtocolError),
                httpx2.stream("GET", url + path, timeout=10) as answer,
            ):
                for piece in answer.iter_text():
                    text += piece
            texts.append(text)
        assert texts[0] == texts[1]
        assert httpx2.get(served.url + path, timeout=10).status_code == 200
