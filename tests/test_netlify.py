"""The folder for Netlify before a real gateway: its three ways, the drop-in, and no secret told."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import ROOT, Served, clean_environment, launch, until
from tests.lab import gradio_apps, manners, upstream
from tests.lab.upstream import Exchange, Upstream
from tests.test_gateway import routed

SITE = ROOT / "clients" / "netlify"
CALLERS = ROOT / "tests" / "callers"
PLACES = ROOT / ".venv-callers"
KEY, SECRET = "the-key-of-the-site", "the-secret-that-signs-tokens-" * 2
HI = [{"role": "user", "content": "Qu'est-ce que la joie ?"}]
IN_CI = os.environ.get("CI") == "true"

pytestmark = pytest.mark.skipif(not IN_CI and shutil.which("node") is None, reason="node is not installed")


@dataclass
class Site:
    """A site that is being served on this machine."""

    url: str

    def get(self, path: str) -> httpx2.Response:
        """As its page does."""
        return httpx2.get(self.url + path, headers={"sec-fetch-site": "same-origin"}, timeout=30)

    def post(self, path: str, body: Any = None, **headers: str) -> httpx2.Response:
        """As its page does."""
        return httpx2.post(self.url + path, json=body, headers={"origin": self.url, **headers}, timeout=60)

    def ask(self, path: str = "/v1/chat/completions", **body: Any) -> httpx2.Response:
        """A streamed question."""
        return self.post(path, {"model": "spinoza", "messages": HI, "stream": True, **body})


@contextlib.contextmanager
def running(command: list[str], folder: Path, seconds: float = 30, **environment: str) -> Iterator[str]:
    """A program that prints the URL where it listens; ended with the block."""
    output = folder / f"output-{time.monotonic_ns()}.txt"
    env = clean_environment(**environment)
    with output.open("w") as out:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT)
    found = re.compile(r"(http://127\.0\.0\.1:\d+)")
    try:
        until(lambda: process.poll() is not None or found.search(output.read_text()), seconds, "the URL")
        match = found.search(output.read_text())
        assert match, output.read_text()
        yield match.group(1)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def site(folder: Path, gateways: str, **environment: str) -> Iterator[Site]:
    """The folder served by its own development server."""
    given = {"SIVE_GATEWAY_URLS": gateways, "SIVE_API_KEY": KEY, "SIVE_TOKEN_SECRET": SECRET} | environment
    with running(["node", str(SITE / "dev" / "server.mjs"), "0"], folder, **given) as url:
        yield Site(url)


@contextlib.contextmanager
def gateway(folder: Path, config: str = "") -> Iterator[Served]:
    """A sive that wants the site's key or a token, and lets pages of any origin read."""
    config = f'[gateway]\ncors_origins = ["*"]\n{config}'
    with launch(folder, config, SIVE_API_KEYS=f"another,{KEY}", SIVE_TOKEN_SECRETS=SECRET) as served:
        yield served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what is started writes."""
    return tmp_path_factory.mktemp("netlify")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    """The packaged models on the CPU."""
    with gateway(folder) as one:
        yield one


@pytest.fixture(scope="module")
def page(folder: Path, served: Served) -> Iterator[Site]:
    """A site whose first gateway is gone; the second answers."""
    with site(folder, f"http://127.0.0.1:9, {served.url}/v1") as one:
        yield one


def events(response: httpx2.Response) -> list[dict[str, Any]]:
    """The payloads of a stream that ended as it should."""
    assert response.status_code == 200, response.text
    assert response.text.endswith("data: [DONE]\n\n"), response.text[-300:]
    lines = [line for line in response.text.split("\n\n") if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def text(chunks: list[dict[str, Any]]) -> str:
    """What they say."""
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def node(*command: str, **environment: str) -> Any:
    """What a program of Node's prints, as JSON."""
    done = subprocess.run(
        ["node", *command], env=clean_environment(**environment), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_its_own_tests_pass() -> None:
    """Every part alone, and the functions imported and called, with upstreams on real sockets."""
    files = sorted(str(path) for path in (SITE / "test").glob("*.test.mjs"))
    done = subprocess.run(
        ["node", "--test", "--test-timeout=30000", *files], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_a_question_is_streamed_from_the_gateway_that_is_there(page: Site, path: str) -> None:
    """By the edge function and by the streaming one; it says who speaks."""
    answer = page.ask(path)
    chunks = events(answer)
    assert len(text(chunks)) > 20
    assert len(chunks) > 5
    assert answer.headers["x-sive-backend"] == "local"
    assert answer.headers["x-sive-degraded"] == "true"
    assert chunks[0]["sive"]["degraded"] is True


def test_the_page_and_its_models_are_there(page: Site) -> None:
    """The files, and what the picker is fed with."""
    assert "<!doctype html>" in page.get("/").text
    assert page.get("/app/sive.mjs").headers["content-type"].startswith("text/javascript")
    for path in ("/v1/models", "/api/models"):
        assert [one["id"] for one in page.get(path).json()["data"]][:3] == ["spinoza", "bergson", "kant"]
    assert page.get("/ready").json()["ready"] is True
    for path in ("/../package.json", "/%2e%2e/package.json", "/.env", "/status", "/app"):
        assert page.get(path).status_code == 404


def test_no_secret_is_in_any_answer(page: Site, served: Served) -> None:
    """Not in a head, not in a body, not in a file of the page; neither is where the gateways are."""
    answers = [
        page.get(path) for path in ("/", "/ready", "/v1/models", "/v1/nothing", "/v1/chat/completions")
    ]
    answers += [page.ask(), page.ask("/api/chat"), page.ask(model="nobody"), page.ask(messages=7)]
    answers += [page.post("/api/token"), page.post("/v1/requests/x/cancel")]
    answers += [httpx2.post(f"{page.url}/v1/chat/completions", json={}, headers={"origin": "null"})]
    told = [f"{answer.headers} {answer.text}" for answer in answers]
    told += [path.read_text() for path in (SITE / "public").rglob("*") if path.is_file()]
    for secret in (KEY, SECRET, str(served.port)):
        assert not [one for one in told if secret in one]


def test_an_answer_in_one_piece_and_an_error_pass(page: Site) -> None:
    """The gateway's own words, and its own status."""
    whole = page.ask(stream=False)
    assert whole.json()["choices"][0]["message"]["content"]
    refused = page.ask(model="nobody")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
@pytest.mark.parametrize("way", ["leaves", "cancels"])
def test_who_stops_ends_the_work_of_the_backend(folder: Path, path: str, way: str) -> None:
    """The page closes the stream, or asks to cancel by its request id; nobody generates for nobody."""
    with (
        Upstream(upstream.talks_forever) as host,
        gateway(folder, routed(host)) as served,
        site(folder, served.url) as page,
    ):
        body = {"model": "m", "messages": HI, "stream": True}
        headers = {"origin": page.url, "x-request-id": "page-1"}
        with httpx2.stream("POST", page.url + path, json=body, headers=headers, timeout=30) as stream:
            lines = stream.iter_lines()
            assert any("content" in line for line in lines)
            if way == "cancels":
                base = "/v1" if path.startswith("/v1") else "/api"
                assert page.post(f"{base}/requests/page-1/cancel").json()["cancelled"] == 1
                assert any("request_cancelled" in line for line in lines)
        until(lambda: host.seen[-1].left_at is not None, what="the backend's end")


def test_an_answer_that_is_cut_by_the_wall_goes_on_by_itself(folder: Path) -> None:
    """The page's client asks for the rest, and the whole is what one unbroken answer would have been."""

    def stuck(exchange: Exchange) -> upstream.Manner:
        is_first = not exchange.body.get("continue_final_message")
        return manners.speaks(breaks=manners.silence, when=manners.after(6)) if is_first else manners.speaks()

    asked = {"model": "m", "temperature": 0}
    with Upstream(manners.speaks()) as host, gateway(folder, routed(host)) as served:
        with site(folder, served.url) as page:
            unbroken = text(events(page.ask("/api/chat", **asked)))
        host.manner = manners.chosen(stuck)
        with site(folder, served.url, SIVE_FUNCTION_WALL_S="2") as page:
            chunks = events(page.ask("/api/chat", **asked))
            assert chunks[-1]["sive"] == {"continue": True}
            assert 0 < len(text(chunks)) < len(unbroken)
            told = node(str(CALLERS / "page.mjs"), page.url, "/api/chat", "m", HI[0]["content"])
            assert told["finish"] == "stop"
            assert "".join(told["deltas"]) == unbroken


def test_the_model_of_this_cpu_carries_on_too(page: Site) -> None:
    """Asked for the rest of what it said, it says just that."""
    asked = {"model": "local", "temperature": 0}
    whole = text(events(page.ask("/api/chat", **asked)))
    at = whole.index(" ", len(whole) // 2)
    begun = [*HI, {"role": "assistant", "content": whole[:at]}]
    goes_on = {"continue_final_message": True, "add_generation_prompt": False}
    chunks = events(page.ask("/api/chat", **asked, **goes_on, messages=begun))
    assert chunks[0]["sive"]["dropped"] == []
    assert text(chunks) == whole[at:]


def test_a_page_asks_the_gateway_itself_with_a_token(folder: Path, served: Served) -> None:
    """Minted by the site's function, verified by the gateway: for its page, its models and nothing else."""
    scope = {"SIVE_TOKEN_MODELS": "kant", "SIVE_TOKEN_MINUTES": "1"}
    with site(folder, served.url, **scope) as page:
        told = page.post("/api/token").json()
        assert told["expires_in"] == 60
        mine = {"authorization": f"Bearer {told['token']}", "origin": page.url}

        def ask(model: str, **headers: str) -> httpx2.Response:
            body = {"model": model, "messages": HI, "stream": True}
            return httpx2.post(
                f"{served.url}/v1/chat/completions", json=body, headers=mine | headers, timeout=30
            )

        answer = ask("kant")
        assert text(events(answer))
        assert answer.headers["access-control-allow-origin"] == "*"
        assert ask("spinoza").status_code == 404
        assert ask("kant", origin="https://evil.example").json()["error"]["code"] == "token_origin"
        listed = served.get("/v1/models", headers=mine).json()["data"]
        assert [model["id"] for model in listed] == ["kant"]
        assert served.get("/status", headers=mine).status_code == 403
        preflight = {"origin": page.url, "access-control-request-method": "POST"}
        preflight["access-control-request-headers"] = "authorization, content-type, x-request-id"
        allowed = httpx2.options(f"{served.url}/v1/chat/completions", headers=preflight)
        assert allowed.status_code == 204
        assert page.post("/api/token", origin="https://evil.example").status_code == 403


def snb(*asked: str, **environment: str) -> Any:
    """What the drop-in tells an old site."""
    return node(str(CALLERS / "snb.mjs"), *asked, **environment)


def test_the_old_site_asks_the_gateway(served: Served) -> None:
    """With the variables of a new site, or with those it has had."""
    new = {"SIVE_GATEWAY_URLS": served.url, "SIVE_API_KEY": KEY}
    old = {
        "SNB_BACKEND_URL": served.url.removeprefix("http://"),
        "SNB_API_PREFIX": "/v1",
        "SIVE_API_KEY": KEY,
    }
    for environment in (new, old):
        told = snb("Spinoza", "Éthique III", "Qu'est-ce que la joie ?", **environment)
        assert len(told["told"]) > 3
        assert told["told"][-1][1] == told["streamed"] == "".join(delta for delta, _ in told["told"])
        assert told["whole"]


@pytest.fixture(scope="module")
def space(folder: Path) -> Iterator[str]:
    """A real Gradio app with the functions that Spaces have."""
    if not IN_CI and not gradio_apps.PYTHON.exists():
        pytest.skip(gradio_apps.MISSING)
    with gradio_apps.gradio_app(folder) as app:
        yield app.url.removeprefix("http://")


SAID = "Bonjour, l’œuvre est — à peu près — née 🌍\nici."


@pytest.mark.parametrize("prefix", ["/gradio_api", "gradio_api/", ""])
@pytest.mark.parametrize("name", ["/chat", "pair", "tuples"])
def test_the_old_site_asks_its_old_space(space: str, prefix: str, name: str) -> None:
    """A real Gradio app: cumulative text becomes deltas, and a prefix it does not have is corrected once."""
    told = snb("spinoza", "", "Dieu ?", SNB_BACKEND_URL=space, SNB_API_PREFIX=prefix, SNB_GRADIO_API=name)
    assert told["streamed"] == told["whole"] == SAID
    deltas = [delta for delta, _ in told["told"]]
    assert "".join(deltas) == SAID
    assert len(deltas) > 3


def test_a_function_with_a_slash_in_its_name_is_found(space: str) -> None:
    """The first Space's, which no path leads to: by its number, through the queue."""
    assert snb("spinoza", "", "Dieu ?", SNB_BACKEND_URL=space)["whole"] == SAID
    error = snb("spinoza", "", "?", SNB_BACKEND_URL=space, SNB_GRADIO_API="//nothing")["error"]
    assert "no function //nothing: it has /rank, //chat_function, /pair" in error["message"]


@pytest.mark.parametrize("name", ["/chat", "//chat_function"])
def test_an_old_space_that_fails_is_an_error(space: str, name: str) -> None:
    """Its own words when it has some, and the text so far."""
    for message, why in (("!quota", "exceeded your GPU quota"), ("!breaks", "does not say why")):
        error = snb("spinoza", "", message, SNB_BACKEND_URL=space, SNB_GRADIO_API=name)["error"]
        assert error["name"] == "SNBError"
        assert why in error["message"]
    broken = snb("spinoza", "", "!breaks off", SNB_BACKEND_URL=space, SNB_GRADIO_API="/chat")["error"]
    assert broken["text"].startswith("Bonjour")


def test_an_old_space_may_change_what_it_said(space: str) -> None:
    """Nothing was added then; the text is what counts."""
    told = snb("spinoza", "", "!rewrites", SNB_BACKEND_URL=space, SNB_GRADIO_API="/chat")["told"]
    assert ["", "No. Bonjour, "] in told


def test_the_gateway_stands_in_for_the_old_space(folder: Path) -> None:
    """The same site, unchanged, with the address of a sive: the gateway's door speaks Gradio's protocol."""
    with launch(folder) as served:
        told = snb("spinoza", "", "Qu'est-ce que la joie ?", SNB_BACKEND_URL=served.url)
        assert told["told"][-1][1] == told["streamed"]
        assert told["whole"]


@contextlib.contextmanager
def in_deno(folder: Path, gateways: str) -> Iterator[Site]:
    """The edge function in the runtime that Netlify runs it in, with the rights that it has there."""
    deno = PLACES / "deno" / "node_modules" / "@deno" / "linux-x64-glibc" / "deno"
    if not IN_CI and not deno.exists():
        pytest.skip("tests/install_callers.sh deno installs it")
    given = {
        "SIVE_GATEWAY_URLS": gateways,
        "SIVE_API_KEY": KEY,
        "DENO_DIR": str(folder),
        "DENO_NO_UPDATE_CHECK": "1",
    }
    command = [str(deno), "run", "--allow-env", "--allow-net=127.0.0.1", "--no-remote", "--quiet"]
    with running([*command, str(CALLERS / "edge.mjs")], folder, **given) as url:
        yield Site(url)


def test_the_edge_function_runs_in_deno(folder: Path, served: Served) -> None:
    """A stream, the models, the refusals, and no file of the machine is read."""
    with in_deno(folder, f"http://127.0.0.1:9,{served.url}") as page:
        answer = page.ask()
        assert len(text(events(answer))) > 20
        assert answer.headers["x-sive-backend"] == "local"
        assert page.get("/v1/models").json()["data"][0]["id"] == "spinoza"
        assert page.get("/ready").json()["ready"] is True
        assert page.get("/v1/nothing").json()["error"]["code"] == "unknown_url"
        foreign = page.post("/v1/chat/completions", {}, origin="https://evil.example")
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "foreign_origin")


def test_in_deno_a_page_that_leaves_ends_the_work(folder: Path) -> None:
    """The body is passed on by the runtime itself, and so is that nobody reads it any more."""
    with (
        Upstream(upstream.talks_forever) as host,
        gateway(folder, routed(host)) as served,
        in_deno(folder, served.url) as page,
    ):
        body, headers = {"model": "m", "messages": HI, "stream": True}, {"origin": page.url}
        url = f"{page.url}/v1/chat/completions"
        with httpx2.stream("POST", url, json=body, headers=headers, timeout=30) as stream:
            assert any("content" in line for line in stream.iter_lines())
        until(lambda: host.seen[-1].left_at is not None, what="the backend's end")


@pytest.fixture(scope="module")
def netlifys_own(folder: Path, served: Served) -> Iterator[Site]:
    """The folder in Netlify's own local runtime, offline."""
    place = PLACES / "netlify"
    node22 = place / "node_modules" / "node" / "bin" / "node"
    if not IN_CI and not node22.exists():
        pytest.skip("tests/install_callers.sh netlify installs it")
    copied = folder / "site"
    subprocess.run(["cp", "-r", str(SITE), str(copied)], check=True)
    given = {"SIVE_GATEWAY_URLS": served.url, "SIVE_API_KEY": KEY, "SIVE_TOKEN_SECRET": SECRET}
    given |= {"CI": "1", "NETLIFY_TELEMETRY_DISABLED": "1", "HOME": str(folder)}
    given["PATH"] = f"{node22.parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(node22), str(CALLERS / "netlify" / "dev.mjs"), str(place), str(copied)]
    with running(command, folder, 60, **given) as url:
        yield Site(url)


def test_the_functions_run_in_netlifys_own_runtime(netlifys_own: Site) -> None:
    """Bundled as they are deployed: files, a streamed answer, models, a token, a cancel, and refusals."""
    assert "<!doctype html>" in netlifys_own.get("/").text
    chunks = events(netlifys_own.ask("/api/chat"))
    assert len(text(chunks)) > 20
    assert chunks[0]["sive"]["backend"] == "local"
    assert netlifys_own.get("/api/models").json()["data"][0]["id"] == "spinoza"
    assert netlifys_own.post("/api/token").json()["token"].startswith("sive1.")
    assert netlifys_own.post("/api/requests/x/cancel").status_code == 404
    foreign = netlifys_own.post("/api/chat", {}, origin="https://evil.example")
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "foreign_origin")
