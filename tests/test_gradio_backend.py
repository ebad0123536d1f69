"""A Gradio app as a rung: a real one over real sockets, and stand-ins for other versions and for the Hub."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from sive import sse
from sive.backends.conversation import conversation
from sive.backends.gradio_events import Reading, answer_in, last_word
from sive.backends.gradio_function import configured, discovered
from sive.backends.make import make_backend
from sive.backends.pieces import TextChunks
from sive.backends.spaces import runtime_url, space_url, trouble
from sive.config import BackendSettings
from sive.errors import UnavailableError
from sive.health import Health
from sive.policy import Policy
from sive.wires.aiohttp import AiohttpWire
from sive.wires.httpx import HttpxWire

from tests.conftest import Serve, clean_environment
from tests.lab.asking import PATIENT, Heard, ask
from tests.lab.gradio_apps import GradioApp, gradio_app
from tests.lab.hosts import Hosts
from tests.lab.rented import TEXT, Gradio, hub, routed
from tests.lab.upstream import Exchange, Upstream, says

TURNS = [
    {"role": "system", "content": "Sois bref."},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "Qui ?"},
]
HISTORY = {"parameter_name": "history", "parameter_has_default": True, "parameter_default": []}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GradioApp]:
    """A real Gradio app."""
    with gradio_app(tmp_path_factory.mktemp("gradio")) as app:
        yield app


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Hosts on a loop that the tests of this file share."""
    with Hosts() as hosts:
        yield hosts


def asked(url: str, message: str = "Qui ?", health: Health | None = None, **settings: Any) -> Heard:
    """Ask an app one thing."""
    space = make_backend(BackendSettings(name="space", kind="gradio", url=url, **settings))
    return ask(space, messages=[{"role": "user", "content": message}], health=health)


# A real app


@pytest.mark.parametrize("function", [None, "/chat", "/pair", "/tuples", "//chat_function"])
def test_a_real_app_answers_word_for_word(function: str | None, app: GradioApp) -> None:
    """Texts, lists of messages and pairs; found out by itself, or named, also with a slash in its name."""
    heard = asked(app.url, function=function)
    assert (heard.text, heard.is_done, heard.failures) == (TEXT, True, [])
    assert len(heard.deltas) == (1 if function == "//chat_function" else 7)


@pytest.mark.parametrize("wire", [AiohttpWire, HttpxWire])
@pytest.mark.parametrize("stream", [True, False])
def test_every_wire_takes_its_steps(wire: Any, stream: bool, app: GradioApp) -> None:
    """Over TLS and proxies, and inside the caller's Python."""
    space = make_backend(BackendSettings(name="space", kind="gradio", url=app.url))
    heard = ask(space, wire=wire, stream=stream)
    assert (heard.text or heard.json["choices"][0]["message"]["content"]) == TEXT


@pytest.mark.parametrize("prefix", ["", "/gradio_api/", "gradio_api", "/elsewhere"])
def test_the_prefix_is_found_where_it_is_not_as_configured(prefix: str, app: GradioApp) -> None:
    """A 404 tries the usual ones."""
    assert asked(app.url, prefix=prefix).text == TEXT


@pytest.mark.parametrize("arguments", [None, ("message", "history", "system", "temperature", "model")])
def test_a_real_app_is_given_what_its_arguments_mean(
    arguments: tuple[str, ...] | None, app: GradioApp
) -> None:
    """By what the app says of them, or in the order that is configured."""
    settings = {"name": "space", "kind": "gradio", "url": app.url, "function": "/told"}
    if arguments:
        settings |= {"arguments": arguments, "history": "parts"}
    space = make_backend(BackendSettings(**settings))
    heard = ask(space, messages=TURNS, temperature=0.3, top_p=0.5, named="Kant")
    style = "Kant" if arguments else "plain"
    assert heard.text == f"Qui ?|[('user', 'q'), ('assistant', 'a')]|Sois bref.|0.3|{style}"
    assert heard.sive["dropped"] == ["top_p"]


def test_what_a_function_has_no_argument_for_is_named(app: GradioApp) -> None:
    """A chat of Gradio's own keeps its history in its session: nobody may think that it has read ours."""
    space = make_backend(BackendSettings(name="space", kind="gradio", url=app.url))
    heard = ask(space, messages=TURNS, temperature=0.3)
    assert heard.text == TEXT
    assert heard.sive["dropped"] == ["messages.history", "messages.system", "temperature"]


def test_an_app_is_asked_once_what_its_function_takes(hosts: Hosts) -> None:
    """And again when a call fails: it may be another by then."""
    gradio = Gradio(prefix="/gradio_api", info=info(MESSAGE), events=(("complete", ["a"]),))
    host = hosts.add(gradio)
    space = make_backend(BackendSettings(name="space", kind="gradio", url=base(host)))
    for _ in range(2):
        assert ask(space).text == "a"
    paths = [one.path for one in host.seen]
    assert paths.count("/gradio_api/info") == 1
    gradio.status, gradio.info = 500, info(MESSAGE, name="/talk")
    assert ask(space).failures[0][0] == "no_function"
    gradio.status = 200
    assert ask(space).text == "a"
    assert host.seen[-2].path == "/gradio_api/call/talk"


def test_a_call_that_the_app_refuses_is_no_fault_of_the_callers(hosts: Hosts) -> None:
    """Its 422 is about our arguments, so the next rung is asked."""
    host = hosts.add(Gradio(prefix="/gradio_api", info=info(MESSAGE), status=422))
    heard = asked(base(host))
    assert heard.failures == [("http_422", "HTTP 422: it refused the call")]


@pytest.mark.parametrize("guard_json", [True, False])
def test_events_that_end_too_soon_are_no_answer_in_one_piece(guard_json: bool, hosts: Hosts) -> None:
    """Half of it must not pass for all."""
    host = hosts.add(Gradio(prefix="/gradio_api", info=info(MESSAGE), events=(("generating", ["half"]),)))
    space = make_backend(BackendSettings(name="space", kind="gradio", url=base(host)))
    heard = ask(space, stream=False, guard_json=guard_json)
    assert heard.status in (502, 503)
    assert heard.failures[0][0] == "eof"


def test_a_used_up_quota_says_when_there_is_more_and_rests_so_long(app: GradioApp) -> None:
    """ZeroGPU's own state, in the words of its error."""
    health = Health(Policy(PATIENT))
    heard = asked(app.url, "!quota", health)
    message = "its ZeroGPU quota is used up; there is more in 0:09:48"
    assert heard.failures == [("gpu_quota", message)]
    assert heard.headers["retry-after"] == "588"
    assert "quota" in health.open_keys()["space", ""]
    assert not health.may_probe(("space", ""), 0)


def test_an_error_of_the_apps_function_is_told_without_its_words(app: GradioApp) -> None:
    """They may hold paths and keys."""
    heard = asked(app.url, "!breaks")
    assert heard.failures == [("gradio_error", "its function failed")]


@pytest.mark.parametrize("message", ["!breaks off", "!rewrites"])
def test_an_answer_that_breaks_off_or_is_taken_back_never_ends_well(message: str, app: GradioApp) -> None:
    """What was shown cannot be taken back: an error event, and no word of the new text."""
    heard = asked(app.url, message)
    assert (heard.text, heard.is_done) == ("Bonjour, ", False)
    assert heard.events[-1]["error"]["code"] == "stream_interrupted"


@pytest.mark.parametrize("arguments", [None, ("message",)])
def test_an_unknown_function_is_told_with_those_there_are(
    arguments: tuple[str, ...] | None, app: GradioApp
) -> None:
    """Gradio says 500 and nothing else; what it has, its info says."""
    heard = (
        asked(app.url, function="/nope", arguments=arguments)
        if arguments
        else asked(app.url, function="/nope")
    )
    [(reason, message)] = heard.failures
    assert reason == "no_function"
    assert message.startswith("the app has no function '/nope': it has '//chat_function', '/chat', '/pair'")


def test_a_step_that_an_idle_connection_swallowed_is_sent_once_more(hosts: Hosts) -> None:
    """Nobody has seen it; the steps before it are not taken again."""
    gradio = Gradio(prefix="/gradio_api", info=info(MESSAGE), events=(("complete", ["a"]),))

    async def swallows_the_second(exchange: Exchange) -> None:
        if exchange.number == 1:
            exchange.reset()
        else:
            await gradio(exchange)

    host = hosts.add(swallows_the_second)
    heard = asked(base(host))
    assert (heard.text, heard.report.attempts) == ("a", 1)
    assert [one.method for one in host.seen] == ["GET", "POST", "POST", "GET"]


def test_an_event_that_the_app_has_forgotten_is_no_answer(hosts: Hosts) -> None:
    """Gradio answers 200, says 404 inside, and closes in the middle."""
    host = hosts.add(Gradio(prefix="/gradio_api", info=info(MESSAGE), events=(("error", "404: Not Found"),)))
    assert asked(base(host)).failures == [("gradio_error", "its function failed")]


def test_one_who_asks_for_more_than_text_is_no_failure_of_the_app(hosts: Hosts) -> None:
    """A list of prompts goes to the next rung, and the app stays in the route."""
    health = Health(Policy(PATIENT))
    space = make_backend(BackendSettings(name="space", kind="gradio", url=base(hosts.add(says(500)))))
    for _ in range(4):
        ask(space, endpoint="completions", prompt=["a", "b"], health=health)
    assert health.open_keys() == {}


# In a gateway


def test_snb_backend_url_alone_makes_a_gateway_of_a_real_app(app: GradioApp, serve: Serve) -> None:
    """The oldest name of the environment: the Space answers first; `sive status` says what it can."""
    served = serve(SNB_BACKEND_URL=app.url, SIVE_OFFLINE="")
    body = {"model": "spinoza", "messages": [{"role": "user", "content": "Qui ?"}], "temperature": 0.2}
    reply = httpx2.post(f"{served.url}/v1/chat/completions", json=body, timeout=20)
    answer = reply.json()
    assert reply.headers["x-sive-backend"] == "snb"
    assert answer["choices"][0]["message"]["content"] == TEXT
    assert answer["sive"]["dropped"] == ["messages.system", "temperature"]  # the persona is the Space's own
    assert "usage" not in answer
    rungs = served.get("/status").json()["models"]["spinoza"]["rungs"]
    assert [rung["backend"] for rung in rungs] == ["snb", "local"]
    assert rungs[0]["can"] == {
        "context_tokens": None,
        "tools": False,
        "adapters": False,
        "resume": "none",
        "quota": False,
        "streaming": True,
    }
    command = [sys.executable, "-m", "sive_serve.cli", "status", "--url", served.url]
    shown = subprocess.run(command, env=clean_environment(COLUMNS="200"), capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"\tsnb .*\ttext\tready\tanswered", shown.stdout)


# Discovery


MESSAGE = {"parameter_name": "message", "parameter_has_default": False, "type": {"type": "string"}}


def info(*parameters: dict[str, Any], name: str = "/chat", **others: Any) -> dict[str, Any]:
    """What an app says of its functions."""
    return {"named_endpoints": {name: {"parameters": list(parameters)}, **others}}


def base(host: Upstream) -> str:
    """Where it listens."""
    return f"http://127.0.0.1:{host.port}"


def test_a_chat_is_chosen_before_what_only_takes_a_message() -> None:
    """The usual name first, then who takes a history."""
    one, both = {"parameters": [MESSAGE]}, {"parameters": [MESSAGE, HISTORY]}
    assert (
        discovered({"named_endpoints": {"/say": one, "/talk": both, "/chat": one}}, None, None).name
        == "/chat"
    )
    assert discovered({"named_endpoints": {"/say": one, "/talk": both}}, None, None).name == "/talk"
    with pytest.raises(UnavailableError, match="no function that looks like a chat: it has '/rank'"):
        discovered({"named_endpoints": {"/rank": {"parameters": []}}}, None, None)


@pytest.mark.parametrize(
    ("kind", "rendered"),
    [
        (
            {"$defs": {"Message": {"properties": {"content": {"type": "array"}}}}},
            [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
            ],
        ),
        (
            {"$defs": {"Message": {"properties": {"content": {"anyOf": []}}}}},
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        ),
        ({"type": "array", "items": {"type": "array"}}, [["q", "a"]]),
    ],
)
def test_a_history_has_the_shape_of_the_apps_version(kind: Any, rendered: Any) -> None:
    """Typed parts (Gradio 6), plain messages (5), pairs (4)."""
    function = discovered(info(MESSAGE, HISTORY | {"type": kind}), None, None)
    said = conversation({"model": "m", "messages": TURNS})
    assert function.values(said) == (["Qui ?", rendered], ["messages.system"])


def test_an_argument_that_no_request_says_is_told() -> None:
    """Nothing is made up."""
    odd = {"parameter_name": "voice", "parameter_has_default": False, "type": {"type": "number"}}
    with pytest.raises(UnavailableError, match=r"'/chat' wants 'voice', .*: say arguments"):
        discovered(info(MESSAGE, odd), None, None)


def test_constants_may_be_configured() -> None:
    """In the place of an argument."""
    function = configured("/f", ("message", {"value": 3}), None)
    assert function.values(conversation({"model": "m", "prompt": "p"})) == (["p", 3], [])


def test_parts_of_messages_that_are_no_text_are_named() -> None:
    """Pictures, tools, and an answer that was begun."""
    said = conversation(
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]},
                {"role": "assistant", "content": None, "tool_calls": [{}]},
                {"role": "tool", "content": "r"},
                {"role": "user", "content": "b"},
                {"role": "assistant", "content": "c"},
            ],
        }
    )
    lost = {"messages.image_url", "messages.tool_calls", "messages.tool"}
    assert said.lost_with_prefill == {*lost, "messages.prefill"}
    assert (said.message, said.turns) == ("b", [("user", "a"), ("assistant", "")])


# Events


def read(*pieces: bytes) -> list[str]:
    """The pieces of text that these bytes say."""
    reading = Reading(TextChunks("chat/completions", "m"))
    out = b"".join(map(reading, pieces))
    chunks = [data.json() for one in sse.split(out) if (data := sse.read(one)) and not data.is_done]
    return [c["choices"][0]["delta"]["content"] for c in chunks if c["choices"][0]["delta"].get("content")]


def events(*said: tuple[str, str]) -> list[bytes]:
    """An app's events, each a kind and the whole text so far."""
    return [f"event: {kind}\ndata: {json.dumps([text])}\n\n".encode() for kind, text in said]


@pytest.mark.parametrize("escaped", [True, False])
def test_every_offset_may_be_where_a_read_ends(escaped: bool) -> None:
    """In the middle of a character, of an escape, of a line end."""
    said = b"".join(
        f"event: {name}\ndata: {json.dumps([text], ensure_ascii=escaped)}\n\n".encode()
        for name, text in (("generating", "œ"), ("generating", "œ — é🙂"), ("complete", "œ — é🙂."))
    )
    for at in range(1, len(said)):
        assert read(said[:at], said[at:]) == ["œ", " — é🙂", "."]


def test_a_heartbeat_is_a_comment_and_no_word() -> None:
    """Callers and proxies see life; the chain's clocks do not take it for an answer."""
    reading = Reading(TextChunks("chat/completions", "m"))
    assert reading(b"event: heartbeat\ndata: null\n\n") == b": waiting\n\n"
    assert reading(b'data: {"msg":"estimation","rank":3}\n\n') == b": waiting\n\n"


def test_half_an_event_of_json_is_made_up_for_by_the_next() -> None:
    """Each says the whole text."""
    assert read(b'event: generating\ndata: ["a\n\nevent: complete\ndata: ["ab"]\n\n') == ["ab"]


def test_an_app_may_strip_its_last_word() -> None:
    """What it took back were blanks: the answer ends well, and what it adds is still said."""
    assert read(*events(("generating", "a b"), ("generating", "a b \n"), ("complete", "a b"))) == [
        "a b",
        " \n",
    ]
    assert read(*events(("generating", " a b"), ("complete", "a b"))) == [" a b"]
    assert read(*events(("generating", "a b"), ("complete", "a b\n"))) == ["a b", "\n"]
    out = b"".join(
        map(Reading(TextChunks("completions", "m")), events(("generating", "a "), ("complete", "a")))
    )
    assert out.endswith(b"data: [DONE]\n\n")
    broken = Reading(TextChunks("completions", "m"))
    assert b"took back" in b"".join(map(broken, events(("generating", "a b"), ("complete", "a"))))


@pytest.mark.parametrize("outputs", [[None], [""], [5], ["", [{"role": "user", "content": "q"}]]])
@pytest.mark.parametrize("guard_json", [True, False])
def test_an_end_without_a_text_is_no_answer(outputs: Any, guard_json: bool, hosts: Hosts) -> None:
    """Another rung may have one."""
    host = hosts.add(Gradio(prefix="/gradio_api", info=info(MESSAGE), events=(("complete", outputs),)))
    space = make_backend(BackendSettings(name="space", kind="gradio", url=base(host)))
    heard = ask(space, stream=guard_json, guard_json=guard_json)
    assert heard.failures == [("no_answer", "its function ended without a text")]
    assert heard.status == 503


def test_of_all_events_that_came_at_once_the_last_is_read() -> None:
    """It says the whole text: an answer in one piece costs no more than that, and may have been rewritten."""
    beat = b"event: heartbeat\ndata: null\n\n"
    *_, complete = said = events(("generating", "a"), ("generating", "b"), ("complete", "b c"))
    assert last_word(b"".join(said) + beat) == complete
    assert last_word(b"".join(said[:2]) + beat + b"event: complete\ndata: [") == said[1]
    queued = b'data: {"msg": "process_completed", "output": {"data": ["b c"]}, "success": true}\n\n'
    assert last_word(b"".join(said[:2]) + queued + b'data: {"msg": "close_stream"}\n\n') == queued
    assert last_word(beat) == last_word(b"") == b""


def test_an_answer_in_one_piece_may_have_been_rewritten_on_its_way(hosts: Hosts) -> None:
    """Nobody was shown what the app took back: only the last event counts."""
    said = (("generating", ["No."]), ("generating", ["Yes"]), ("complete", ["Yes."]))
    host = hosts.add(Gradio(prefix="/gradio_api", info=info(MESSAGE), events=said))
    space = make_backend(BackendSettings(name="space", kind="gradio", url=base(host)))
    heard = ask(space, stream=False, guard_json=False)
    assert heard.json["choices"][0]["message"]["content"] == "Yes."


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        (["a", None], "a"),
        (["", [["q", "a"], ["q2", "b"]]], "b"),
        (["", [["q", "a"], ["q2", None]]], ""),
        ([[{"role": "assistant", "content": "old"}, {"role": "user", "content": "q"}]], ""),
        ([[{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"text": "a"}]}]], "a"),
        (
            [
                [
                    {"role": "assistant", "content": "thought", "metadata": {"title": "Thinking"}},
                    {"role": "assistant", "content": "a", "metadata": None},
                ]
            ],
            "a",
        ),
        ([], ""),
        ({"odd": 1}, ""),
    ],
)
def test_the_assistants_last_text_is_taken(outputs: Any, text: str) -> None:
    """Not the one before, while the new one has not begun; not what it thinks."""
    assert answer_in(outputs) == text


# The Hub


@pytest.mark.parametrize(
    ("stage", "words", "rests_s"),
    [
        ("PAUSED", "the Space is paused: only its owner can restart it", 300),
        ("STOPPED", "the Space is stopped: only its owner can restart it", 300),
        ("SUSPENDED", "the Space is suspended: only its owner can restart it", 300),
        ("RUNTIME_ERROR", "the Space is broken (RUNTIME_ERROR): its owner must mend it", 300),
        ("SLEEPING", "the Space sleeps: being asked wakes it, which takes a minute or more", 30),
        ("BUILDING", "the Space is being built", 30),
        ("APP_STARTING", "the Space is starting", 30),
    ],
)
@pytest.mark.parametrize("by_subdomain", [True, False])
def test_why_a_space_does_not_answer_is_told_in_words(
    stage: str, words: str, rests_s: int, by_subdomain: bool, hosts: Hosts
) -> None:
    """From the Hub, whatever the status: here a 200 with a page, as of a Space that is being prepared."""
    the_hub = hosts.add(hub(stage, by_subdomain=by_subdomain))
    health = Health(Policy(PATIENT))
    heard = asked(
        base(hosts.add(routed(html=True))),
        health=health,
        space="owner/name",
        hub_url=base(the_hub),
        api_key="hf_x",
    )
    assert heard.failures == [(f"space_{stage.lower()}", words)]
    [request] = the_hub.seen
    assert request.path == "/api/spaces/owner/name/runtime"
    assert request.headers["authorization"] == "Bearer hf_x"
    ended_at = heard.report.ended_at or 0
    rests = [not health.may_probe(("space", ""), ended_at + later) for later in (rests_s - 5, rests_s)]
    assert rests == [True, False]


def test_a_space_that_runs_is_judged_by_its_status(hosts: Hosts) -> None:
    """The Hub knows nothing against it."""
    the_hub = hosts.add(hub("RUNNING"))
    heard = asked(base(hosts.add(says(503))), space="owner/name", hub_url=base(the_hub))
    assert heard.failures == [("http_503", "HTTP 503")]


def test_the_hub_hears_of_nobody_elses_app_and_its_key(hosts: Hosts) -> None:
    """An app that is no Space has no business there."""
    the_hub = hosts.add(hub("RUNNING"))
    asked(base(hosts.add(says(503))), hub_url=base(the_hub), api_key="own")
    assert the_hub.seen == []
    assert runtime_url(None, "http://owner-name.hf.space", "h") is None
    assert runtime_url(None, "https://a.example", "h") is None
    assert runtime_url(None, "https://owner-name.hf.space/", "h") == "h/api/spaces/by-subdomain/owner-name"


@pytest.mark.parametrize("status", [401, 404])
def test_a_private_space_is_told_apart_from_one_that_is_broken(status: int) -> None:
    """The Hub shows it to nobody without its token."""
    found = trouble(status, b"")
    assert found is not None
    assert found.needs_owner
    assert "its token when it is private" in found.message
    assert trouble(500, b"") is None
    assert trouble(200, b"<html>") is None


def test_a_space_answers_at_its_own_host() -> None:
    """As the Hub names them."""
    assert space_url("FJDaz/bergsonAndFriends") == "https://fjdaz-bergsonandfriends.hf.space"
    assert space_url("a_b/c.d") == "https://a-b-c-d.hf.space"
