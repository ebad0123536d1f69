"""CORS: what a browser is told, on every page, answer and error; and what others are not."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.conftest import Serve, launch
from tests.lab import upstream
from tests.lab.upstream import Upstream, answers
from tests.test_gateway import HI, routed

PAGE = "https://page.example"
BASICS = "authorization,content-type,x-request-id,x-sive-require,x-stainless-lang,x-stainless-retry-count"
PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/models", "/health", "/nowhere")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway with keys that one page may call."""
    with Upstream(answers("Bonjour")) as host:
        config = routed(host, more=f'[gateway]\ncors_origins = ["{PAGE}", "http://localhost:8888"]\n')
        folder = tmp_path_factory.mktemp("cors")
        with launch(folder, config, SIVE_API_KEYS="k") as served:
            yield served.url


def preflight(url: str, origin: str, headers: str = BASICS) -> httpx2.Response:
    """What a browser sends before a POST with such headers; it shows no key."""
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": headers,
    }
    return httpx2.options(url, headers=asked, timeout=10)


def test_a_preflight_is_answered_without_a_key(url: str) -> None:
    """Methods, headers and for how long; on hot paths, pages and what is not there."""
    for path in PATHS:
        told = preflight(url + path, PAGE)
        assert told.status_code == 204
        assert told.headers["access-control-allow-origin"] == PAGE
        assert told.headers["access-control-allow-methods"] == "GET, POST"
        assert set(told.headers["access-control-allow-headers"].split(", ")) == set(BASICS.split(","))
        assert int(told.headers["access-control-max-age"]) >= 600
        assert "Origin" in told.headers["vary"]
        assert "access-control-allow-credentials" not in told.headers


def test_a_header_that_nobody_needs_is_not_allowed(url: str) -> None:
    """Only what SDKs and sive use: a browser sends nothing else."""
    told = preflight(
        url + PATHS[0], PAGE, "authorization,cookie2,x-forwarded-for,x-api-key,anthropic-version"
    )
    allowed = told.headers["access-control-allow-headers"]
    assert allowed == "anthropic-version, authorization, x-api-key"


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "https://page.example.evil.org",
        "https://evil-page.example",
        "http://page.example",
        "https://page.example:444",
        "https://PAGE.example",
        "https://page.example/",
        "",
    ],
)
def test_another_origin_is_not_let_in(origin: str, url: str) -> None:
    """Exactly the origins that are named, and ``null`` is nobody."""
    told = preflight(url + PATHS[0], origin)
    assert told.status_code == 403
    read = httpx2.get(f"{url}/health", headers={"origin": origin}, timeout=10)
    asked = httpx2.post(url + PATHS[0], headers={"origin": origin}, json={}, timeout=10)
    for answer in (told, read, asked):
        assert "access-control-allow-origin" not in answer.headers
        assert "Origin" in answer.headers["vary"]


def test_every_answer_may_be_read_by_the_page(url: str) -> None:
    """Answers, streams, pages, 401s, 404s and wrong requests."""
    headers = {"origin": PAGE, "authorization": "Bearer k"}
    chat = {"model": "m", "messages": HI}
    got = [
        httpx2.post(url + PATHS[0], headers=headers, json=chat, timeout=10),
        httpx2.post(url + PATHS[0], headers=headers, json=chat | {"stream": True}, timeout=10),
        httpx2.post(f"{url}/v1/responses", headers=headers, json={"model": "m", "input": "hi"}, timeout=10),
        httpx2.post(f"{url}/v1/embeddings", headers=headers, json={"model": "m", "input": "hi"}, timeout=10),
        httpx2.post(url + PATHS[0], headers={"origin": PAGE}, json=chat, timeout=10),
        httpx2.post(url + PATHS[0], headers=headers, content=b"{", timeout=10),
        *(
            httpx2.get(url + path, headers=headers, timeout=10)
            for path in ("/v1/models", "/health", "/nowhere")
        ),
        httpx2.get(f"{url}/v1/models", headers={"origin": PAGE}, timeout=10),
    ]
    assert [one.status_code for one in got] == [200, 200, 200, 503, 401, 400, 200, 200, 404, 401]
    for answer in got:
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["vary"].lower().count("origin") == 1
        exposed = answer.headers["access-control-expose-headers"]
        assert {"x-request-id", "x-sive-backend", "x-sive-degraded", "x-sive-attempts", "retry-after"} <= set(
            exposed.split(", ")
        )


def test_an_answer_to_nobodys_page_may_not_be_kept_for_a_page(url: str) -> None:
    """A cache between us must not give a page what was answered to curl."""
    key = {"authorization": "Bearer k"}
    for answer in (
        httpx2.get(f"{url}/health", timeout=10),
        httpx2.post(url + PATHS[0], headers=key, json={"model": "m", "messages": HI}, timeout=10),
    ):
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-origin" not in answer.headers


def test_everybodys_page(serve: Serve) -> None:
    """``*`` lets all pages in, files on a disk too."""
    with Upstream(upstream.says(503)) as host:
        served = serve(routed(host, more='[gateway]\ncors_origins = ["*"]\n'))
        for origin in (PAGE, "null"):
            assert preflight(served.url + PATHS[0], origin).headers["access-control-allow-origin"] == "*"
            asked = {"model": "m", "messages": HI}
            failed = httpx2.post(served.url + PATHS[0], headers={"origin": origin}, json=asked, timeout=10)
            assert (failed.status_code, failed.headers["access-control-allow-origin"]) == (503, "*")


def test_without_cors_nothing_is_said_of_it(serve: Serve) -> None:
    """A gateway that no page is to call."""
    served = serve()
    told = preflight(served.url + PATHS[0], PAGE)
    assert told.status_code == 405
    assert not [name for name in told.headers if name.startswith("access-control")]
