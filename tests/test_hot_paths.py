"""The hot paths over raw sockets, and answers that pass through whole: what the short ways must not lose."""

import json
import socket

import httpx2
import pytest
from sive.protocol import loads, with_model

from tests.conftest import Serve, until
from tests.lab import upstream
from tests.lab.upstream import Manner, Upstream
from tests.test_gateway import HI, LOCAL_LAST, ask, routed

BODY = json.dumps({"model": "m", "messages": HI}).encode()
SPREAD = BODY.replace(b", ", b",\r\n\r\n")
"""Says the same, in lines."""

OFFER = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQ")


def unguarded(*hosts: Upstream, last: str = "", more: str = "") -> str:
    """A model whose answers pass through whole."""
    return routed(*hosts, last=last, more=more) + "guard_json = false\n"


def post(body: bytes = BODY, *lines: str, version: str = "1.1", path: str = "/v1/chat/completions") -> bytes:
    """A request as bytes."""
    head = [f"POST {path} HTTP/{version}", "host: x", f"content-length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


def talk(port: int, *sent: bytes, until_has: bytes) -> bytes:
    """Send, and read until something was seen or the server closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as caller:
        for piece in sent:
            caller.sendall(piece)
        got = b""
        while until_has not in got and (part := caller.recv(2**16)):
            got += part
        return got


def test_a_good_answer_passes_through_whole(serve: Serve) -> None:
    """Under the served name, with who spoke and its usage counted; asked for as it was, in one piece."""
    with Upstream(upstream.answers("Deus ", "sive")) as host:
        served = serve(unguarded(host))
        answer = ask(served)
        assert answer.json()["choices"][0]["message"]["content"] == "Deus sive"
        assert answer.json()["model"] == "m"
        assert answer.json()["sive"] == {
            "backend": "b0",
            "degraded": False,
            "resumed": False,
            "truncated": False,
            "dropped": [],
        }
        assert answer.headers["x-sive-attempts"] == "1"
        assert answer.headers["x-sive-backend"] == "b0"
        assert "stream" not in host.seen[0].body
        metrics = served.get("/metrics").text
        until(lambda: " m b0 200 " in served.output.read_text(), what="the line of the request")
    assert 'sive_requests_total{backend="b0",model="m",status="200"} 1.0' in metrics
    assert 'sive_tokens_total{backend="b0",kind="completion",model="m"} 2.0' in metrics
    assert "sive_requests_in_flight 0.0" in metrics


@pytest.mark.parametrize(
    ("raw", "sent"),
    [
        (b'{"model": "m", "messages": [ 1 ]}', b'{"model": "m0", "messages": [ 1 ]}'),
        (b'{"messages":["\\"model\\":\\"m\\""],"model"\n:\t"m" }', None),
        (b'{"metadata":{"model":"m"},"model":"m"}', None),
        (b'{"model":"m","model":"m"}', None),
        (b'{"mod\\u0065l":"m","metadata":{"model":"m"}}', None),
        (b'{"messages":["model"],"mod\\u0065l":"m"}', None),
        (b'{"model":"\\u006d"}', None),
    ],
)
def test_only_the_models_name_is_changed(raw: bytes, sent: bytes | None) -> None:
    """The caller's bytes go on where it is plain which they are; they say what the parsed body says."""
    found = with_model(raw, "m", "m0")
    if sent is not None:
        assert found == sent
    if found is not None:
        assert loads(found) == loads(raw) | {"model": "m0"}
    else:
        assert raw.count(b'"model"') != 1 or b"\\u006" in raw


EMPTY = {"id": "x", "model": "m0", "choices": []}


@pytest.mark.parametrize(
    ("manner", "reason"),
    [
        (upstream.resets, "reset"),
        (upstream.says(503), "http_503"),
        (upstream.html(502), "http_502"),
        (upstream.says(200, EMPTY), "malformed"),
        (upstream.stays_silent, "silent"),
    ],
)
def test_what_is_no_good_answer_is_the_chains(manner: Manner, reason: str, serve: Serve) -> None:
    """The next rung answers, and the failure is counted once; the first is not asked again for it."""
    with Upstream(manner) as first, Upstream(upstream.answers("Bonjour")) as second:
        served = serve(unguarded(first, second, more="[gateway]\nwhole_s = 0.5\n"))
        answer = ask(served)
        assert answer.json()["choices"][0]["message"]["content"] == "Bonjour"
        assert answer.headers["x-sive-backend"] == "b1"
        assert int(answer.headers["x-sive-attempts"]) == 1 + len(first.seen)
        metrics = served.get("/metrics").text
    assert f'sive_failovers_total{{backend="b0",reason="{reason}"}}' in metrics
    assert "sive_requests_in_flight 0.0" in metrics


def test_the_callers_own_error_passes_through(serve: Serve) -> None:
    """A 400 of the backend's is the answer, and nobody else is asked."""
    wrong = {"error": {"message": "no such field", "type": "invalid_request_error", "code": None}}
    with Upstream(upstream.says(400, wrong)) as host:
        served = serve(unguarded(host, last=LOCAL_LAST))
        answer = ask(served)
        assert answer.status_code == 400
        assert answer.json() == wrong
        assert len(host.seen) == 1


def test_a_caller_who_leaves_stops_the_backend_of_a_whole_answer(serve: Serve) -> None:
    """The upstream connection closes, and the request is counted as left."""
    with Upstream(upstream.stays_silent) as host:
        served = serve(unguarded(host))
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{served.url}/v1/chat/completions", json={"model": "m", "messages": HI}, timeout=0.3)
        until(lambda: host.seen[0].left_at, what="the upstream connection closed")
        until(lambda: 'model="m",status="499"} 1.0' in served.get("/metrics").text)


def test_a_whole_answer_can_be_cancelled(serve: Serve) -> None:
    """Its caller is told, and the backend's connection closes."""
    with Upstream(upstream.stays_silent) as host:
        served = serve(unguarded(host))
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as caller:
            caller.sendall(post(BODY, "x-request-id: one"))
            until(lambda: host.seen, what="the request")
            told = httpx2.post(f"{served.url}/v1/requests/one/cancel", timeout=10)
            assert told.json()["cancelled"] == 1
            assert b"request_cancelled" in caller.recv(2**16)
        until(lambda: host.seen[0].left_at, what="the upstream connection closed")


def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    """Hot and other pages mixed, many at once, refused ones among them."""
    with Upstream(upstream.answers("ok")) as host:
        served = serve(unguarded(host))
        page = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
        last = post(BODY, "x-request-id: last")
        sent = post(BODY, "x-request-id: first") + page + post(b"{}") * 300 + page + last
        got = talk(served.port, sent, until_has=b"x-request-id: last")
        order = [
            got.index(mark) for mark in (b"x-request-id: first", b'"object":"list"', b"x-request-id: last")
        ]
        assert order == sorted(order)
        assert got.count(b"HTTP/1.1 400") == 300
        assert got.count(b"HTTP/1.1 200") == 4


def test_a_body_may_come_in_pieces(serve: Serve) -> None:
    """Chunked, cut anywhere, and only after a 100 where the caller waits for one."""
    with Upstream(upstream.answers("ok")) as host:
        served = serve(unguarded(host))
        head = b"POST /v1/chat/completions?x=1 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        pieces = [b"%x\r\n%b\r\n" % (1, BODY[at : at + 1]) for at in range(len(BODY))]
        assert b'"ok"' in talk(served.port, head, *pieces, b"0\r\n\r\n", until_has=b'"ok"')
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as caller:
            whole = post(BODY, "Expect: 100-continue")
            caller.sendall(whole[: -len(BODY)])
            assert caller.recv(2**16) == b"HTTP/1.1 100 Continue\r\n\r\n"
            caller.sendall(BODY)
            assert caller.recv(2**16).startswith(b"HTTP/1.1 200")


def test_who_does_not_keep_alive_is_let_go(serve: Serve) -> None:
    """HTTP/1.0 and ``connection: close``: answered, told so, and closed."""
    with Upstream(upstream.answers("ok")) as host:
        served = serve(unguarded(host))
        for request in (post(version="1.0"), post(BODY, "Connection: close")):
            got = talk(served.port, request, until_has=b"nothing has this")
            assert b"connection: close" in got
            assert b'"ok"' in got


def test_an_oversized_body_is_refused_at_its_turn(serve: Serve) -> None:
    """By its declared length, before it is sent, and without a 100."""
    served = serve("[gateway]\nmax_body_bytes = 100\n")
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 101\r\n\r\n"
    assert talk(served.port, head, until_has=b"request_too_large").startswith(b"HTTP/1.1 413")
    got = talk(served.port, post(b"x" * 101), until_has=b"request_too_large")
    assert b"connection: close" in got


def test_a_page_that_is_named_may_read_answers(serve: Serve) -> None:
    """CORS headers on answers and errors of the hot paths, for the configured origin alone."""
    with Upstream(upstream.answers("ok")) as host:
        served = serve(unguarded(host, more='[gateway]\ncors_origins = ["https://page.example"]\n'))
        url = f"{served.url}/v1/chat/completions"
        for body, status in ({"model": "m", "messages": HI}, 200), ({}, 400):
            answer = httpx2.post(url, json=body, headers={"origin": "https://page.example"})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://page.example"
            assert "x-sive-backend" in answer.headers["access-control-expose-headers"]
        answer = httpx2.post(url, json={}, headers={"origin": "https://other.example"})
        assert "access-control-allow-origin" not in answer.headers


def test_an_offered_upgrade_is_not_taken(serve: Serve) -> None:
    """Some clients offer HTTP/2 with every request; they are answered as others are."""
    with Upstream(upstream.answers("ok")) as host:
        served = serve(routed(host))
        got = talk(served.port, post(BODY, *OFFER), until_has=b'"ok"')
    assert got.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("before", "body"), [(BODY, BODY), (SPREAD, BODY), (SPREAD, SPREAD)], ids=["plain", "behind", "within"]
)
def test_an_offer_of_a_later_request_is_not_taken(serve: Serve, before: bytes, body: bytes) -> None:
    """It may come in one piece with others, behind bodies and before one that hold carriage returns."""
    assert json.loads(SPREAD) == json.loads(BODY)
    with Upstream(upstream.answers("ok")) as host:
        served = serve(unguarded(host))
        last = post(body, "x-request-id: last", *OFFER)
        got = talk(served.port, post(before) + post(before) + last, until_has=b"x-request-id: last")
    assert got.count(b"HTTP/1.1 200") == 3


def test_an_offer_may_come_in_two_pieces(serve: Serve) -> None:
    """Wherever TCP cuts it."""
    request = post(BODY, "connection: Upgrade", "upgrade: h2c")
    began, ended = request.index(b"connection: Upgrade"), request.index(b"\r\n\r\n") + 5
    with Upstream(upstream.answers("ok")) as host:
        served = serve(unguarded(host))
        for cut in range(began, ended):
            with socket.create_connection(("127.0.0.1", served.port), timeout=20) as caller:
                caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                caller.sendall(request[:cut])
                assert served.get("/health").status_code == 200  # by now the first piece was read
                caller.sendall(request[cut:])
                got = b""
                while b'"ok"' not in got and (part := caller.recv(2**16)):
                    got += part
            assert got.startswith(b"HTTP/1.1 200"), cut


def test_a_body_that_begins_like_an_offer_is_left_alone(serve: Serve) -> None:
    """What stands in a body is the caller's, in a chunk of its own or in one piece, after an offer or not."""
    text = "\r\nupgrade: h2c\r\n\r\nupgrade: h2c\r\n"
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
    spread = b'{"model":\r\nupgrade: h2c\r\n\r\n'  # is no JSON, and the error must say where
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
    with Upstream(upstream.answers("ok")) as host:
        served = serve(routed(host))
        for offer in ("", "connection: Upgrade\r\nupgrade: h2c\r\n"):
            for said, wanted in ((body, b'"ok"'), (spread, b"at line 2 column 1")):
                chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(said), said)
                assert wanted in talk(served.port, f"{head}{offer}\r\n".encode() + chunked, until_has=wanted)
        assert [seen.body["messages"][0]["content"] for seen in host.seen] == [text] * 2


@pytest.mark.parametrize("offer", ["h2c", "websocket", "TLS/1.0, h2c"])
def test_whoever_offers_and_closes_or_only_reads_is_answered_too(serve: Serve, offer: str) -> None:
    """Pages without a body, the last request of a connection, and a thousand offers in one piece."""
    served = serve()
    lines = f"host: x\r\nconnection: Upgrade\r\nupgrade: {offer}\r\n"
    page = f"GET /health HTTP/1.1\r\n{lines}\r\n".encode()
    last = post(b"{}", "connection: upgrade, close", f"upgrade: {offer}")
    got = talk(served.port, page * 1000 + last, until_has=b"nothing has this")
    assert got.count(b"HTTP/1.1 200") == 1000
    assert got.count(b"HTTP/1.1 400") == 1
    assert b"connection: close" in got


def test_a_proxys_request_is_no_request(serve: Serve) -> None:
    """CONNECT is nothing but an offer: a 400, and the server stays up."""
    served = serve()
    got = talk(served.port, b"CONNECT example.org:443 HTTP/1.1\r\nhost: x\r\n\r\n", until_has=b"never")
    assert got.startswith(b"HTTP/1.1 400")
    assert "Traceback" not in served.output.read_text()


def test_a_head_without_end_is_refused(serve: Serve) -> None:
    """Whoever sends headers for ever is told so, key or not, and fills no memory."""
    with Upstream(upstream.answers("ok")) as host:
        served = serve(routed(host), SIVE_API_KEYS="k")
        lines = b"".join(b"x-%d: %s\r\n" % (number, b"y" * 1000) for number in range(200))
        got = talk(served.port, b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n", lines, until_has=b"\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 431")


def test_fields_of_another_endpoint_break_nothing(serve: Serve) -> None:
    """A completion with messages of any shape is a completion; the next on the line is answered too."""
    odd = json.dumps({"model": "m", "prompt": "hi", "messages": ["x"]}).encode()
    with Upstream(upstream.says(400)) as host:
        served = serve(routed(host))
        both = post(odd, path="/v1/completions") + post(odd, "connection: close", path="/v1/completions")
        got = talk(served.port, both, until_has=b"never")
    assert got.count(b"HTTP/1.1 400") == 2
    assert got.count(b"lab error") == 2


@pytest.mark.parametrize("stop", [None, ["END"]])
def test_one_piece_where_a_stream_was_asked_for_is_passed_over(serve: Serve, stop: list[str] | None) -> None:
    """Ids that only we asked for are not shown; text that was not looked through for stops is no answer."""
    whole = {
        "choices": [
            {"index": 0, "message": {"content": "a END b"}, "finish_reason": "stop", "token_ids": [1]}
        ]
    }
    with Upstream(upstream.says(200, whole)) as deaf, Upstream(upstream.answers("a ")) as host:
        served = serve(routed(deaf, host, more="").replace('name = "b0"', 'name = "b0"\nresume = "tokens"'))
        answer = ask(served, **({"stop": stop} if stop else {}))
    assert "token_ids" not in answer.text
    assert answer.headers["x-sive-backend"] == ("b1" if stop else "b0")
