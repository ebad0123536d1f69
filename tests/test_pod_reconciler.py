"""Pods kept at a gateway's list of adapters: real sives over stand-in engines, that come and go."""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sive.errors import ConfigError

from tests.conftest import TINY, Served, launch, until
from tests.lab.adapters import of_rank
from tests.lab.engines import free_ports
from tests.test_engine import FAKE

KEYS = {"POD_ADMIN": "pods-own-secret", "SIVE_ADMIN_KEYS": "gateways-own"}
POD = """
[gateway]
port = {port}
[engine]
model = "{tiny}/base"
adapters = "{folder}/adapters.toml"
adapters_dir = "{folder}/store"
command = "{fake}"
"""
GATEWAY = """
[gateway]
adapters = "{list}"
probe_interval_s = 0.2
rest_s = 0.5
{more}
"""
BACKEND = """
[[backend]]
name = "{name}"
url = "http://127.0.0.1:{port}/v1"
admin_key_env = "POD_ADMIN"
"""
ROUTES = """
[model.{name}-spinoza]
route = [{{ backend = "{name}", model = "spinoza" }}]
[model.{name}-henri]
route = [{{ backend = "{name}", model = "henri" }}]
"""


@dataclass
class Pods:
    """Two pods' folders and ports, and the list that a gateway keeps them at."""

    folder: Path
    ports: dict[str, int]

    @property
    def list(self) -> Path:
        """The gateway's."""
        return self.folder / "wanted.toml"

    def want(self, *names: str, source: str = "", more: str = "") -> None:
        """Write the list; ``more``: keys of the last entry."""
        entry = '[[adapter]]\nname = "{0}"\nsource = "file:{2}"\nbase_model = "file:{1}/base"\n'
        text = "\n".join(entry.format(name, TINY, TINY / (source or name)) for name in names)
        self.list.write_text(text + more)

    @contextlib.contextmanager
    def pod(self, name: str, *extra: str) -> Iterator[Served]:
        """One pod, with whatever its own list says."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "adapters.toml").touch()
        config = POD.format(port=self.ports[name], tiny=TINY, folder=folder, fake=FAKE) + "\n".join(extra)
        arguments = ("--port", str(self.ports[name]))
        with launch(self.folder, config, *arguments, SIVE_ADMIN_KEYS=KEYS["POD_ADMIN"]) as served:
            until(lambda: served.get("/status").json()["engine"]["phase"] == "ready", 30, f"{name} ready")
            yield served

    @contextlib.contextmanager
    def gateway(self, *names: str, more: str = "", routes: str = ROUTES) -> Iterator[Served]:
        """A gateway in front of these pods; with routes it also asks them for tokens."""
        config = GATEWAY.format(list=self.list, more=more)
        for text in (BACKEND, routes):
            config += "".join(text.format(name=name, port=self.ports[name]) for name in names)
        with launch(self.folder, config, **KEYS) as served:
            yield served


@pytest.fixture
def pods(tmp_path: Path) -> Pods:
    """Two pods that are not started yet."""
    return Pods(tmp_path, dict(zip(("pod-a", "pod-b"), free_ports(2), strict=True)))


def step(gateway: Served, pod: str) -> dict[str, Any]:
    """What /status says of a pod's adapters."""
    found: dict[str, Any] = gateway.get("/status").json()["pods"][pod]["adapters"]
    return found


def in_step(gateway: Served, *names: str) -> None:
    """Wait until these pods serve what is wanted."""
    until(lambda: all(step(gateway, name)["in_step"] for name in names), 40, f"{names} in step")


def serves(pod: Served) -> dict[str, str]:
    """The versions that a pod serves."""
    listed = pod.get("/status").json()["engine"]["adapters"]
    return {name: one["version"] for name, one in listed.items() if one["version"]}


def test_every_pod_has_what_is_listed_and_one_that_was_away_catches_up(pods: Pods) -> None:
    """At the start, when the list changes, when a pod comes back; each change once, and in the metrics."""
    pods.want("spinoza", "bergson")
    with pods.gateway("pod-a", "pod-b") as gateway, pods.pod("pod-a") as first:
        in_step(gateway, "pod-a")
        assert sorted(serves(first)) == ["bergson", "spinoza"]
        assert step(gateway, "pod-b") | {"looked_s_ago": 0} == {
            "in_step": False,
            "why": "it cannot be asked",
            "looked_s_ago": 0,
        }
        # What some take for the end of a line does not end what a pod says.
        pods.want("spinoza", "kant", more='system_prompt = "You are\\u2028Kant,\\u0085really."\n')
        until(lambda: "kant" in serves(first), 40, "pod-a has kant")
        in_step(gateway, "pod-a")
        assert sorted(serves(first)) == ["bergson", "kant", "spinoza"]
        with pods.pod("pod-b") as second:
            in_step(gateway, "pod-b")
            assert sorted(serves(second)) == ["kant", "spinoza"]
            assert serves(second)["kant"] == serves(first)["kant"]
        metrics = gateway.get("/metrics").text
        assert 'sive_pod_adapters_in_step{backend="pod-a"} 1.0' in metrics
        counted = 'sive_pod_adapter_changes_total{action="add",backend="pod-a",outcome="done"} 3.0'
        assert counted in metrics
        assert all(key not in gateway.output.read_text() for key in KEYS.values())


def test_a_renamed_entry_goes_only_where_that_was_said(pods: Pods) -> None:
    """With ``adapters_remove`` the old name goes once the new one is there, and only then."""
    pods.want("spinoza", "bergson")
    removes = "adapters_remove = true"
    with pods.pod("pod-a") as pod, pods.gateway("pod-a", more=removes, routes="") as gateway:
        in_step(gateway, "pod-a")
        before = serves(pod)
        pods.want("spinoza", "henri", source="kant")
        until(lambda: sorted(serves(pod)) == ["henri", "spinoza"], 40, "bergson is henri")
        until(lambda: serves(pod)["spinoza"] != before["spinoza"], 40, "spinoza is another")
        assert serves(pod)["spinoza"] == serves(pod)["henri"]
        in_step(gateway, "pod-a")
        of_rank(32, "kant", pods.folder / "big")
        pods.want("spinoza", "baruch", source=str(pods.folder / "big"))
        until(lambda: "refused" in step(gateway, "pod-a")["why"], 40, "the new name is refused")
        assert sorted(serves(pod)) == ["henri", "spinoza"]


def test_a_pod_that_refuses_is_asked_again_rarely_and_has_the_rest(pods: Pods) -> None:
    """A rank that its engine was not started for: its reason is for administrators, the others are served."""
    pods.want("spinoza", "bergson")
    big = of_rank(32, "kant", pods.folder / "big")
    with pods.list.open("a") as file:
        file.write(f'\n[[adapter]]\nname = "kant"\nsource = "file:{big}"\nbase_model = "file:{TINY}/base"\n')
    with pods.pod("pod-a") as pod, pods.gateway("pod-a") as gateway:
        until(lambda: sorted(serves(pod)) == ["bergson", "spinoza"], 40, "pod-a has the others")
        until(lambda: step(gateway, "pod-a")["why"] == "it refused to add 'kant'", 20, "it says so")
        shown = gateway.get("/admin/adapters", headers={"authorization": "Bearer gateways-own"}).json()
        assert "rank 32" in shown["pods"]["pod-a"]["detail"]
        assert str(big) not in gateway.get("/status").text
        refused = 'sive_pod_adapter_changes_total{action="add",backend="pod-a",outcome="refused"} 1.0'
        assert refused in gateway.get("/metrics").text
        for is_new in (False, True):  # whoever asks for what it lacks makes it look, not ask again
            until(lambda is_new=is_new: (step(gateway, "pod-a")["looked_s_ago"] < 4) == is_new, 20, "a look")
        assert refused in gateway.get("/metrics").text
        pods.want("spinoza", "bergson")
        in_step(gateway, "pod-a")
        assert refused in gateway.get("/metrics").text


def test_a_pod_that_comes_back_is_asked_for_what_it_refused(pods: Pods) -> None:
    """Another life of it may have been started for that rank: nobody waits for a minute to be over."""
    big = of_rank(32, "kant", pods.folder / "big")
    pods.want("spinoza", source=str(big))
    with pods.gateway("pod-a") as gateway:
        with pods.pod("pod-a", "max_lora_rank = 16"):
            until(lambda: "refused" in step(gateway, "pod-a")["why"], 40, "it is refused")
        with pods.pod("pod-a", "max_lora_rank = 32") as pod:
            in_step(gateway, "pod-a")
            assert list(serves(pod)) == ["spinoza"]


@pytest.mark.parametrize("name", ["henri", "spinoza"])
def test_a_pod_that_forgot_an_adapter_has_it_again_when_it_is_missed(pods: Pods, name: str) -> None:
    """A 404 is looked into at once, not in minutes; and the 503 of a pod whose CPU knows that name."""
    pods.want(name, source="spinoza")
    with pods.pod("pod-a") as pod, pods.gateway("pod-a") as gateway:
        in_step(gateway, "pod-a")
        admin = {"authorization": f"Bearer {KEYS['POD_ADMIN']}"}
        removed = httpx2.post(
            f"{pod.url}/admin/adapters",
            json={"action": "remove", "name": name},
            headers=admin,
            timeout=20,
        )
        assert removed.status_code == 200

        def is_back() -> bool:
            _complete(gateway, f"pod-a-{name}")
            return name in serves(pod)

        until(is_back, 40, f"{name} is back")


def test_a_pod_that_dies_in_the_middle_of_a_change_has_it_when_it_is_back(pods: Pods) -> None:
    """Killed, not stopped; meanwhile the gateway says that it cannot be asked."""
    pods.want("spinoza")
    with pods.gateway("pod-a") as gateway:
        log = pods.folder / "engine.log"
        with pods.pod("pod-a", "fake-load-s = 60", f'fake-log = "{log}"') as pod:
            until(lambda: "loading spinoza@" in log.read_text(), 40, "a change has begun")
            pod.process.kill()
            pod.process.wait()
            until(lambda: step(gateway, "pod-a")["why"] == "it cannot be asked", 30, "it is away")
        with pods.pod("pod-a") as pod:
            in_step(gateway, "pod-a")
            assert list(serves(pod)) == ["spinoza"]


def test_what_somebody_else_removed_meanwhile_is_not_removed_again(pods: Pods) -> None:
    """Another gateway with the same list does the same: the pod is in step, and that is seen at once."""
    one = {"source": f"file:{TINY / 'spinoza'}", "sha256": {}, "version": "0123456789ab", "phase": "serving"}
    one |= {"wanted": "0123456789ab", "system_prompt": None, "languages": [], "sampling": {}}
    there, asked = {"old": one, "older": one}, list[str]()

    class Pod(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = json.dumps({"base_model": f"file:{TINY}/base", "life": "1", "adapters": there})
            body = said.encode() if self.command == "GET" else f"data: {said}\n\n".encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            change = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append(f"{change['action']} {change['name']} {self.headers['x-sive-automatic']}")
            there.clear()
            there["spinoza"] = one
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    pods.want("spinoza")
    server = ThreadingHTTPServer(("127.0.0.1", pods.ports["pod-b"]), Pod)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pods.gateway("pod-b", more="adapters_remove = true", routes="") as gateway:
        in_step(gateway, "pod-b")
        assert asked == ["add spinoza 1"]  # by no person
    server.shutdown()
    server.server_close()


def test_a_key_that_a_pod_does_not_take_is_no_secret_told(pods: Pods) -> None:
    """Neither when the pod, or who stands in its place, repeats it in its answer."""

    class Parrot(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"error": {"message": "%s"}}' % self.headers["authorization"].encode()
            self.send_response(400)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    pods.want("spinoza")
    server = ThreadingHTTPServer(("127.0.0.1", pods.ports["pod-b"]), Parrot)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pods.gateway("pod-a", "pod-b") as gateway:
        until(lambda: step(gateway, "pod-b")["looked_s_ago"] is not None, 20, "a look")
        shown = gateway.get("/admin/adapters", headers={"authorization": "Bearer gateways-own"}).text
        assert "********" in shown
        assert KEYS["POD_ADMIN"] not in shown + gateway.get("/status").text + gateway.output.read_text()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('[gateway]\nadapters = "{list}"\n', "there is no pod to keep at it"),
        (
            '[[backend]]\nname = "a"\nurl = "http://127.0.0.1:9/v1"\nadmin_key = "k"\n',
            "there is no list to keep it at",
        ),
    ],
)
def test_a_list_without_pods_and_pods_without_a_list_are_mistakes(pods: Pods, config: str, said: str) -> None:
    """Nothing would happen, which nobody wants who wrote that."""
    from sive.config import load
    from sive_serve.gateway import Gateway

    pods.want("spinoza")
    file = pods.folder / "sive.toml"
    file.write_text(config.format(list=pods.list))
    with pytest.raises(ConfigError, match=said):
        Gateway(load(file, environ={}).settings)


def _complete(gateway: Served, model: str) -> int:
    body = {"model": model, "prompt": "?", "max_tokens": 1}
    reply = httpx2.post(f"{gateway.url}/v1/completions", json=body, timeout=30)
    return reply.status_code
