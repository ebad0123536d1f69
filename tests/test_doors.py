"""The REST doors of the older services: a real `sive serve` over real sockets."""

import json
import socket
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sive.config import load
from sive_serve.gateway import Gateway

from tests.conftest import Serve, Served, until
from tests.lab import upstream
from tests.lab.upstream import Upstream
from tests.test_gateway import LOCAL_LAST, cli, routed


def post(served: Served, path: str, asked: Any, **headers: str) -> httpx2.Response:
    """POST JSON, or bytes as they are."""
    content = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    return httpx2.post(served.url + path, content=content, headers=headers, timeout=30)


def asked(host: Upstream) -> list[Any]:
    """The messages of the last request, after the model's own."""
    return [message for message in host.seen[-1].body["messages"] if message["role"] != "system"]


def test_a_prompt_gets_a_result(serve: Serve) -> None:
    """``/api/infer`` as the first service had it, with who spoke, and its ``/health``."""
    with Upstream(upstream.answers("Deus ", "sive — é")) as host:
        served = serve(routed(host))
        answer = post(
            served, "/api/infer", {"prompt": "Qui ?", "max_new_tokens": 7}, **{"x-request-id": "r1"}
        )
        assert (answer.status_code, answer.json()) == (200, {"result": "Deus sive — é"})
        assert answer.headers["x-request-id"] == "r1"
        assert (answer.headers["x-sive-backend"], answer.headers["x-sive-degraded"]) == ("b0", "false")
        assert asked(host) == [{"role": "user", "content": "Qui ?"}]
        assert host.seen[-1].body["max_tokens"] == 7
        assert served.get("/health").json() == {"status": "ok"}
        until(lambda: "r1 m b0 200 " in served.output.read_text(), what="the line of the request")
        assert 'sive_requests_total{backend="b0",model="m",status="200"} 1.0' in served.get("/metrics").text


def test_a_philosopher_answers_and_the_history_grows(serve: Serve) -> None:
    """``/chat`` in both forms of a history, the philosopher in the body, in the path, or nowhere."""
    with Upstream(upstream.answers("sive")) as host:
        other = '[model.other]\nroute = [{ backend = "b0", model = "theirs" }]\n'
        served = serve(routed(host) + other)
        pairs = [[None, "Bonjour"], ["a", "b"]]
        answer = post(served, "/chat", {"message": "Qui ?", "history": pairs, "philosopher": "Other"}).json()
        assert answer["message"] == answer["reply"] == "sive"
        assert answer["history"] == [*pairs, ["Qui ?", "sive"]]
        assert answer["philosopher"] == "other"
        assert host.seen[-1].body["model"] == "theirs"
        assert [message["content"] for message in asked(host)] == ["Bonjour", "a", "b", "Qui ?"]
        kept = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        answer = post(served, "/chat/other", {"message": "Qui ?", "history": kept}).json()
        assert host.seen[-1].body["model"] == "theirs"
        assert answer["history"][2:] == [
            {"role": "user", "content": "Qui ?"},
            {"role": "assistant", "content": "sive"},
        ]
        assert post(served, "/chat", {"message": "Qui ?"}).json()["history"] == [["Qui ?", "sive"]]
        assert host.seen[-1].body["model"] == "m0"


def test_a_number_too_large_costs_no_answer(serve: Serve) -> None:
    """``1e999`` in what a client keeps beside the text comes back as null; JSON has no infinity."""
    with Upstream(upstream.answers("sive")) as host:
        served = serve(routed(host))
        history = b'[{"role": "user", "content": "a", "at": 1e999}]'
        chat = post(served, "/chat", b'{"message": "x", "history": %b}' % history)
        assert (chat.status_code, chat.json()["history"][0]["at"]) == (200, None)
        run = post(served, "/gradio_api/run/chat_function", b'{"data": ["x", %b]}' % history)
        assert (run.status_code, run.json()["data"][1][0]["at"]) == (200, None)
        for answer in (chat, run):
            assert answer.headers["content-type"] == "application/json"


UNSERVED = [
    ('[compat]\nmodel = "hegel"\n', "[compat] model = 'hegel' is not served; served are "),
    (
        '[[compat.functions]]\nname = "chat"\nmodel = "hegel"\n',
        "[[compat.functions]] 'chat': model = 'hegel' is not served; served are ",
    ),
]


@pytest.mark.parametrize(("config", "said"), UNSERVED, ids=["default", "function"])
def test_a_door_to_a_model_that_is_not_served_is_a_mistake(tmp_path: Path, config: str, said: str) -> None:
    """Found at the start, not by the first caller; any case of a served name will do."""
    (tmp_path / "sive.toml").write_text(config)
    result = cli("serve", "--port", "0", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"sive: {said}spinoza, bergson, kant"), result.stderr
    (tmp_path / "sive.toml").write_text(config.replace("hegel", "Kant"))
    Gateway(load(tmp_path / "sive.toml", environ={}).settings)


def test_init_greets(serve: Serve) -> None:
    """Without asking a model; the packaged philosophers have greetings, others a plain one."""
    served = serve()
    answer = served.get("/init/kant").json()
    assert answer["message"].startswith("Bonjour, je suis Emmanuel Kant")
    assert answer["history"] == []
    assert served.get("/init").json()["philosopher"] == "spinoza"
    assert "local" in served.get("/init/local").json()["message"]
    configured = serve("[compat]\ngreeting_in_history = true\n")
    answer = configured.get("/init/bergson").json()
    assert answer["history"] == [[None, answer["message"]]]
    greeted = post(configured, "/chat", {"message": "Oui", "history": answer["history"]}).json()
    assert len(greeted["history"]) == 2


BAD = [
    ("/api/infer", b"{", 400, "not valid JSON"),
    ("/api/infer", b"[1]", 400, "JSON object"),
    ("/api/infer", {}, 400, "'prompt'"),
    ("/api/infer", {"prompt": ""}, 400, "'prompt'"),
    ("/api/infer", {"prompt": "x", "model": "hegel"}, 404, "known are m"),
    ("/api/infer", {"prompt": "x", "max_tokens": "many"}, 400, "'max_tokens'"),
    ("/chat", {"history": []}, 400, "'message'"),
    ("/chat", {"message": "x", "history": "y"}, 422, "history: "),
    ("/chat", {"message": "x", "history": [["a"]]}, 422, "history[0]: "),
    ("/chat", {"message": "x", "philosopher": "hegel"}, 404, "known are m"),
    ("/chat", {"message": "x", "philosopher": ["m"]}, 404, "known are m"),
    ("/init/hegel", b"", 404, "known are m"),
    ("/api/infer", b'{"prompt": "' + b"x" * 10_000_001 + b'"}', 413, "larger than 10000000"),
]


def test_wrong_requests_are_clear_and_honest(serve: Serve) -> None:
    """A status and one text; no backend is asked, and each is counted."""
    with Upstream(upstream.answers("no")) as host:
        served = serve(routed(host))
        for path, body, status, said in BAD:
            answer = post(served, path, body)
            assert answer.status_code == status, (path, str(body)[:80], answer.text)
            assert said in answer.json()["error"]
        assert host.seen == []
        metrics = served.get("/metrics").text
        assert 'status="404"} 4.0' in metrics
        assert "Traceback" not in served.output.read_text()


def test_a_prompt_just_below_the_limit_is_answered_honestly(serve: Serve) -> None:
    """9 MB reach the gateway, whose CPU keeps what fits; asked for by name it refuses."""
    served = serve()
    for model, status in (("spinoza", 200), ("local", 400)):
        answer = post(served, "/api/infer", {"prompt": "word " * 1_800_000, "model": model, "max_tokens": 2})
        assert answer.status_code == status, answer.text[:200]


def test_when_nobody_can_answer_the_status_says_so(serve: Serve) -> None:
    """503 with when to come back, and why, instead of a success."""
    with Upstream(upstream.says(503, retry_after="9")) as host:
        served = serve(routed(host))
        for path, body in (("/api/infer", {"prompt": "x"}), ("/chat", {"message": "x"})):
            answer = post(served, path, body)
            assert answer.status_code == 503
            assert "b0: HTTP 503" in answer.json()["error"]
            assert answer.headers["retry-after"] == "9"


def test_who_requires_the_adapter_gets_nobody_else(serve: Serve) -> None:
    """The headers of the gateway's own paths mean the same here."""
    with Upstream(upstream.resets) as host:
        served = serve(routed(host, last=LOCAL_LAST))
        answer = post(served, "/api/infer", {"prompt": "x", "max_tokens": 4})
        assert (answer.headers["x-sive-backend"], answer.headers["x-sive-degraded"]) == ("local", "true")
        required = {"x-sive-require": "adapter"}
        assert post(served, "/api/infer", {"prompt": "x"}, **required).status_code == 503


def test_a_backend_that_dies_in_the_middle_is_carried_on(serve: Serve) -> None:
    """The client of the first service gets one whole answer, and can see whose."""
    with Upstream(upstream.cuts_after(3, with_reset=True)) as host:
        served = serve(routed(host, last=LOCAL_LAST))
        answer = post(served, "/api/infer", {"prompt": "Qui es-tu ?"})
        assert answer.json()["result"].endswith(".")
        assert answer.headers["x-sive-degraded"] == "true"


def test_a_client_that_leaves_stops_the_backend(serve: Serve) -> None:
    """Nobody reads the answer, so nobody writes it."""
    with Upstream(upstream.stays_silent) as host:
        served = serve(routed(host))
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{served.url}/chat", json={"message": "x"}, timeout=0.3)
        until(lambda: host.seen and host.seen[0].left_at, what="the upstream connection closed")
        until(lambda: "sive_requests_in_flight 0.0" in served.get("/metrics").text)
        assert "Traceback" not in served.output.read_text()


def test_the_doors_need_the_gateways_keys(serve: Serve) -> None:
    """As all pages; ``gradio_client``'s header counts where there is no other."""
    served = serve("", SIVE_API_KEYS="sk-one")
    for path, body in (("/api/infer", {"prompt": "x"}), ("/chat", {"message": "x"})):
        assert post(served, path, body).status_code == 401
        assert post(served, path, body, **{"x-hf-authorization": "Bearer hf_other"}).status_code == 401
        assert post(served, path, body, authorization="Bearer sk-one").status_code == 200
        assert post(served, path, body, **{"x-hf-authorization": "Bearer sk-one"}).status_code == 200
        empty = {"authorization": "", "x-hf-authorization": "Bearer sk-one"}
        assert post(served, path, body, **empty).status_code == 200
        both = {"authorization": "Bearer wrong", "x-hf-authorization": "Bearer sk-one"}
        assert post(served, path, body, **both).status_code == 401
    assert served.get("/init/kant").status_code == 401


def test_pages_of_configured_origins_may_use_the_doors(serve: Serve) -> None:
    """CORS, preflight and what a page may read of the head."""
    served = serve('[gateway]\ncors_origins = ["https://page.example"]\n')
    origin = {"origin": "https://page.example"}
    preflight = origin | {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-gradio-user",
    }
    for path in ("/chat", "/gradio_api/queue/join"):
        answer = httpx2.options(served.url + path, headers=preflight)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, origin["origin"])
        assert "x-gradio-user" in answer.headers["access-control-allow-headers"]
    answer = post(served, "/chat", {"message": "x"}, **origin)
    assert "x-sive-backend" in answer.headers["access-control-expose-headers"].lower()


def test_a_second_port_has_the_same_doors(serve: Serve) -> None:
    """``--compat-port`` listens from the start, and drains with the first."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    served = serve("[gateway]\ndrain_s = 60\n", "--compat-port", str(port))
    url = f"http://127.0.0.1:{port}"
    assert f"older services on {url} too" in served.output.read_text()
    assert httpx2.post(f"{url}/api/infer", json={"prompt": "x", "max_tokens": 3}, timeout=30).json()["result"]
    assert httpx2.get(f"{url}/gradio_api/info", timeout=10).status_code == 200
    with httpx2.stream("GET", f"{url}/gradio_api/heartbeat/abc", timeout=20) as alive:
        lines = alive.iter_lines()
        assert next(lines) == "data: ALIVE"
        assert served.stop() == 0  # whoever only keeps a connection open does not hold the server up


def test_a_second_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    """It names the port and the way out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = cli("serve", "--port", "0", "--compat-port", port, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip() == (
        f"sive: port {port} on 127.0.0.1 is in use: choose another with --compat-port N"
    )
