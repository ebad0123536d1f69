"""A real `sive serve` before lab hosts that freeze, die and come back: who is asked, and who is told what."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.conftest import Serve, Served, until
from tests.lab import manners
from tests.lab.hosts import Hosts
from tests.lab.upstream import Exchange, Manner, Upstream
from tests.lab.voice import Voice

ASKED: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "Qu'est-ce que la joie ?"}],
    "temperature": 0,
    "max_tokens": 40,
}
CLOCKS = "[gateway]\nfirst_token_s = 0.6\nstall_s = 0.6\nhead_s = 0.3\nprobe_interval_s = 0.3\nrest_s = 0.5\n"


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Lab hosts on one loop."""
    with Hosts() as started:
        yield started


def routed(*backends: Upstream, more: str = "", model: str = "", clocks: str = CLOCKS) -> str:
    """A configuration whose model ``m`` goes through the hosts in order; ``more`` stands in each backend."""
    written = "".join(
        f'[[backend]]\nname = "b{number}"\nurl = "{host.url}"\n{more}\n'
        for number, host in enumerate(backends)
    )
    rungs = ", ".join(f'{{ backend = "b{number}", model = "lab" }}' for number in range(len(backends)))
    return f"{clocks}\n{written}\n[model.m]\nroute = [{rungs}]\n{model}\n"


def ask(served: Served, **more: Any) -> httpx2.Response:
    """One chat completion."""
    headers = more.pop("headers", {})
    url = f"{served.url}/v1/chat/completions"
    return httpx2.post(url, json=ASKED | more, headers=headers, timeout=30)


def rung(served: Served, number: int) -> dict[str, Any]:
    """What /status says of a rung."""
    found: dict[str, Any] = served.get("/status").json()["models"]["m"]["rungs"][number]
    return found


def metric(served: Served, name: str) -> float:
    """The sum of a metric's series."""
    lines = served.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_what_a_backend_serves_is_learned(serve: Serve, hosts: Hosts) -> None:
    """Weights and context come from its list of models, so that equal voices are known without being told."""
    one, two, other = (hosts.add(manners.speaks(), Voice(weights)) for weights in ("a", "a", "b"))
    served = serve(routed(one, two, other))
    until(lambda: all(rung(served, number)["weights"] for number in range(3)), what="all weights")
    assert [rung(served, number)["degraded"] for number in range(3)] == [False, False, True]
    assert rung(served, 0)["context_tokens"] == 4096
    listed = served.get("/v1/models").json()["data"][0]
    assert (listed["weights"], listed["max_model_len"]) == ("a", 4096)


def test_a_backend_that_freezes_is_left_alone_until_it_gives_a_token(serve: Serve, hosts: Hosts) -> None:
    """Its list of models still answers; no caller pays for finding out that it froze or woke."""
    first, second = (hosts.add(manners.speaks()) for _ in range(2))
    served = serve(routed(first, second))
    until(lambda: metric(served, "sive_probes_total") >= 2, what="the first probes")
    assert ask(served).headers["x-sive-backend"] == "b0"
    first.manner = manners.chosen(
        lambda exchange: manners.speaks() if exchange.seen.method == "GET" else manners.head_only
    )
    until(lambda: not rung(served, 0)["ready"], what="leaving b0 alone")
    assert "no first token" in rung(served, 0)["resting"]
    assert metric(served, 'sive_backend_open{backend="b0"') == 1
    answer = ask(served)
    assert answer.headers["x-sive-backend"] == "b1"
    assert answer.elapsed.total_seconds() < 0.5
    assert answer.headers["x-sive-attempts"] == "1"
    first.manner = manners.speaks()
    until(lambda: rung(served, 0)["ready"], what="using b0 again")
    assert ask(served).headers["x-sive-backend"] == "b0"


def test_probes_stay_away_while_callers_get_tokens(serve: Serve, hosts: Hosts) -> None:
    """Live traffic proves more than a probe does."""
    host = hosts.add(manners.speaks(breaks=manners.pause(1.5), when=manners.after(3)))
    served = serve(routed(host, clocks=CLOCKS.replace("stall_s = 0.6", "stall_s = 5")))
    until(lambda: metric(served, "sive_probes_total") >= 1, what="the first probe")
    began = time.monotonic()
    while time.monotonic() < began + 1.2:
        assert ask(served, max_tokens=2).status_code == 200
    assert metric(served, "sive_probes_total") <= 2


def test_a_passive_backend_is_never_probed(serve: Serve, hosts: Hosts) -> None:
    """Who bills by the token is only asked for callers; one of them tries it when it has rested."""
    billed, spare = hosts.add(manners.head_only), hosts.add(manners.speaks())
    served = serve(routed(billed, spare, more='probe = "passive"'))
    assert ask(served).headers["x-sive-backend"] == "b1"
    asked = len(billed.seen)
    assert asked == 1
    assert ask(served).headers["x-sive-backend"] == "b1"
    assert len(billed.seen) == asked
    billed.manner = manners.speaks()
    until(lambda: ask(served).headers["x-sive-backend"] == "b0", what="b0 again")
    assert not [seen for seen in billed.seen if seen.method == "GET"]


def test_a_full_backend_passes_on(serve: Serve, hosts: Hosts) -> None:
    """More than max_in_flight requests take the next rung, without waiting."""
    slow = hosts.add(manners.speaks(breaks=manners.pause(5), when=manners.after(2)))
    spare = hosts.add(manners.speaks())
    clocks = CLOCKS.replace("stall_s = 0.6", "stall_s = 20")
    served = serve(routed(slow, spare, more='max_in_flight = 1\nprobe = "passive"', clocks=clocks))
    with httpx2.stream(
        "POST", f"{served.url}/v1/chat/completions", json=ASKED | {"stream": True}, timeout=30
    ) as held:
        assert held.headers["x-sive-backend"] == "b0"
        assert ask(served).headers["x-sive-backend"] == "b1"
        assert rung(served, 0)["in_flight"] == 1
    until(lambda: rung(served, 0)["in_flight"] == 0, what="b0 free again")


def test_a_probe_leaves_the_only_place_to_a_caller(serve: Serve, hosts: Hosts) -> None:
    """A backend for one request at a time is asked while its probe still waits for a token."""

    def held(exchange: Exchange) -> Manner:
        return manners.head_only if exchange.body.get("max_tokens") == 1 else manners.speaks()

    host, spare = hosts.add(manners.chosen(held)), hosts.add(manners.speaks())
    clocks = CLOCKS.replace("first_token_s = 0.6", "first_token_s = 20")
    served = serve(routed(host, spare, more="max_in_flight = 1", clocks=clocks))
    until(lambda: host.seen, what="a probe")
    assert rung(served, 0)["in_flight"] == 0
    assert ask(served).headers["x-sive-backend"] == "b0"
    assert host.seen[0].left_at is None


def test_a_request_is_cancelled_by_its_id_and_its_key(serve: Serve, hosts: Hosts) -> None:
    """The stream ends in an error event and the backend is closed; another key finds nothing."""
    host = hosts.add(manners.speaks(breaks=manners.silence, when=manners.after(3)))
    clocks = CLOCKS.replace("stall_s = 0.6", "stall_s = 20")
    config = routed(host, more='probe = "passive"', clocks=clocks)
    served = serve(config, SIVE_API_KEYS="mine,other")
    mine, other = ({"authorization": f"Bearer {key}"} for key in ("mine", "other"))
    headers = mine | {"x-request-id": "my-1"}
    url = f"{served.url}/v1/chat/completions"
    cancel = f"{served.url}/v1/requests/my-1/cancel"
    with httpx2.stream("POST", url, json=ASKED | {"stream": True}, headers=headers, timeout=30) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert httpx2.post(cancel).status_code == 401
        assert httpx2.post(cancel, headers=other).status_code == 404
        said = httpx2.post(cancel, headers=mine)
        assert said.json() == {"id": "my-1", "cancelled": 1}
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "request_cancelled"
    until(lambda: host.seen[-1].left_at is not None, what="closing the backend")
    assert httpx2.post(cancel, headers=mine).status_code == 404
    assert 'status="499"} 1.0' in served.get("/metrics", headers=mine).text


def test_a_caller_who_leaves_closes_the_backend_at_once(serve: Serve, hosts: Hosts) -> None:
    """Within 50 ms, so that the GPU stops; measured from the caller's close to the host's end of file."""
    host = hosts.add(manners.speaks(breaks=manners.silence, when=manners.after(3)))
    clocks = CLOCKS.replace("stall_s = 0.6", "stall_s = 20")
    served = serve(routed(host, more='probe = "passive"', clocks=clocks))
    for _ in range(5):
        url = f"{served.url}/v1/chat/completions"
        with httpx2.stream("POST", url, json=ASKED | {"stream": True}, timeout=30) as answer:
            next(answer.iter_lines())
        until(lambda: host.seen[-1].left_at is not None, what="closing the backend")


def test_a_stop_lets_answers_finish_and_tells_those_that_do_not(serve: Serve, hosts: Hosts) -> None:
    """SIGTERM: nobody new is let in, a short answer ends well, a long one in an error event."""
    quick = hosts.add(manners.speaks(breaks=manners.pause(0.5), when=manners.after(3)))
    endless = hosts.add(manners.speaks(breaks=manners.silence, when=manners.after(3)))
    clocks = CLOCKS.replace("stall_s = 0.6", "stall_s = 20") + "drain_s = 1.5\n"
    config = routed(quick, more='probe = "passive"', clocks=clocks)
    config += f'[[backend]]\nname = "e"\nurl = "{endless.url}"\nprobe = "passive"\n'
    config += '[model.endless]\nroute = [{ backend = "e", model = "lab" }]\n'
    served = serve(config)
    texts: dict[str, str] = {}

    def read(model: str) -> None:
        asked = ASKED | {"model": model, "stream": True}
        texts[model] = httpx2.post(f"{served.url}/v1/chat/completions", json=asked, timeout=30).text

    threads = [threading.Thread(target=read, args=(model,)) for model in ("m", "endless")]
    for thread in threads:
        thread.start()
    until(lambda: quick.seen and quick.seen[0].events > 2 and endless.seen and endless.seen[0].events > 2)
    began = time.monotonic()
    served.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert served.process.wait(10) == 0
    assert time.monotonic() - began < 5
    assert texts["m"].endswith("data: [DONE]\n\n")
    assert "shutting_down" in texts["endless"]
    assert "[DONE]" not in texts["endless"]


def test_a_hedge_answers_when_the_first_is_slow_for_once(serve: Serve, hosts: Hosts) -> None:
    """After the backend's own p95 the next rung of that voice is asked too; the first to speak is kept."""
    first, second = (hosts.add(manners.speaks()) for _ in range(2))
    clocks = CLOCKS.replace("first_token_s = 0.6", "first_token_s = 20")
    config = routed(first, second, more='probe = "passive"', model="hedge = true", clocks=clocks)
    served = serve(config.replace('model = "lab"', 'model = "lab", weights = "w"'))
    assert {ask(served, max_tokens=2).headers["x-sive-backend"] for _ in range(20)} == {"b0"}
    first.manner = manners.head_only
    answer = ask(served)
    assert answer.headers["x-sive-backend"] == "b1"
    assert answer.elapsed.total_seconds() < 5
    assert metric(served, "sive_hedges_total") >= 1
    until(lambda: first.seen[-1].left_at is not None, what="closing the slow one")
