"""A real engine whose adapters are exchanged under callers: nobody notices but by the voice."""

import time
from collections.abc import Iterator

import httpx2
import pytest

from tests.lab.engines import VLLM, Pod
from tests.lab.swaps import (
    CHANGED,
    OTHER,
    VERSIONS,
    Crowd,
    change,
    changing_pod,
    listen,
    swap,
    wrong,
)

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not VLLM.is_file(), reason="no vLLM here: make engine"),
]

SWAPS = 12
CALLERS = 8


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """One engine for the whole file."""
    with changing_pod(tmp_path_factory.mktemp("changing")) as running:
        yield running


def test_versions_are_exchanged_and_nobody_hears_the_wrong_one(pod: Pod) -> None:
    """Under 16 callers: no answer fails, none is mixed, and after a change only the new version answers."""
    with httpx2.Client(timeout=120) as client:
        texts = {}
        for version in (*VERSIONS, VERSIONS[0]):
            assert change(pod, action="update", name=CHANGED, source=f"file:{version}").status_code == 200
            texts[version] = listen(client, pod, CHANGED).text
        other = listen(client, pod, OTHER).text
    assert len(set(texts.values())) == len(VERSIONS)
    crowd = Crowd(pod)
    crowd.start(**{CHANGED: CALLERS, OTHER: CALLERS})
    try:
        swaps = swap(pod, SWAPS)
        deadline = time.monotonic() + 60
        # Exchanges may be quicker than answers, and callers in step: both versions are to be heard.
        while len({one.text for one in crowd.heard[CHANGED]}) < len(VERSIONS) and time.monotonic() < deadline:
            swaps += swap(pod, 1, first=next(one for one in VERSIONS if one != swaps[-1].version))
    finally:
        crowd.stop()
    assert wrong(crowd.heard[CHANGED], swaps, texts) == []
    assert [one for one in crowd.heard[OTHER] if (one.is_complete, one.text) != (True, other)] == []
    said = {one.text for one in crowd.heard[CHANGED]}
    assert said == set(texts.values())


def test_a_bad_version_is_refused_while_the_old_one_goes_on(pod: Pod) -> None:
    """The answer says why, and the callers hear what they heard before."""
    with httpx2.Client(timeout=120) as client:
        before = listen(client, pod, CHANGED).text
        refused = change(pod, action="update", name=CHANGED, source="file:nowhere")
        assert refused.status_code == 400
        assert "nowhere" in refused.json()["error"]["message"]
        assert listen(client, pod, CHANGED).text == before


def test_an_unknown_name_never_reaches_the_engine(pod: Pod) -> None:
    """404 from the gateway; so is a version's own name, which only the engine knows."""
    engine_name = pod.engine_model(CHANGED)
    for name in ("nobody", engine_name):
        asked = {"model": name, "messages": [{"role": "user", "content": "?"}]}
        reply = httpx2.post(f"{pod.served.url}/v1/chat/completions", json=asked, timeout=20)
        assert reply.status_code == 404
        assert reply.json()["error"]["code"] == "model_not_found"


def test_adapters_come_and_go_while_the_engine_runs(pod: Pod) -> None:
    """Added, listed, answering; removed, and gone for callers at once."""
    added = change(pod, action="add", name="hegel", source="file:kant")
    assert added.status_code == 200, added.text
    with httpx2.Client(timeout=120) as client:
        assert listen(client, pod, "hegel").is_complete
    assert change(pod, action="remove", name="hegel").status_code == 200
    assert "hegel" not in [model["id"] for model in pod.served.get("/v1/models").json()["data"]]
    asked = {"model": "hegel", "messages": [{"role": "user", "content": "?"}]}
    gone = httpx2.post(f"{pod.served.url}/v1/chat/completions", json=asked, timeout=20)
    assert gone.status_code == 404


def test_who_has_no_admin_key_changes_nothing(pod: Pod) -> None:
    """Neither without a key nor with another."""
    for headers in ({}, {"authorization": "Bearer other"}):
        reply = httpx2.post(f"{pod.served.url}/admin/adapters", json={}, headers=headers, timeout=20)
        assert reply.status_code == 401
