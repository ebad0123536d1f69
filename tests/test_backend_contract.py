"""What every kind of backend promises: one suite for all, against programs that speak their protocols."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from sive.backends import Backend
from sive.backends.make import make_backend
from sive.capabilities import capabilities
from sive.config import BackendSettings
from sive.health import Health
from sive.policy import Policy

from tests.conftest import until
from tests.lab.asking import PATIENT, ask
from tests.lab.callers import Listener, seen
from tests.lab.gradio_apps import GradioApp, gradio_app
from tests.lab.hosts import Hosts
from tests.lab.rented import TEXT, WORDS, Gradio, Replicate, RunpodQueue, in_pieces, openrouter, routed
from tests.lab.upstream import Manner, Upstream, answers, cuts_after, says, talks_forever

KEY = "key-of-the-host"
GRADIO_INFO = {
    "named_endpoints": {
        "/chat": {
            "parameters": [
                {"parameter_name": "message", "parameter_has_default": False, "type": {"type": "string"}}
            ]
        }
    }
}


def gradio_events(*end: tuple[str, object]) -> Gradio:
    """An app that says the words, each time with all before it."""
    so_far = tuple(("generating", ["".join(WORDS[: n + 1])]) for n in range(len(WORDS)))
    return Gradio(prefix="/gradio_api", info=GRADIO_INFO, events=so_far + (end or (("complete", [TEXT]),)))


@dataclass(frozen=True)
class Kind:
    """A kind of host, and a program that speaks as it does.

    ``path``: what stands between host and API. ``speaks``: answers as it should. ``counts``: it says how many
    tokens there were. ``drops``: what of an odd request it does not understand.
    """

    kind: str
    path: str = ""
    speaks: Callable[[], Manner] = lambda: answers(*WORDS)
    counts: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    drops: tuple[str, ...] = ()

    def backend(self, host: Upstream, name: str = "host", **more: Any) -> Backend:
        """A backend of this kind whose host that is."""
        url = f"http://127.0.0.1:{host.port}{self.path}"
        said = {"name": name, "kind": self.kind, "url": url, "api_key": KEY} | self.settings | more
        return make_backend(BackendSettings(**said))

    @property
    def goes_on(self) -> bool:
        """Can it be given an answer that was begun?"""
        return self.kind != "gradio"

    @property
    def streams(self) -> bool:
        """Does its answer come piece by piece?"""
        return self.kind != "runpod-queue"


OPENAI_DROPS = ("guided_regex", "top_k")
TEXT_DROPS = ("guided_regex", "logit_bias", "n", "tools")
KINDS = [
    Kind("openai", "/v1"),
    Kind("hf", "/v1", drops=OPENAI_DROPS),
    Kind("hf-endpoint", "/v1"),
    Kind("together", "/v1", drops=("guided_regex",)),
    Kind("openrouter", "/api/v1", speaks=lambda: openrouter, drops=("guided_regex",)),
    Kind("runpod-serverless", "/v2/abc123/openai/v1"),
    Kind("runpod-lb", "/v1"),
    Kind("runpod-queue", "/v2/abc123", speaks=RunpodQueue),
    Kind(
        "replicate",
        speaks=Replicate,
        counts=False,
        settings={"template": "chatml"},
        drops=TEXT_DROPS,
    ),
    Kind("gradio", speaks=gradio_events, counts=False, drops=(*TEXT_DROPS, "temperature", "top_k")),
]
STREAMING = [kind for kind in KINDS if kind.streams]
each = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
each_stream = pytest.mark.parametrize("kind", STREAMING, ids=lambda kind: kind.kind)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Hosts on a loop that the tests of this file share."""
    with Hosts() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GradioApp]:
    """A real Gradio app."""
    with gradio_app(tmp_path_factory.mktemp("gradio")) as app:
        yield app


# Streams


@each
def test_a_stream_says_the_role_the_text_in_order_and_its_end(kind: Kind, hosts: Hosts) -> None:
    """One role, one id, one finish_reason, the end mark; the accents are those of the host."""
    heard = ask(kind.backend(hosts.add(kind.speaks())))
    assert (heard.text, heard.is_done, heard.failures) == (TEXT, True, [])
    choices = [choice for one in heard.events for choice in one["choices"]]
    roles = [choice["delta"]["role"] for choice in choices if "role" in choice["delta"]]
    assert set(roles) == {"assistant"}
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    assert len({one["id"] for one in heard.events}) == 1
    assert {one["object"] for one in heard.events} == {"chat.completion.chunk"}
    assert heard.deltas == list(WORDS) if kind.streams else [TEXT]


@each
@pytest.mark.parametrize("guard_json", [True, False])
def test_an_answer_in_one_piece_says_the_same(kind: Kind, guard_json: bool, hosts: Hosts) -> None:
    """Whether it is put together here or asked for in one piece."""
    heard = ask(kind.backend(hosts.add(kind.speaks())), stream=False, guard_json=guard_json)
    assert (heard.status, heard.failures) == (200, [])
    [choice] = heard.json["choices"]
    assert choice["message"]["content"] == TEXT
    assert (choice["finish_reason"], heard.json["model"]) == ("stop", "spinoza")


@each
def test_usage_is_the_hosts_own_or_none(kind: Kind, hosts: Hosts) -> None:
    """What nobody counted is not made up."""
    heard = ask(kind.backend(hosts.add(kind.speaks())), stream_options={"include_usage": True})
    counted = [one["usage"] for one in heard.events if one.get("usage")]
    assert [one["prompt_tokens"] for one in counted] == [7] * kind.counts
    assert heard.is_done


@each_stream
def test_a_character_may_be_cut_anywhere(kind: Kind, hosts: Hosts) -> None:
    """A stream that arrives byte by byte is the same text."""
    speaks = kind.speaks()
    heard = ask(kind.backend(hosts.add(in_pieces(speaks))))
    assert (heard.text, heard.is_done) == (TEXT, True)


# Leaving


@each_stream
def test_a_caller_who_leaves_is_gone_for_the_host_too(kind: Kind, hosts: Hosts) -> None:
    """The connection closes; where the host would work on, it is told to stop."""
    talks = Replicate(holds=True) if kind.kind == "replicate" else talks_forever
    if kind.kind == "gradio":
        talks = gradio_events(("hold", None))
    host = hosts.add(talks)

    async def hears_something(listener: Listener) -> None:
        await seen(lambda: b'"content":' in listener.heard)

    heard = ask(kind.backend(host), until=hears_something)
    assert heard.report.caller_left
    until(lambda: any(one.left_at for one in host.seen), what="leaving")
    if isinstance(talks, Replicate):
        until(lambda: talks.cancelled == ["p0"], what="the cancelling")


def test_a_real_app_stops_when_its_caller_leaves(app: GradioApp) -> None:
    """Gradio ends the generator whose events nobody reads."""
    space = make_backend(BackendSettings(name="space", kind="gradio", url=app.url, function="/slow"))

    async def hears_something(listener: Listener) -> None:
        await seen(lambda: b"mot" in listener.heard)

    ask(space, until=hears_something)
    until(lambda: "slow was stopped" in app.output.read_text(), 20, "the generator's end")


# Errors by status

RESTS_LONG = {401, 402, 403}
BODY = {"error": {"message": "secret of the host", "type": "x", "code": None}, "detail": "secret of the host"}


@each
@pytest.mark.parametrize("status", [401, 402, 403, 404, 408, 429, 500, 502, 503, 504])
def test_what_a_host_refuses_the_next_rung_answers(kind: Kind, status: int, hosts: Hosts) -> None:
    """A refusal of key or payment rests long; no word of the host's is shown."""
    host, spare = hosts.add(says(status, BODY)), hosts.add(answers("spare"))
    health = Health(Policy(PATIENT))
    heard = ask(kind.backend(host), KINDS[0].backend(spare, "spare"), health=health)
    assert (heard.text, heard.status) == ("spare", 200)
    assert heard.failures[0][0] == f"http_{status}"
    assert (("host", "") in health.open_keys()) == (status in {*RESTS_LONG, 404})
    assert "secret" not in str(heard.failures) + heard.body.decode()


@pytest.mark.parametrize("kind", ["gradio", "replicate", "runpod-queue"])
@pytest.mark.parametrize("status", [400, 405, 409, 413, 422])
def test_what_a_host_refuses_of_our_own_call_is_no_fault_of_the_callers(
    kind: str, status: int, hosts: Hosts
) -> None:
    """Where a request is translated the host never sees it, so the next rung is asked."""
    [translated] = [one for one in KINDS if one.kind == kind]
    host, spare = hosts.add(says(status, BODY)), hosts.add(answers("spare"))
    heard = ask(translated.backend(host), KINDS[0].backend(spare, "spare"))
    assert (heard.text, heard.status) == ("spare", 200)
    [(reason, message)] = heard.failures
    assert (reason, message.startswith(f"HTTP {status}: it refused the ")) == (f"http_{status}", True)
    assert "secret" not in message


@each
def test_what_is_no_answer_is_none(kind: Kind, hosts: Hosts) -> None:
    """A page of HTML with a 200, as proxies send, and an empty body."""
    for manner in (routed(html=True), routed(html=False)):
        host, spare = hosts.add(manner), hosts.add(answers("spare"))
        heard = ask(kind.backend(host), KINDS[0].backend(spare, "spare"))
        assert heard.text == "spare"


# Carrying on


@each
def test_it_is_asked_to_carry_on_only_as_it_declares(kind: Kind, hosts: Hosts) -> None:
    """An answer that broke off elsewhere ends honestly where it is not: nobody may guess."""
    host = hosts.add(kind.speaks())
    cut = KINDS[0].backend(hosts.add(cuts_after(2)), "cut", resume="none")
    heard = ask(cut, kind.backend(host, resume="none"))
    assert (heard.text, heard.is_done, host.seen) == ("w0 w1 ", False, [])
    assert heard.events[-1]["error"]["code"] == "stream_interrupted"


@pytest.mark.parametrize("kind", [one for one in KINDS if one.goes_on], ids=lambda kind: kind.kind)
def test_it_carries_on_by_text_where_that_is_declared(kind: Kind, hosts: Hosts) -> None:
    """It is given what was said, and its words go on from there."""
    host = hosts.add(kind.speaks())
    cut = KINDS[0].backend(hosts.add(cuts_after(2)), "cut", resume="none")
    heard = ask(cut, kind.backend(host, resume="text"))
    assert (heard.text, heard.is_done) == ("w0 w1 " + TEXT, True)
    if kind.kind == "replicate":
        assert host.seen[0].body["input"]["prompt"].endswith("assistant\nw0 w1 ")
    elif kind.streams:
        assert host.seen[0].body["messages"][-1] == {"role": "assistant", "content": "w0 w1 "}


# What is left out


@each
@pytest.mark.parametrize("stream", [True, False])
def test_what_it_does_not_understand_is_left_out_and_named(kind: Kind, stream: bool, hosts: Hosts) -> None:
    """And only that."""
    host = hosts.add(kind.speaks())
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    odd = {"guided_regex": "a", "top_k": 4, "temperature": 0.5, "logit_bias": {"1": 1}, "user": "u"}
    several = 2 if "n" in kind.drops else 1
    heard = ask(kind.backend(host), stream=stream, n=several, tools=[tool], **odd)
    said = heard.sive if stream else heard.json["sive"]
    assert said["dropped"] == sorted(set(kind.drops))
    sent = host.seen[-1].body if kind.kind != "replicate" else {}
    assert not set(sent) & set(kind.drops)


# Keys


def test_no_host_ever_sees_the_key_of_another(hosts: Hosts) -> None:
    """One request through all of them: every header that each received is looked at."""
    everybody, backends = {}, []
    for kind in KINDS:
        name = f"b-{kind.kind}"
        everybody[name] = hosts.add(says(503))
        backends.append(kind.backend(everybody[name], name, api_key=f"key-of-{name}"))
    assert ask(*backends).status == 503
    for name, host in everybody.items():
        assert host.seen, f"{name} was not asked"
        shown = {value for one in host.seen for value in one.headers.values() if "key-of-" in value}
        assert shown == {f"Bearer key-of-{name}"}


def test_events_at_another_host_never_get_the_key(hosts: Hosts) -> None:
    """Replicate says where its events are: a host that is not its own is not asked."""
    thief = hosts.add(answers("x"))
    replicate = Replicate(stream_at=f"http://127.0.0.1:{thief.port}")
    heard = ask(KINDS[-2].backend(hosts.add(replicate)))
    assert heard.failures == [("foreign_host", "its events are at another host, which must not see its key")]
    assert thief.seen == []


# Capabilities


@each
def test_what_it_can_is_declared_by_its_kind_and_may_be_said_otherwise(kind: Kind, hosts: Hosts) -> None:
    """The configuration's word counts."""
    host = hosts.add(kind.speaks())
    usual = capabilities(kind.backend(host))
    assert usual.tools == (kind.kind not in ("gradio", "replicate"))
    assert usual.streaming == kind.streams
    turned = capabilities(
        kind.backend(host, tools=not usual.tools, quota=not usual.quota, context_tokens=77, resume="none")
    )
    assert (turned.tools, turned.quota) == (not usual.tools, not usual.quota)
    assert (turned.context_tokens, turned.resume) == (77, "none")
