"""Gradio's protocol at the gateway, as raw HTTP: calls, streams, sessions, and what goes wrong."""

import asyncio
import json
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from sive.config import FunctionSettings
from sive.errors import RequestError
from sive_serve.doors.answers import Answer, Question
from sive_serve.doors.gradio_jobs import Done, Failed, Grown, Job, Jobs
from sive_serve.doors.gradio_turn import turn
from sive_serve.gateway import Gateway

from tests.conftest import Serve, Served, until
from tests.lab import manners, upstream
from tests.lab.callers import on_a_loop, seen
from tests.lab.upstream import Upstream
from tests.test_doors import post
from tests.test_gateway import HI, LOCAL_LAST, routed
from tests.test_inner import gc_as_before, serving

__all__ = ["gc_as_before"]  # used by every test here

API = "/gradio_api"
ASKED = ["Qui ?", []]


def call(served: Served, data: Any = ASKED, *, path: str = f"{API}/call//chat_function", **more: Any) -> str:
    """Begin a call; its id."""
    answer = post(served, path, {"data": data, **more})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["event_id"])


def events(text: str) -> list[tuple[str, Any]]:
    """Names and data of a call's own stream."""
    found = []
    for block in text.split("\n\n"):
        if block:
            name, data = block.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def messages(text: str) -> list[dict[str, Any]]:
    """The messages of a session's stream."""
    return [json.loads(block.removeprefix("data: ")) for block in text.split("\n\n") if block]


def stream(served: Served, event_id: str, **headers: str) -> httpx2.Response:
    """All of a call's own stream."""
    path = f"{API}/call//chat_function/{event_id}"
    return httpx2.get(served.url + path, timeout=30, headers=headers)


def session(served: Served, session_hash: str, **headers: str) -> list[dict[str, Any]]:
    """All of a session's stream."""
    path = f"{API}/queue/data?session_hash={session_hash}"
    return messages(httpx2.get(served.url + path, timeout=30, headers=headers).text)


PATHS = ["call//chat_function", "call/chat_function", "call///chat_function"]


@pytest.mark.parametrize("prefix", [API, ""])
def test_a_call_streams_what_is_said_so_far(serve: Serve, prefix: str) -> None:
    """Cumulative text and history, then all of it, however many slashes the old name is written with."""
    with Upstream(upstream.answers("Deus ", "sive ", "Natura — é")) as host:
        served = serve(routed(host))
        for path in PATHS:
            event_id = call(served, path=f"{prefix}/{path}", session_hash="abc")
            answer = httpx2.get(f"{served.url}{prefix}/{path}/{event_id}", timeout=30)
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert (answer.headers["x-sive-backend"], answer.headers["x-sive-degraded"]) == ("b0", "false")
            *growing, (last, outputs) = events(answer.text)
            assert (last, outputs) == (
                "complete",
                ["Deus sive Natura — é", [["Qui ?", "Deus sive Natura — é"]]],
            )
            assert growing
            for name, (text, history) in growing:
                assert name == "generating"
                assert outputs[0].startswith(text)
                assert history == [["Qui ?", text]]


def test_a_call_in_one_piece(serve: Serve) -> None:
    """The paths of older Gradios, and those that the old front end falls back to."""
    with Upstream(upstream.answers("sive")) as host:
        served = serve(routed(host))
        for path in ("predict///chat_function", "predict/chat_function", "run/predict", "api/predict"):
            for prefix in (API, ""):
                answer = post(served, f"{prefix}/{path}", {"data": ASKED})
                assert answer.json()["data"] == ["sive", [["Qui ?", "sive"]]], path
                assert answer.headers["x-sive-backend"] == "b0"


def test_an_untouched_front_end_finds_its_answer(serve: Serve) -> None:
    """The way of the old pages' function: a call, its stream, and the call in one piece it falls back to.

    It looks for the last pair's second half, in ``process_completed`` or in the outputs.
    """
    with Upstream(upstream.answers("Deus ", "sive")) as host:
        served = serve(routed(host))
        for prefix in (API, ""):
            message = "Tu es Spinoza.\n\nContexte pertinent :\n\nQuestion de l'élève : Qui ?"
            event_id = call(served, [message, []], path=f"{prefix}/call//chat_function", session_hash="k2x")
            text = served.get(f"{prefix}/call//chat_function/{event_id}").text
            said = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]
            assert said[-1][1][-1][1] == "Deus sive"
            whole = post(served, f"{prefix}/predict///chat_function", {"data": [message, []]}).json()
            assert whole["data"][1][-1][1] == "Deus sive"


def test_named_arguments(serve: Serve) -> None:
    """``call/v2``, in any order; one that is not there is refused."""
    with Upstream(upstream.answers("sive")) as host:
        served = serve(routed(host))
        asked = {"history": [["a", "b"]], "message": "Qui ?"}
        answer = post(served, f"{API}/call/v2/chat_function", asked)
        path = f"{API}/call/v2/chat_function/{answer.json()['event_id']}"
        assert events(served.get(path).text)[-1] == ("complete", ["sive", [["a", "b"], ["Qui ?", "sive"]]])
        assert post(served, f"{API}/call/v2/chat_function", asked | {"top_k": 1}).status_code == 422


def test_a_session_streams_edits(serve: Serve) -> None:
    """The place in the queue, the beginning, outputs and then edits, all of it, the end of the stream."""
    words = [f"mot{number} " for number in range(30)]

    async def slowly(exchange: upstream.Exchange) -> None:
        await exchange.head()
        for word in words:
            await exchange.event(upstream.chunk(exchange, {"content": word}))
            await asyncio.sleep(0.005)
        await exchange.event(upstream.chunk(exchange, {}, "stop"))
        await exchange.done()

    with Upstream(slowly) as host:
        served = serve(routed(host))
        event_id = call(served, path=f"{API}/queue/join", fn_index=0, session_hash="abc")
        said = session(served, "abc")
        kinds = [message["msg"] for message in said]
        assert kinds[:3] == ["estimation", "process_starts", "process_generating"]
        assert kinds[-2:] == ["process_completed", "close_stream"]
        assert kinds.count("process_generating") > 2
        assert {message["event_id"] for message in said[:-1]} == {event_id}
        growing = [message["output"]["data"] for message in said[2:-2]]
        text = growing[0][0] + "".join(edit[2] for ((edit,), _) in growing[1:])
        assert text == "".join(words)
        assert said[-2]["output"]["data"] == [text, [["Qui ?", text]]]
        assert said[-2]["output"]["sive"] == {"backend": "b0", "degraded": False}


def test_a_session_carries_several_calls(serve: Serve) -> None:
    """Calls of one session are answered at once on one stream, also one that joins later."""
    may = threading.Event()
    with Upstream(manners.held(may, upstream.answers("sive"))) as host:
        served = serve(routed(host))
        ids = {call(served, path=f"{API}/queue/join", fn_index=0, session_hash="abc") for _ in range(2)}
        url = f"{served.url}{API}/queue/data?session_hash=abc"
        with httpx2.stream("GET", url, timeout=30) as answer:
            pieces = answer.iter_text()
            said = next(pieces)
            ids.add(call(served, path=f"{API}/queue/join", fn_index=1, session_hash="abc"))
            may.set()
            said += "".join(pieces)
        done = [one["event_id"] for one in messages(said) if one["msg"] == "process_completed"]
        assert set(done) == ids
        assert len(done) == 3
        for event_id in ids:
            kinds = [one["msg"] for one in messages(said) if one["event_id"] == event_id]
            assert kinds[:2] == ["estimation", "process_starts"]
        assert messages(said)[-1]["msg"] == "close_stream"


def test_what_is_not_there_is_told_as_gradio_tells_it(serve: Serve) -> None:
    """Unknown calls and sessions are a last event, not a broken connection; an answer is read once."""
    with Upstream(upstream.answers("sive")) as host:
        served = serve(routed(host))
        event_id = call(served)
        assert events(stream(served, event_id).text)[-1][0] == "complete"
        assert events(stream(served, event_id).text) == [("error", "404: Not Found")]
        assert events(stream(served, "nope").text) == [("error", "404: Not Found")]
        (only,) = session(served, "nope")
        assert (only["msg"], only["session_not_found"]) == ("unexpected_error", True)


BAD = [
    ("call/nope", {"data": ASKED}, 404, "//chat_function"),
    ("call/chat_function", {"data": []}, 422, "message: "),
    ("call/chat_function", {"data": "x"}, 422, "data: "),
    ("call/chat_function", {}, 422, "data: "),
    ("call/chat_function", {"data": ["x", "y"]}, 422, "history: "),
    ("call/chat_function", {"data": ["x", [], "m", 1]}, 422, "data: 4 arguments"),
    ("call/chat_function", b"{", 400, "not valid JSON"),
    ("queue/join", {"data": ASKED, "fn_index": 0}, 400, "Session hash not found."),
    ("queue/join", {"data": ASKED, "fn_index": 7, "session_hash": "s"}, 404, "fn_index 7"),
    ("queue/join", {"data": ASKED, "fn_index": "x", "session_hash": "s"}, 404, "fn_index x"),
    ("cancel", b"x" * 10_001, 413, "larger than 10000"),
    ("call/chat_function", b'{"data": ["' + b"x" * 10_000_001 + b'"]}', 413, "larger than 10000000"),
]


def test_wrong_calls_are_refused_at_once(serve: Serve) -> None:
    """A ``detail`` that both clients show, with an honest status; no backend is asked."""
    with Upstream(upstream.answers("no")) as host:
        served = serve(routed(host))
        for path, body, status, said in BAD:
            answer = post(served, f"{API}/{path}", body)
            assert answer.status_code == status, (path, str(body)[:80], answer.text)
            assert said in str(answer.json()["detail"])
        answer = post(served, f"{API}/run/chat_function", {"data": ["x", 5]})
        assert (answer.status_code, answer.json()["title"]) == (422, "Error")
        assert host.seen == []
        assert "Traceback" not in served.output.read_text()


def test_a_function_has_its_model_and_its_philosopher(serve: Serve) -> None:
    """Configured names; a third argument names another model, and one that nobody serves is refused."""
    functions = """
[[compat.functions]]
name = "chat_bergson"
model = "other"
[[compat.functions]]
name = "/chat_function"
philosopher = true
"""
    with Upstream(upstream.answers("one")) as host, Upstream(upstream.answers("two")) as second:
        other = f'[[backend]]\nname = "o"\nurl = "{second.url}"\nprobe = "passive"\n'
        route = '[model.other]\nroute = [{ backend = "o", model = "x" }]\n'
        served = serve(routed(host, more=other) + route + functions)
        path = f"{API}/run"
        assert post(served, f"{path}/chat_bergson", {"data": ASKED}).json()["data"][0] == "two"
        assert post(served, f"{path}/chat_function", {"data": ASKED}).json()["data"][0] == "one"
        assert post(served, f"{path}/chat_function", {"data": [*ASKED, "Other"]}).json()["data"][0] == "two"
        unknown = post(served, f"{path}/chat_function", {"data": [*ASKED, "hegel"]})
        assert (unknown.status_code, unknown.json()["error"]) == (
            404,
            "there is no philosopher 'hegel'; known are m, other",
        )
        info = served.get(f"{API}/info").json()["named_endpoints"]
        assert list(info) == ["/chat_bergson", "//chat_function", "/chat_function"]
        named = [parameter["parameter_name"] for parameter in info["//chat_function"]["parameters"]]
        assert named == ["message", "history", "philosopher"]


def test_a_backend_that_dies_in_the_middle_is_carried_on(serve: Serve) -> None:
    """The text goes on where it was, and the last message says that it is another voice."""
    with Upstream(upstream.cuts_after(3, with_reset=True)) as host:
        served = serve(routed(host, last=LOCAL_LAST))
        call(served, path=f"{API}/queue/join", fn_index=0, session_hash="abc")
        last = session(served, "abc")[-2]
        assert (last["msg"], last["success"]) == ("process_completed", True)
        assert last["output"]["data"][0].startswith("w0 w1 w2 ")
        assert len(last["output"]["data"][0]) > len("w0 w1 w2 ")
        assert last["output"]["sive"]["degraded"] is True


def test_an_answer_that_nobody_carries_on_ends_in_an_error(serve: Serve) -> None:
    """In both streams, with Gradio's keys and no others, after what was said."""
    with Upstream(upstream.cuts_after(3, with_reset=True)) as host:
        served = serve(routed(host))
        *said, (name, problem) = events(stream(served, call(served)).text)
        assert (name, problem.keys()) == ("error", {"error", "duration", "visible", "title"})
        assert "broke off" in problem["error"]
        assert all(name == "generating" for name, _ in said)
        call(served, path=f"{API}/queue/join", fn_index=0, session_hash="abc")
        last = session(served, "abc")[-2]
        assert (last["msg"], last["success"]) == ("process_completed", False)
        assert last["output"].keys() == problem.keys()


def test_a_silent_backend_shows_heartbeats(tmp_path: Path) -> None:
    """Whoever waits longer than that sees life, and what comes later is not lost by it."""
    may = threading.Event()

    async def work() -> None:
        async with serving(tmp_path, host) as gateway:
            jobs = Jobs()
            job = _job(gateway)
            jobs.add(job)
            reader = jobs.read_session(job.session)
            assert reader is not None
            assert await reader.next(5) is not None  # that it has started
            assert await reader.next(0.05) is None
            may.set()
            said = []
            while not reader.is_over:
                said.append(await reader.next(5))
            assert [type(one[1]) for one in said if one is not None] == [Grown, Done]

    with Upstream(manners.held(may, upstream.answers("late"))) as host:
        on_a_loop(work)


def test_a_client_that_leaves_cancels(serve: Serve) -> None:
    """In both streams; and nothing of it stays."""
    with Upstream(upstream.talks_forever) as host:
        served = serve(routed(host))
        for number, path in enumerate(("call", "session")):
            if path == "call":
                url = f"{served.url}{API}/call//chat_function/{call(served)}"
            else:
                call(served, path=f"{API}/queue/join", fn_index=0, session_hash="abc")
                url = f"{served.url}{API}/queue/data?session_hash=abc"
            with httpx2.stream("GET", url, timeout=30) as answer:
                text = ""
                for piece in answer.iter_text():
                    text += piece
                    if "generating" in text:
                        break
            until(lambda number=number: host.seen[number].left_at, what="the upstream connection closed")
        assert session(served, "abc")[0]["msg"] == "unexpected_error"
        until(lambda: "sive_requests_in_flight 0.0" in served.get("/metrics").text)
        assert "Traceback" not in served.output.read_text()


def test_a_call_that_is_cancelled_ends_with_what_was_said(serve: Serve) -> None:
    """By its id, without a key; another id ends nothing."""
    with Upstream(upstream.talks_forever) as host:
        served = serve(routed(host), SIVE_API_KEYS="sk-one")
        key = {"authorization": "Bearer sk-one"}
        asked = {"data": ASKED, "fn_index": 0, "session_hash": "abc"}
        event_id = post(served, f"{API}/queue/join", asked, **key).json()["event_id"]
        url = f"{served.url}{API}/queue/data?session_hash=abc"
        with httpx2.stream("GET", url, timeout=30, headers=key) as answer:
            pieces = answer.iter_text()
            said = next(pieces)
            while "generating" not in said:
                said += next(pieces)
            for wrong in ("nope", None, ["x"]):
                assert post(served, f"{API}/cancel", {"event_id": wrong}).json() == {"success": True}
            cancel = {"event_id": event_id, "session_hash": "other", "fn_index": 0}
            assert post(served, f"{API}/cancel", cancel).json() == {"success": True}
            said += "".join(pieces)
        last = messages(said)[-2]
        assert (last["msg"], last["success"]) == ("process_completed", True)
        assert last["output"]["data"][0].startswith("word ")
        until(lambda: host.seen[0].left_at, what="the upstream connection closed")
        assert post(served, f"{API}/reset", {"event_id": event_id}).json() == {"success": True}


def test_nobody_reads_another_keys_answers(serve: Serve) -> None:
    """A session hash is easy to guess: it counts only with the key that the call came with."""
    with Upstream(upstream.answers("sive")) as host:
        served = serve(routed(host), SIVE_API_KEYS="sk-one,sk-two")
        mine, theirs = ({"authorization": f"Bearer sk-{name}"} for name in ("one", "two"))
        asked = {"data": ASKED, "fn_index": 0, "session_hash": "abc"}
        event_id = post(served, f"{API}/queue/join", asked, **mine).json()["event_id"]
        assert session(served, "abc", **theirs)[0]["msg"] == "unexpected_error"
        assert events(stream(served, event_id, **theirs).text) == [("error", "404: Not Found")]
        other = {"x-api-key": "sk-two"}
        assert session(served, "abc", **other)[0]["msg"] == "unexpected_error"
        for empty in ("authorization", "x-hf-authorization"):
            nobody = {empty: "", **other}
            assert session(served, "abc", **nobody)[0]["msg"] == "unexpected_error"
            assert events(stream(served, event_id, **nobody).text) == [("error", "404: Not Found")]
        assert session(served, "abc", **mine)[-2]["success"] is True
        assert post(served, f"{API}/queue/join", asked).status_code == 401


def test_a_key_is_the_same_caller_however_it_is_written(serve: Serve) -> None:
    """In any of the headers that carry one; a call made with an empty header is not everybody's either."""
    with Upstream(upstream.answers("sive")) as host:
        served = serve(routed(host), SIVE_API_KEYS="sk-one,sk-two")
        asked = {"data": ASKED, "fn_index": 0, "session_hash": "abc"}
        for made, read in (
            ({"authorization": "", "x-api-key": "sk-one"}, {"authorization": "Bearer sk-one"}),
            ({"x-hf-authorization": "Bearer sk-one"}, {"authorization": "bearer  sk-one"}),
        ):
            post(served, f"{API}/queue/join", asked, **made)
            assert session(served, "abc", **{"x-api-key": "sk-two"})[0]["msg"] == "unexpected_error"
            assert session(served, "abc", **read)[-2]["success"] is True


def test_a_stream_without_a_key_is_read_where_none_is_needed(serve: Serve) -> None:
    """Older clients bring their token to the call and none to its stream; so does a page's EventSource."""
    with Upstream(upstream.answers("sive")) as host:
        served = serve(routed(host))
        asked = {"data": ASKED, "fn_index": 0, "session_hash": "abc"}
        token = {"authorization": "Bearer hf_mine"}
        event_id = post(served, f"{API}/queue/join", asked, **token).json()["event_id"]
        assert session(served, "abc")[-2]["event_id"] == event_id
        event_id = post(served, f"{API}/call/chat_function", asked, **token).json()["event_id"]
        assert events(stream(served, event_id).text)[-1][0] == "complete"


def test_a_server_that_stops_finishes_what_is_read(serve: Serve) -> None:
    """SIGTERM lets an answer end, and then the stream."""
    may = threading.Event()

    async def slowly(exchange: upstream.Exchange) -> None:
        await exchange.head()
        await exchange.event(upstream.chunk(exchange, {"content": "one "}))
        await asyncio.to_thread(may.wait)
        await exchange.event(upstream.chunk(exchange, {"content": "two"}))
        await exchange.event(upstream.chunk(exchange, {}, "stop"))
        await exchange.done()

    with Upstream(slowly) as host:
        served = serve(routed(host))
        url = f"{served.url}{API}/call//chat_function/{call(served)}"
        with httpx2.stream("GET", url, timeout=30) as answer:
            pieces = answer.iter_text()
            said = next(pieces)
            served.process.send_signal(signal.SIGTERM)
            until(lambda: "stopping: 1 still" in served.output.read_text(), what="the drain")
            may.set()
            said += "".join(pieces)
        assert events(said)[-1] == ("complete", ["one two", [["Qui ?", "one two"]]])
        assert served.process.wait(20) == 0


def test_a_server_that_will_not_wait_says_so(serve: Serve) -> None:
    """When the drain is over the stream ends in an error event."""
    with Upstream(upstream.talks_forever) as host:
        served = serve(routed(host, more="[gateway]\ndrain_s = 0.3\n"))
        url = f"{served.url}{API}/call//chat_function/{call(served)}"
        with httpx2.stream("GET", url, timeout=30) as answer:
            pieces = answer.iter_text()
            said = next(pieces)
            served.process.send_signal(signal.SIGTERM)
            said += "".join(pieces)
        name, problem = events(said)[-1]
        assert (name, "stopping" in problem["error"]) == ("error", True)
        assert served.process.wait(20) == 0


def _job(gateway: Gateway, *, size: int = 10, caller: str = "") -> Job:
    made = turn(FunctionSettings(name="chat"), ASKED)
    answer = Answer(gateway, Question("m", HI), {}, stream=True)
    return Job(f"id{id(answer)}", ("s", caller), made, answer, size=size)


def test_an_answer_that_nobody_reads_is_given_up(tmp_path: Path) -> None:
    """After a while the call is forgotten, and its backend let go; one that is read is not."""

    async def work() -> None:
        async with serving(tmp_path, host) as gateway:
            jobs = Jobs(unread_s=0.05)
            unread, read = _job(gateway), _job(gateway)
            jobs.add(unread)
            jobs.add(read)
            assert jobs.read_one(read.event_id, "") is read
            await seen(lambda: any(one.left_at for one in host.seen), "the backend let go")
            assert jobs.find(unread.event_id) is None
            assert jobs.find(read.event_id) is read
            assert len(gateway.running) == 1

    with Upstream(upstream.talks_forever) as host:
        on_a_loop(work)


@pytest.mark.parametrize("limits", [{"max_jobs": 2}, {"max_bytes": 25}], ids=["number", "bytes"])
def test_calls_are_bounded(tmp_path: Path, limits: dict[str, int]) -> None:
    """One too many is a 503, which clients know as a full queue, until another is over."""

    async def work() -> None:
        async with serving(tmp_path, host) as gateway:
            jobs = Jobs(**limits)
            first, second = _job(gateway), _job(gateway)
            for job in (first, second):
                jobs.check_room(10, "")
                jobs.add(job)
            with pytest.raises(RequestError) as caught:
                jobs.check_room(10, "")
            assert caught.value.status == 503
            assert jobs.read_one(first.event_id, "") is first
            jobs.over(first)
            jobs.check_room(10, "")

    with Upstream(upstream.talks_forever) as host:
        on_a_loop(work)


@pytest.mark.parametrize("limits", [{"max_jobs": 6}, {"max_bytes": 60}], ids=["number", "bytes"])
def test_one_caller_leaves_room_for_the_others(tmp_path: Path, limits: dict[str, int]) -> None:
    """It holds no more than it leaves, so whoever comes next always finds some."""

    async def work() -> None:
        async with serving(tmp_path, host) as gateway:
            jobs = Jobs(**limits)
            held = []
            for caller in "aaaaabbbbbccccc":
                try:
                    jobs.check_room(10, caller)
                except RequestError:
                    continue
                jobs.add(_job(gateway, caller=caller))
                held.append(caller)
            assert held == ["a", "a", "a", "b", "b", "c"]

    with Upstream(upstream.talks_forever) as host:
        on_a_loop(work)


def test_a_full_key_is_no_full_door(serve: Serve) -> None:
    """One key's calls that nobody reads are refused at last, and another key's are not."""
    with Upstream(upstream.answers("sive")) as host:
        served = serve(routed(host), SIVE_API_KEYS="sk-one,sk-two")
        large = {"data": ["Qui ?", [["x" * 9_000_000, ""]]]}
        path = f"{API}/call/chat_function"
        spelt = [f"{scheme} sk-one" for scheme in ("Bearer", "bearer", "Bearer ", "BEARER", "Bearer  ")]
        statuses = [post(served, path, large, authorization=one).status_code for one in spelt]
        assert statuses == [200, 200, 200, 200, 503]
        answer = post(served, path, large, authorization="Bearer sk-two")
        assert answer.status_code == 200, answer.text


def stalled(served: Served) -> socket.socket:
    """A reader of one call, whose answer is larger than what the connection keeps, that never reads."""
    event_id = call(served, ["Qui ?", [["x" * 6_000_000, ""]]])
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect(("127.0.0.1", served.port))
    path = f"{API}/call//chat_function/{event_id}"
    reader.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    return reader


def test_a_reader_that_never_reads_is_let_go(serve: Serve) -> None:
    """After the time that a caller may take nothing, connection and call are free, and nothing is broken."""
    with Upstream(upstream.answers("sive")) as host:
        served = serve(routed(host, more="[gateway]\ndeadline_s = 1\n"))
        with stalled(served) as reader:
            port = reader.getsockname()[1]

            def is_connected() -> bool:
                connections = psutil.Process(served.process.pid).net_connections("tcp")
                return any(one.raddr and one.raddr.port == port for one in connections)

            until(is_connected, what="the connection")
            until(lambda: not is_connected(), what="the connection ended")
            assert served.stop() == 0
        said = served.output.read_text()
        assert "Traceback" not in said
        assert "ERROR" not in said


def test_a_reader_that_never_reads_does_not_break_the_stop(serve: Serve) -> None:
    """Its connection ends with the drain, and the log has no traceback."""
    with Upstream(upstream.answers("sive")) as host:
        served = serve(routed(host, more="[gateway]\ndrain_s = 0.3\n"))
        with stalled(served):
            until(lambda: host.seen and "sive_requests_in_flight 0.0" in served.get("/metrics").text)
            assert served.stop() == 0
        said = served.output.read_text()
        assert "Traceback" not in said
        assert "ERROR" not in said


def test_a_reader_never_waits_for_a_call_that_broke(tmp_path: Path) -> None:
    """What nobody expected is an error of ours, told and logged."""

    async def work() -> None:
        async with serving(tmp_path, host) as gateway:
            jobs, job = Jobs(), _job(gateway)
            job.answer.texts = None  # type: ignore[assignment,method-assign]
            jobs.add(job)
            reader = jobs.read_session(job.session)
            assert reader is not None
            updates = [await reader.next(5), await reader.next(5)]
            assert isinstance(updates[1][1], Failed)  # type: ignore[index]
            assert reader.is_over

    with Upstream(upstream.talks_forever) as host:
        on_a_loop(work)
