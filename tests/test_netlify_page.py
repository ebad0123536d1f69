"""The page on a site of its own, in a real browser: each way to the gateway with the functions it needs."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Served, clean_environment, launch, until
from tests.lab import upstream
from tests.lab.browser import Visit, browser, need
from tests.lab.reciter import recites
from tests.lab.upstream import Upstream
from tests.test_netlify import KEY, SECRET, SITE, pytestmark, running
from tests.test_page import ask, asked, ends, pods, said

need()

__all__ = ["pytestmark"]  # where there is no node

WAYS = ("edge", "direct", "function")
ANSWER = "La joie est le passage de l'homme d'une moindre à une plus grande perfection. " * 3


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for the file."""
    with browser() as launched:
        yield launched


@pytest.fixture
def visit(chromium: Any) -> Iterator[Visit]:
    """A visitor whose browser has nothing to complain of."""
    visitor = Visit(chromium)
    yield visitor
    visitor.context.close()
    assert visitor.complaints == []


@contextmanager
def site(folder: Path, way: str, served: Served, **environment: str) -> Iterator[str]:
    """A copy of the folder whose page asks in this way; its URL."""
    copy = folder / "site"
    shutil.copytree(SITE, copy, ignore=shutil.ignore_patterns("node_modules", "test"))
    index = copy / "public" / "index.html"
    html = index.read_text().replace('"sive-api" content="edge"', f'"sive-api" content="{way}"')
    index.write_text(html.replace('"sive-gateway" content=""', f'"sive-gateway" content="{served.url}"'))
    assert f'content="{way}"' in index.read_text()
    env = clean_environment(
        SIVE_GATEWAY_URLS=served.url, SIVE_API_KEY=KEY, SIVE_TOKEN_SECRET=SECRET, **environment
    )
    with running(["node", str(copy / "dev" / "server.mjs"), "0"], folder, **env) as url:
        yield url


@contextmanager
def gateway(folder: Path, pod: Upstream) -> Iterator[Served]:
    """A sive before a pod, which wants the site's key or a token."""
    config = pods(pod, more='[gateway]\ncors_origins = ["*"]\n')
    with launch(folder, config, SIVE_API_KEYS=KEY, SIVE_TOKEN_SECRETS=SECRET) as served:
        yield served


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_streams_and_says_who_speaks(way: str, tmp_path: Path, visit: Visit) -> None:
    """With the key nowhere in the browser: what the page sends carries none, or a token of minutes."""
    sent: list[dict[str, str]] = []
    with (
        Upstream(recites(ANSWER, pause_s=0.01)) as pod,
        gateway(tmp_path, pod) as served,
        site(tmp_path, way, served) as url,
    ):
        page = visit.tab(f"{url}/")
        page.on("request", lambda request: sent.append(request.all_headers()))
        ask(page, "Qu'est-ce que la joie ?")
        ends(page)
        assert said(page) == [ANSWER.strip()]
        assert re.fullmatch(r"pod-a · \d+(\.\d)? s", page.inner_text(".badge"))
        assert "Kant" in page.inner_text("#picker")
    keys = {headers["authorization"] for headers in sent if "authorization" in headers}
    assert all(key.startswith("Bearer sive1.") for key in keys), keys
    assert bool(keys) == (way == "direct")


@pytest.mark.parametrize("way", WAYS)
def test_stopping_reaches_the_pod(way: str, tmp_path: Path, visit: Visit) -> None:
    """Through whatever stands between: the pod computes no more for a visitor who has gone."""
    with (
        Upstream(upstream.talks_forever) as pod,
        gateway(tmp_path, pod) as served,
        site(tmp_path, way, served) as url,
    ):
        page = visit.tab(f"{url}/")
        ask(page, "?")
        page.wait_for_selector(".turn[data-status=streaming]")
        page.click("#stop")
        until(lambda: asked(pod)[0].left_at is not None, what="the pod being left")
        assert page.inner_text(".turn .answer")


def test_an_answer_longer_than_the_wall_is_one_answer(tmp_path: Path, visit: Visit) -> None:
    """The function ends it when its time is up, and the page asks for the rest without a word of it lost."""
    with (
        Upstream(recites(ANSWER, pause_s=0.1)) as pod,
        gateway(tmp_path, pod) as served,
        site(tmp_path, "function", served, SIVE_FUNCTION_WALL_S="3") as url,
    ):
        page = visit.tab(f"{url}/")
        ask(page, "Qu'est-ce que la joie ?")
        ends(page)
        assert said(page) == [ANSWER.strip()]
        assert len(asked(pod)) > 1
