"""A real `sive serve` over a real socket: what callers, SDKs and Prometheus see."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.conftest import Serve, Served, clean_environment, until
from tests.lab import upstream
from tests.lab.upstream import Upstream

HI = [{"role": "user", "content": "Qu'est-ce que la joie ?"}]


def routed(*hosts: Upstream, last: str = "", more: str = "") -> str:
    """A configuration whose model ``m`` goes through the hosts in order."""
    backends = "".join(
        f'[[backend]]\nname = "b{number}"\nurl = "{host.url}"\nprobe = "passive"\n'
        for number, host in enumerate(hosts)
    )
    rungs = ", ".join(f'{{ backend = "b{number}", model = "m{number}" }}' for number in range(len(hosts)))
    return f"{more}\n{backends}\n[model.m]\nroute = [{rungs}{last}]\n"


LOCAL_LAST = ', { backend = "local", model = "auto" }'


def ask(served: Served, **body: Any) -> httpx2.Response:
    """POST a chat completion."""
    return httpx2.post(
        f"{served.url}/v1/chat/completions", json={"model": "m", "messages": HI, **body}, timeout=30
    )


def events(response: httpx2.Response) -> list[dict[str, Any]]:
    """The payloads of a stream, without the end mark."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_with_no_configuration_the_philosophers_answer(serve: Serve) -> None:
    """A fresh machine without network serves spinoza, bergson, kant and local from its CPU."""
    served = serve()
    listed = served.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["spinoza", "bergson", "kant", "local"]
    for name in ("spinoza", "local"):
        answer = ask(served, model=name)
        assert answer.status_code == 200
        assert answer.headers["x-sive-backend"] == "local"
        assert answer.headers["x-sive-degraded"] == ("false" if name == "local" else "true")
        body = answer.json()
        assert body["choices"][0]["message"]["content"]
        assert body["model"] == ("local" if name == "local" else "sive-embedded")
        assert body["usage"]["completion_tokens"] > 3
    assert "spinoza: local sive-embedded (embedded default; degraded)" in served.output.read_text()


def test_the_first_token_comes_within_two_seconds_of_the_start(serve: Serve) -> None:
    """The model loads at the first request, and still nobody waits: a generous bound, not a benchmark."""
    started = time.monotonic()
    served = serve()
    with httpx2.stream(
        "POST", f"{served.url}/v1/chat/completions", json={"model": "local", "messages": HI, "stream": True}
    ) as stream:
        assert any('"content":"' in line for line in stream.iter_lines())
    assert time.monotonic() - started < 15


def test_the_sdk_streams_and_sees_who_speaks(serve: Serve) -> None:
    """The plain OpenAI SDK, sync, streaming: text, finish_reason, usage and the sive object."""
    served = serve()
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as sdk:
        chunks = list(
            sdk.chat.completions.create(
                model="kant",
                messages=[{"role": "user", "content": "What is duty?"}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        completion = sdk.completions.create(
            model="local", prompt="User: What is joy?\nAssistant:", max_tokens=9
        )
    assert chunks[0].model_extra is not None
    assert chunks[0].model_extra["sive"]["backend"] == "local"
    finish = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert len(finish) == 1
    assert finish[0].model_extra["sive"]["degraded"] is True  # type: ignore[index]
    assert chunks[-1].usage is not None
    assert len({chunk.id for chunk in chunks}) == 1
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 9


def test_a_dead_host_falls_to_the_next_and_to_the_cpu(serve: Serve) -> None:
    """Rungs are tried in order before the first token, and the caller hears how many."""
    with Upstream(upstream.resets) as first, Upstream(upstream.html(502)) as second:
        served = serve(routed(first, second, last=LOCAL_LAST))
        answer = ask(served, stream=True)
        assert answer.status_code == 200
        assert answer.headers["x-sive-attempts"] == "4"  # a reset is worth a second try
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.text.endswith("data: [DONE]\n\n")
        second.manner = upstream.answers("Bonjour")
        again = ask(served)
        assert again.json()["choices"][0]["message"]["content"] == "Bonjour"
        assert again.headers["x-sive-degraded"] == "true"
        assert again.json()["model"] == "m1"
        metrics = served.get("/metrics").text
    assert 'sive_failovers_total{backend="b0",reason="reset"} 4.0' in metrics
    assert 'sive_failovers_total{backend="b1",reason="http_502"} 1.0' in metrics
    assert 'sive_requests_total{backend="local",model="m",status="200"} 1.0' in metrics
    assert 'sive_tokens_total{backend="b1",kind="completion",model="m"} 1.0' in metrics
    assert 'sive_time_to_first_token_seconds_count{backend="local",model="m"} 1.0' in metrics
    assert "sive_requests_in_flight 0.0" in metrics


def test_the_primary_speaks_under_the_served_name(serve: Serve) -> None:
    """Every chunk carries the caller's model name, first and last who spoke; the text is untouched."""
    words = ("Deus ", "sive ", "Natura — ", 'œuvre "model":"m0" ', "é")
    with Upstream(upstream.answers(*words)) as host:
        served = serve(routed(host))
        answer = ask(served, stream=True)
        chunks = events(answer)
        assert {chunk["model"] for chunk in chunks} == {"m"}
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "".join(words)
        assert ["sive" in chunk for chunk in chunks] == [True, *[False] * len(words), True]
        assert not any(chunk.get("usage") for chunk in chunks)
        assert host.seen[0].headers["x-sive-require"] == "adapter"
        asked = events(ask(served, stream=True, stream_options={"include_usage": True}))
        assert asked[-1]["usage"]["completion_tokens"] == len(words)


def test_an_answer_that_breaks_off_says_so(serve: Serve) -> None:
    """After the first token a lost backend ends in an error event, without [DONE]."""
    with Upstream(upstream.cuts_after(3, with_reset=True)) as host:
        served = serve(routed(host))
        answer = ask(served, stream=True)
        assert events(answer)[-1]["error"]["code"] == "stream_interrupted"
        assert "[DONE]" not in answer.text
        assert 'sive_streams_cut_total{backend="b0",model="m"} 1.0' in served.get("/metrics").text


def test_when_nobody_can_answer_the_503_says_why(serve: Serve) -> None:
    """All rungs failed: their names and reasons, Retry-After, and no address."""
    with Upstream(upstream.says(503, retry_after="9")) as host:
        served = serve(routed(host))
        answer = ask(served)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "9"
        assert answer.headers["x-should-retry"] == "false"
        assert "b0: HTTP 503" in answer.json()["error"]["message"]
        assert str(host.port) not in answer.text


def test_a_waiting_stream_shows_life(serve: Serve) -> None:
    """A slow first token: 200 and comments after head_s, then the next rung's answer."""
    clocks = "[gateway]\nhead_s = 0.2\nfirst_token_s = 0.7\n"
    with Upstream(upstream.says_head_only) as host:
        served = serve(routed(host, last=LOCAL_LAST, more=clocks))
        answer = ask(served, stream=True)
        assert answer.status_code == 200
        assert answer.text.startswith(": waiting\n\n")
        assert events(answer)[0]["sive"]["backend"] == "local"


def test_a_stalled_stream_is_cut(serve: Serve) -> None:
    """A stream that goes silent in the middle ends after stall_s in an error event."""
    with Upstream(upstream.stalls) as host:
        served = serve(routed(host, more="[gateway]\nstall_s = 0.4\n"))
        assert "no token for 0.4 s" in events(ask(served, stream=True))[-1]["error"]["message"]


def test_a_slow_reader_loses_nothing(serve: Serve) -> None:
    """A caller who does not read for longer than stall_s still gets the whole answer."""
    word, count = "x" * 65_536, 400

    async def floods(exchange: upstream.Exchange) -> None:
        await exchange.head()
        for _ in range(count):
            await exchange.event(upstream.chunk(exchange, {"content": word}))
        await exchange.event(upstream.chunk(exchange, {}, "stop"))
        await exchange.done()

    with Upstream(floods) as host:
        served = serve(routed(host, more="[gateway]\nstall_s = 3\n"))
        body = json.dumps({"model": "m", "messages": HI, "stream": True}).encode()
        with socket.create_connection(("127.0.0.1", served.port)) as caller:
            caller.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
                + body
            )
            time.sleep(5)  # the behaviour under test: nobody reads
            caller.settimeout(90)  # 26 MB on a busy machine
            answer = b""
            while b"data: [DONE]" not in answer[-200:]:
                part = caller.recv(2**20)
                answer += part
                assert part, answer[-300:]
                assert b'"error"' not in answer[-300:], answer[-300:]
        assert answer.count(word.encode()) == count


def test_a_caller_who_leaves_stops_the_backend(serve: Serve) -> None:
    """Closing the connection closes the upstream's, streaming or waiting for a whole answer."""
    with Upstream(upstream.talks_forever) as host:
        served = serve(routed(host))
        with httpx2.stream(
            "POST", f"{served.url}/v1/chat/completions", json={"model": "m", "messages": HI, "stream": True}
        ) as answer:
            next(answer.iter_bytes())
        until(lambda: host.seen[0].left_at, what="the upstream connection closed")
        host.manner = upstream.stays_silent
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{served.url}/v1/chat/completions", json={"model": "m", "messages": HI}, timeout=0.3)
        until(lambda: len(host.seen) == 2 and host.seen[1].left_at, what="the upstream connection closed")
        until(lambda: "sive_requests_in_flight 0.0" in served.get("/metrics").text)


BAD = [
    (b"{", 400, "invalid_json"),
    (b"[1]", 400, "invalid_json"),
    (b'{"model": "m", "messages": [{"role": "user", "content": "\xff"}]}', 400, "invalid_json"),
    (b'{"model": "m", "messages": [{"role":"user","content":"x"}], "temperature": NaN}', 400, "invalid_json"),
    (b'{"messages": [{"role": "user", "content": "x"}]}', 400, "missing_required_parameter"),
    (b'{"model": "m", "messages": []}', 400, "invalid_type"),
    (b'{"model": "m", "messages": "hi"}', 400, "invalid_type"),
    (b'{"model": "m", "messages": [{"content": "x"}]}', 400, "invalid_type"),
    (b'{"model": "m", "messages": [{"role": "user", "content": 5}]}', 400, "invalid_type"),
    (b'{"model": 5, "messages": [{"role": "user", "content": "x"}]}', 400, "invalid_type"),
    (b'{"model": "m", "stream": "yes", "messages": [{"role": "user", "content": "x"}]}', 400, "invalid_type"),
    (b'{"model": "m", "max_tokens": 0, "messages": [{"role": "user", "content": "x"}]}', 400, "invalid_type"),
    (
        b'{"model": "m", "temperature": "hot", "messages": [{"role": "user", "content": "x"}]}',
        400,
        "invalid_type",
    ),
    (b'{"model": "hegel", "messages": [{"role": "user", "content": "x"}]}', 404, "model_not_found"),
]


def test_wrong_requests_are_clear_errors_and_the_server_stays_up(serve: Serve) -> None:
    """Each is an OpenAI-shaped error with its status; no backend is asked."""
    with Upstream(upstream.answers("ok")) as host:
        served = serve(routed(host))
        for body, status, code in BAD:
            answer = httpx2.post(f"{served.url}/v1/chat/completions", content=body, timeout=10)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), body
        assert "served are: m" in answer.json()["error"]["message"]
        assert host.seen == []
        assert ask(served).status_code == 200


def test_a_body_over_the_limit_is_a_413(serve: Serve) -> None:
    """Refused by its declared length, and by its real one when none was declared."""
    served = serve()
    big = b"x" * 10_000_001
    assert httpx2.post(f"{served.url}/v1/chat/completions", content=big, timeout=30).status_code == 413

    def pieces() -> Any:
        for _ in range(12):
            yield b"x" * 1_000_000

    # The refusal closes the connection, perhaps while the caller still writes.
    with contextlib.suppress(httpx2.WriteError, httpx2.ReadError):
        answer = httpx2.post(f"{served.url}/v1/chat/completions", content=pieces(), timeout=30)
        assert answer.status_code == 413
    assert served.get("/health").status_code == 200


def test_what_is_plainly_too_long_is_refused(serve: Serve) -> None:
    """Asked for by name the CPU says so at once; under a philosopher's name it truncates and says that."""
    served = serve()
    words = [{"role": "user", "content": "word " * 40_000}, {"role": "user", "content": "What is joy?"}]
    answer = ask(served, model="local", messages=words)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    answer = ask(served, model="spinoza", messages=words)
    assert answer.status_code == 200
    assert answer.json()["sive"]["truncated"] is True


def test_keys_open_everything_but_health(serve: Serve) -> None:
    """A wrong or missing key is a 401; /health needs none; keys never show."""
    served = serve("", SIVE_API_KEYS="sk-one, sk-two")
    assert served.get("/health").status_code == 200
    for path in ("/v1/models", "/ready", "/status", "/metrics", "/nothing"):
        assert served.get(path).status_code == 401
        assert served.get(path, headers={"authorization": "Bearer sk-two"}).status_code != 401
    assert ask(served, model="local").status_code == 401
    with (
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong") as sdk,
        pytest.raises(openai.AuthenticationError),
    ):
        sdk.chat.completions.create(model="local", messages=HI)  # type: ignore[arg-type]
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="sk-one") as sdk:
        assert sdk.chat.completions.create(model="local", messages=HI)  # type: ignore[arg-type]
    everything = (
        served.output.read_text() + served.get("/metrics", headers={"authorization": "Bearer sk-one"}).text
    )
    assert "sk-one" not in everything
    assert "sk-two" not in everything


def test_a_route_that_leads_back_to_itself_ends(serve: Serve) -> None:
    """More than three sives in a row is a 508."""
    served = serve()
    answer = httpx2.post(
        f"{served.url}/v1/chat/completions",
        json={"model": "local", "messages": HI},
        headers={"x-sive-hop": "4"},
    )
    assert answer.status_code == 508


def test_a_sive_in_front_of_a_sive(serve: Serve) -> None:
    """The inner one never degrades for the outer one, which falls to its own CPU and says so once."""
    inner = serve()
    host = f'[[backend]]\nname = "pod"\nurl = "{inner.url}/v1"\n'
    outer = serve(
        f'{host}[model.spinoza]\nroute = [{{ backend = "pod", model = "spinoza" }}{LOCAL_LAST}]\n'
        f'[model.cpu]\nroute = [{{ backend = "pod", model = "local" }}]\n'
    )
    answer = ask(outer, model="spinoza")
    assert answer.headers["x-sive-backend"] == "local"
    assert answer.headers["x-sive-attempts"] == "2"
    answer = ask(outer, model="cpu", stream=True)
    assert answer.headers["x-sive-degraded"] == "false"
    assert {chunk["model"] for chunk in events(answer)} == {"cpu"}
    assert events(answer)[0]["sive"]["backend"] == "pod"


def test_unknown_pages_are_openai_errors(serve: Serve) -> None:
    """Everything else under /v1 is a 404, vLLM's own routes too."""
    served = serve()
    for path in ("/v1/load_lora_adapter", "/tokenize", "/docs", "/openapi.json"):
        answer = served.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "unknown_url"


def test_ready_and_status_tell_who_could_answer(serve: Serve) -> None:
    """Both name the rungs of every model, and neither an address nor a key."""
    with Upstream(upstream.answers("ok")) as host:
        config = routed(host, last=LOCAL_LAST).replace('url = "', 'api_key_env = "POD_KEY"\nurl = "')
        served = serve(config, POD_KEY="sk-secret")
        ready = served.get("/ready")
        assert ready.status_code == 200
        assert ready.json()["models"]["m"] == [
            {"backend": "b0", "degraded": False, "ready": True},
            {"backend": "local", "degraded": True, "ready": True},
        ]
        status = served.get("/status")
        assert [rung["backend"] for rung in status.json()["models"]["m"]["rungs"]] == ["b0", "local"]
        assert "sk-secret" not in status.text
        assert str(host.port) not in status.text
        ask(served)
        assert host.seen[0].headers["authorization"] == "Bearer sk-secret"


def test_ready_means_that_somebody_could_be_answered(serve: Serve) -> None:
    """One dead model takes no gateway out of a balancer; whoever cares for one asks for that one."""
    with Upstream(upstream.says(401)) as host:
        refuses = (
            '[model.own]\nroute = [{ backend = "b0", model = "m0" }, { backend = "local", model = "auto" }]'
        )
        served = serve(
            routed(host)
            + f'{refuses}\ndegrade = "refuse"\n[model.cpu]\nroute = [{LOCAL_LAST.removeprefix(", ")}]\n'
        )
        assert served.get("/ready").json()["unready"] == []
        assert served.get("/ready?model=own&require=adapter").status_code == 200
        assert ask(served).status_code == 503
        ready = served.get("/ready")
        assert (ready.status_code, ready.json()["unready"]) == (200, ["m", "own"])
        for query, status in (
            ("?model=m", 503),
            ("?model=own", 503),  # the CPU could, and must not
            ("?model=cpu", 200),
            ("?model=cpu&require=adapter", 503),
            ("?model=nobody", 404),
            ("?require=adaptr", 400),
        ):
            answer = served.get(f"/ready{query}")
            assert answer.status_code == status, query
        assert list(served.get("/ready?model=m").json()["models"]) == ["m"]


def test_status_tells_models_of_one_backend_apart(serve: Serve) -> None:
    """What a backend did last as this model, why a model there rests, and for how long."""

    async def by_model(exchange: upstream.Exchange) -> None:
        manner = upstream.answers("ok") if exchange.model == "good" else upstream.says(401)
        await manner(exchange)

    with Upstream(by_model) as host:
        backend = f'[[backend]]\nname = "pod"\nurl = "{host.url}"\nprobe = "passive"\n'
        rungs = "".join(
            f'[model.{name}]\nroute = [{{ backend = "pod", model = "{name}" }}]\n' for name in ("good", "bad")
        )
        served = serve(backend + rungs)
        assert ask(served, model="good").status_code == 200
        assert ask(served, model="bad").status_code == 503
        models = served.get("/status").json()["models"]
        good, bad = models["good"]["rungs"][0], models["bad"]["rungs"][0]
    assert good["last"].startswith("answered, ")
    assert bad["last"].startswith("HTTP 401, ")
    assert bad["resting"] == "rests after a failure: HTTP 401"
    assert 290 < bad["rests_for_s"] <= 300


def test_a_probe_counts_as_asked(serve: Serve) -> None:
    """Before any caller came: what is known of a backend, and from what."""
    with Upstream(upstream.answers("ok")) as host:
        served = serve(
            f'[gateway]\nprobe_interval_s = 0.3\n[[backend]]\nname = "pod"\nurl = "{host.url}"\n'
            '[model.m]\nroute = [{ backend = "pod", model = "m" }]\n'
        )

        def last() -> str:
            return str(served.get("/status").json()["models"]["m"]["rungs"][0]["last"])

        until(lambda: last().startswith("answered a probe, "), 10, "a probe")


def test_rungs_that_may_not_answer_are_not_said_to_be_ready(serve: Serve) -> None:
    """Where another voice is refused, /ready names the model's own alone."""
    with Upstream(upstream.says(503)) as host:
        config = routed(host, last=LOCAL_LAST).replace("[model.m]", '[model.m]\ndegrade = "refuse"')
        served = serve(config)
        rungs = served.get("/ready").json()["models"]["m"]
    assert [(rung["backend"], rung["degraded"]) for rung in rungs] == [("b0", False)]


def test_a_persona_of_ones_own_is_told_to_pages(serve: Serve) -> None:
    """Its line and its questions, beside what OpenAI's list has; a model without them has neither."""
    local = '{ backend = "local", model = "auto" }'
    served = serve(
        f'[model.hypatia]\nline = "Astronomer."\nquestions = ["Why?"]\nroute = [{local}]\n'
        f"[model.plain]\nroute = [{local}]\n"
    )
    hypatia, plain = served.get("/v1/models").json()["data"]
    assert (hypatia["line"], hypatia["questions"]) == ("Astronomer.", ["Why?"])
    assert not {"line", "questions"} & plain.keys()


def test_cors_for_the_pages_that_are_named(serve: Serve) -> None:
    """A configured origin may call directly and read who spoke; others may not."""
    served = serve('[gateway]\ncors_origins = ["https://page.example"]\n')
    preflight = {"origin": "https://page.example", "access-control-request-method": "POST"}
    answer = httpx2.options(f"{served.url}/v1/chat/completions", headers=preflight)
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    answer = served.get("/v1/models", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_sigterm_lets_a_running_answer_finish(serve: Serve) -> None:
    """SIGTERM stops accepting, and what runs is answered to its end."""

    async def slowly(exchange: upstream.Exchange) -> None:
        await exchange.head()
        await exchange.event(upstream.chunk(exchange, {"content": "one "}))
        while not told:
            await upstream.asyncio.sleep(0.01)
        await exchange.event(upstream.chunk(exchange, {"content": "two"}))
        await exchange.event(upstream.chunk(exchange, {}, "stop"))
        await exchange.done()

    told: list[bool] = []
    with Upstream(slowly) as host:
        served = serve(routed(host))
        with httpx2.stream(
            "POST",
            f"{served.url}/v1/chat/completions",
            json={"model": "m", "messages": HI, "stream": True},
            timeout=20,
        ) as answer:
            text = answer.iter_text()
            first = next(text)
            served.process.send_signal(signal.SIGTERM)
            until(lambda: not _accepts(served.port), what="the listener closed")
            told.append(True)
            rest = first + "".join(text)
        assert rest.endswith("data: [DONE]\n\n")
        assert '"two"' in rest
        assert served.process.wait(20) == 0


def test_a_second_ctrl_c_stops_at_once_and_quietly(serve: Serve) -> None:
    """The first says what it waits for; the second ends the answer in an error event, no traceback."""
    with Upstream(upstream.talks_forever) as host:
        served = serve(routed(host))
        body = {"model": "m", "messages": HI, "stream": True}
        with httpx2.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=20) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            served.process.send_signal(signal.SIGINT)
            until(lambda: "stopping: 1 still" in served.output.read_text(), what="the first word")
            served.process.send_signal(signal.SIGINT)
            rest = b"".join(pieces)  # to a clean end: the error is the last that comes
        assert b"[DONE]" not in rest
        assert b'"code":"shutting_down"' in rest
        assert b"told not to wait" in rest
        assert served.process.wait(10) == 0
        assert "Traceback" not in served.output.read_text()


@pytest.mark.parametrize("while_it_drains", [False, True])
def test_all_hear_of_a_second_ctrl_c(serve: Serve, while_it_drains: bool) -> None:
    """Sixteen streams and as many who wait for one piece; both signals may come at once."""
    with Upstream(upstream.talks_forever) as host:
        served = serve(routed(host))
        heard: list[httpx2.Response] = []
        threads = [
            threading.Thread(target=lambda streams=n % 2 > 0: heard.append(ask(served, stream=streams)))
            for n in range(32)
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(host.seen) == 32 and all(seen.events for seen in host.seen), what="all of them")
        served.process.send_signal(signal.SIGINT)
        until(lambda: "stopping: 32 still" in served.output.read_text(), what="the first word")
        until(lambda: not while_it_drains or not _accepts(served.port), what="the listener closed")
        served.process.send_signal(signal.SIGINT)
        for thread in threads:
            thread.join()
        assert served.process.wait(10) == 0
    assert len(heard) == 32
    assert all('"code":"shutting_down"' in answer.text for answer in heard)
    assert sorted(answer.status_code for answer in heard) == [200] * 16 + [503] * 16


def test_a_second_sigterm_stops_at_once_and_loses_no_line(serve: Serve) -> None:
    """What still runs ends with its connection; what was answered a moment before is in the log."""
    told: list[bool] = []

    async def quick_or_endless(exchange: upstream.Exchange) -> None:
        if exchange.body["user"] == "endless":
            await upstream.talks_forever(exchange)
            return
        await exchange.head()
        await exchange.event(upstream.chunk(exchange, {"content": "one"}))
        while not told:
            await upstream.asyncio.sleep(0.01)
        await exchange.event(upstream.chunk(exchange, {}, "stop"))
        await exchange.done()

    with Upstream(quick_or_endless) as host, contextlib.ExitStack() as stack:
        served = serve(routed(host, more="[gateway]\ndrain_s = 60\n"))
        texts = {}
        for user in ("endless", "quick"):
            body = {"model": "m", "messages": HI, "stream": True, "user": user}
            url, headers = f"{served.url}/v1/chat/completions", {"x-request-id": user}
            answer = httpx2.stream("POST", url, json=body, headers=headers, timeout=20)
            texts[user] = stack.enter_context(answer).iter_bytes()
            next(texts[user])
        served.process.send_signal(signal.SIGTERM)
        until(lambda: "stopping: 2 still" in served.output.read_text(), what="the first word")
        told.append(True)
        assert b"[DONE]" in b"".join(texts["quick"])
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(10) == 0
        with contextlib.suppress(httpx2.HTTPError):
            assert b"[DONE]" not in b"".join(texts["endless"])
    assert "quick m b0 200 " in served.output.read_text()
    assert "Traceback" not in served.output.read_text()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def cli(*arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "sive_serve.cli", *arguments],
        cwd=cwd,
        env=clean_environment(HOME=str(cwd), COLUMNS="120", NO_COLOR="1", **environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_odd_counts_and_lengths_do_not_break_the_books(serve: Serve) -> None:
    """Usage of another shape, an absurd content-length, n > 1: answered, counted, nothing in the log."""

    async def oddly(exchange: upstream.Exchange) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        await exchange.json(
            {"model": "m", "choices": [choice], "usage": {"prompt_tokens": "7", "completion_tokens": -1}}
        )

    with Upstream(oddly) as host:
        served = serve(routed(host))
        assert ask(served).status_code == 200
        with socket.create_connection(("127.0.0.1", served.port)) as caller:
            caller.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: "
                + b"0" * 5000
                + b"5\r\n\r\n"
            )
            assert b" 4" in caller.recv(1000)[:16]
        host.manner = upstream.answers("one")
        assert "[DONE]" in ask(served, stream=True, n=2).text
        missing = ask(served, model="hegel")
        assert missing.headers["x-request-id"]
        assert "Traceback" not in served.output.read_text()


def test_a_misspelt_requirement_is_refused(serve: Serve) -> None:
    """Who asks that nobody else answers must not be misunderstood."""
    served = serve()
    body = {"model": "spinoza", "messages": HI}
    for wanted, status in (("adaptr", 400), ("adapter", 503)):
        answer = httpx2.post(
            f"{served.url}/v1/chat/completions", json=body, headers={"x-sive-require": wanted}
        )
        assert answer.status_code == status
    assert "degraded" not in served.get("/metrics").text  # a voice that was not wanted is no failover


def test_a_rejected_key_is_said_aloud(serve: Serve) -> None:
    """The CPU answers, the log warns once and /status tells what the backend did last; no key shows."""
    with Upstream(upstream.says(401)) as host:
        served = serve(routed(host, last=LOCAL_LAST))
        status = served.get("/status").json()["models"]["m"]["rungs"]
        assert status[0]["last"] == "not asked yet"
        assert [ask(served).status_code for _ in range(3)] == [200] * 3
        status = served.get("/status").json()["models"]["m"]["rungs"]
        assert status[0]["last"].startswith("HTTP 401, ")
        assert status[1]["last"].startswith("answered, ")
        assert served.output.read_text().count("is its key right") == 1


def test_the_cpu_can_be_switched_off(serve: Serve) -> None:
    """Without it the packaged philosophers have no rung here, and say so."""
    served = serve("[local]\nenabled = false\n")
    assert [model["id"] for model in served.get("/v1/models").json()["data"]] == [
        "spinoza",
        "bergson",
        "kant",
    ]
    assert ask(served, model="spinoza").status_code == 503
    assert served.get("/ready").status_code == 503


def test_what_only_another_backend_can_read_is_not_the_callers_fault(serve: Serve) -> None:
    """An image while the pod is down: 503 with the reasons, not a 400 of the CPU's."""
    with Upstream(upstream.resets) as host:
        served = serve(routed(host, last=LOCAL_LAST))
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
        answer = ask(served, messages=[{"role": "user", "content": [picture]}])
        assert answer.status_code == 503
        assert "b0: reset" in answer.json()["error"]["message"]


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    """It names the port and the way out, from --port and from PORT."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for result in (cli("serve", "--port", port, cwd=tmp_path), cli("serve", cwd=tmp_path, PORT=port)):
            assert result.returncode == 1
            assert result.stderr.strip() == (
                f"sive: port {port} on 127.0.0.1 is in use: choose another with --port N or PORT=N"
            )


def test_an_open_host_without_keys_refuses_to_start(tmp_path: Path) -> None:
    """Listening beyond this machine needs keys."""
    result = cli("serve", "--host", "0.0.0.0", cwd=tmp_path)
    assert result.returncode == 1
    assert "SIVE_API_KEYS" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[gateway]\nprot = 1\n", "unknown key 'gateway.prot': did you mean 'port'?"),
        ("[gatewey]\nport = 1\n", "unknown key 'gatewey': did you mean 'gateway'?"),
        ("[gateway]\ndrain_s = 'x'\n", "gateway.drain_s"),
        ("[gateway\n", "not valid TOML"),
        ('[model.m]\nroute = [{ backend = "pod", model = "m" }]\n', "backend 'pod' that is not there"),
        ('[[backend]]\nname = "a"\nurl = "http://x"\napi_key_env = "NOPE"\n', "NOPE, which is not set"),
        ('[[backend]]\nname = "a"\n[model.m]\nroute = [{ backend = "a", model = "m" }]\n', "has no url"),
        ("gateway = 5\n", "gateway"),
        ("[model.m]\nroute = []\n", "model.m.route"),
        ('[engine]\ncommand = "x"\n', "--engine MODEL"),
        (
            '[local]\nenabled = false\n[model.m]\nroute = [{ backend = "local", model = "auto" }]\n',
            "enabled = false",
        ),
        ("[gateway]\napi_keys_env = 5\n", "gateway.api_keys_env"),
        ('[gateway]\ncors_origins = ["null"]\n', "'null' is no origin of a page: write scheme://host"),
        ('[gateway]\ncors_origins = ["https://page.example/"]\n', "without a path"),
        ('[[backend]]\nname = "a"\nurl = "http://x"\nendpoints = ["chat"]\n', "endpoints"),
        ('[engine]\nmodel = "x"\nadapters = "nowhere.toml"\n', "nowhere.toml"),
    ],
)
def test_a_wrong_configuration_is_one_clear_line(config: str, said: str, tmp_path: Path) -> None:
    """Unknown keys name the nearest, and nothing is half-done."""
    (tmp_path / "sive.toml").write_text(config)
    result = cli("serve", "--port", "0", cwd=tmp_path)
    assert result.returncode == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "its url has no /v1, so it is asked at '/chat/completions'"),
        ("/proxy/", "most hosts want '/proxy/v1' at its end"),
        ("/v1/chat/completions", "it should end in '/v1', before that"),
        ("/v1", None),
        ("/api/v3/", None),
        ("/v1beta/openai", None),
    ],
)
def test_a_url_that_is_hardly_meant_is_said_at_the_start(serve: Serve, path: str, said: str | None) -> None:
    """A warning, because some hosts have other paths; without the address."""
    backend = f'[[backend]]\nname = "pod"\nurl = "http://127.0.0.1:9{path}"\nprobe = "passive"\n'
    served = serve(backend + '[model.m]\nroute = [{ backend = "pod", model = "m" }]\n')
    output = served.output.read_text()
    if said is None:
        assert "its url" not in output
    else:
        assert "backend 'pod': " in output
        assert said in output
        assert "127.0.0.1:9" not in output


def test_config_shows_values_and_where_they_are_from(tmp_path: Path) -> None:
    """Secrets are stars."""
    (tmp_path / "sive.toml").write_text(
        """
        [gateway]
        port = 7000
        [[backend]]
        name = "a"
        url = "http://me:pass@host/v1"
        [model.m]
        system_prompt = "[INST] [/INST] [bold]"
        route = [{ backend = "a", model = "x" }]
        [engine]
        model = "x"
        api-key = "sk-engine"
        """
    )
    result = cli("config", cwd=tmp_path, SIVE_API_KEYS="sk-secret")
    assert result.returncode == 0, result.stderr
    assert not {secret for secret in ("sk-secret", "sk-engine", "pass@") if secret in result.stdout}
    assert "[INST] [/INST] [bold]" in result.stdout
    assert any("model.m.route.0.model" in line and "sive.toml" in line for line in result.stdout.splitlines())
    assert any(
        "gateway.port" in line and "7000" in line and "sive.toml" in line
        for line in result.stdout.splitlines()
    )
    assert any(
        "gateway.api_keys" in line and "****" in line and "SIVE_API_KEYS" in line
        for line in result.stdout.splitlines()
    )


def test_chat_shows_who_answers(serve: Serve, tmp_path: Path) -> None:
    """Through a gateway and in this process; a URL where nobody is gets one line."""
    served = serve()
    for arguments in (["--url", served.url], []):
        result = subprocess.run(
            [sys.executable, "-m", "sive_serve.cli", "chat", "spinoza", *arguments],
            input="Qui es-tu ?\n",
            cwd=tmp_path,
            env=clean_environment(HOME=str(tmp_path), PORT="1", NO_COLOR="1"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert "Spinoza" in result.stdout
        assert "(local, sive-embedded, degraded," in result.stdout
    nobody = cli("chat", "--url", "http://127.0.0.1:1", cwd=tmp_path)
    assert nobody.returncode == 1
    assert nobody.stderr.startswith("sive: no sive answers at http://127.0.0.1:1")


def test_status_prints_the_rungs(serve: Serve, tmp_path: Path) -> None:
    """`sive status` shows models, rungs and why; piped, a line a rung, whole and by tabs."""
    with Upstream(upstream.says(401)) as host:
        served = serve(routed(host, last=LOCAL_LAST))
        ask(served)
        result = cli("status", "--url", served.url, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    head, pod, local = result.stdout.splitlines()
    assert served.url in head
    assert pod.split("\t")[:2] == ["m", "b0 m0 (configured)"]
    assert re.fullmatch(r"rests after a failure: HTTP 401 \([\d.]+ s more\)", pod.split("\t")[3])
    assert local.split("\t")[1] == "local sive-embedded (embedded default)"
    assert local.split("\t")[3] == "ready, degraded"


def test_status_reads_well_in_a_narrow_terminal(serve: Serve, tmp_path: Path) -> None:
    """In 80 columns nothing is cut and no word is broken."""
    served = serve()
    shown = in_a_terminal("status", "--url", served.url, cwd=tmp_path, columns=80)
    assert max(map(len, shown.splitlines())) <= 80
    words = shown.split()
    for word in ("spinoza", "bergson", "sive-embedded", "(embedded", "degraded", "asked"):
        assert word in words, shown


def in_a_terminal(*arguments: str, cwd: Path, columns: int) -> str:
    """What the command line shows on a terminal of so many columns."""
    ours, theirs = os.openpty()
    environment = clean_environment(HOME=str(cwd), COLUMNS=str(columns), NO_COLOR="1", TERM="dumb")
    command = [sys.executable, "-m", "sive_serve.cli", *arguments]
    with subprocess.Popen(command, cwd=cwd, env=environment, stdin=theirs, stdout=theirs) as process:
        os.close(theirs)
        shown = bytearray()
        with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
            while piece := os.read(ours, 65_536):
                shown += piece
        os.close(ours)
        assert process.wait(30) == 0
    return shown.decode().replace("\r\n", "\n")


def test_every_command_has_help(tmp_path: Path) -> None:
    """--help answers for each, with an example where there are options."""
    for command in ("serve", "chat", "status", "config", "weights", "version"):
        result = cli(command, "--help", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        if command not in ("version", "weights"):
            assert "Example: " in result.stdout
