"""The chain on a fake clock, without sockets: who answers, and what the caller is told."""

from dataclasses import replace
from typing import Any

import pytest
from sive.backends.openai import OPENAI_FIELDS
from sive.calls import with_sampling
from sive.events import Begin, Close, End, Event, First, Head, Lost, Relay, Send, Whole
from sive.protocol import dumps, loads
from sive.relay import Finished, Finishing
from sive.routes import Rest

from tests.chain_play import (
    ANSWER,
    CLOCKS,
    DONE,
    SSE,
    TOKEN,
    Json,
    Play,
    call,
    chunk,
    cpu,
    event,
    payloads,
    rung,
    text_of,
)


def kinds(commands: list[Any]) -> list[type]:
    """What sort of commands these are."""
    return [type(command) for command in commands]


def test_the_first_rung_answers() -> None:
    """The first token of the first rung begins the answer; nobody else is asked."""
    play = Play(rung("pod"), cpu())
    assert kinds(play.begins(1)) == [Begin, Relay]
    assert play.begun.headers["x-sive-backend"] == "pod"
    assert play.begun.headers["x-sive-degraded"] == "false"
    assert play.begun.headers["x-request-id"] == "r1"
    play.send(Event(1, 2.0, Finishing()))
    assert kinds(play.send(Event(1, 2.0, Finished({"completion_tokens": 3})))) == [Close, End]
    assert play.is_over
    assert play.opened == ["pod"]
    assert play.chain.report.usage == {"completion_tokens": 3}
    assert play.adds_up()


def test_a_200_head_is_not_yet_an_answer() -> None:
    """A backend that dies between its head and its first token hands over to the next rung."""
    play = Play(rung("pod"), cpu())
    assert play.send(Head(1, 1.0, 200, SSE)) == []
    play.loses(1, "reset")
    play.begins(2)
    assert play.opened == ["pod", "local"]
    assert play.begun.headers["x-sive-degraded"] == "true"
    assert play.begun.headers["x-sive-attempts"] == "2"


@pytest.mark.parametrize("status", [401, 402, 403, 404, 408, 425, 503, 520, 524, 529])
def test_a_status_that_is_the_backends_trouble_falls_to_the_next_rung(status: int) -> None:
    """What another rung may do better is never shown."""
    play = Play(rung("pod"), rung("other"))
    play.replies(1, status)
    assert play.opened == ["pod", "other"]
    assert play.chain.report.failures[0].reason == f"http_{status}"


@pytest.mark.parametrize("status", [400, 405, 409, 413, 415, 422])
def test_a_400_is_the_callers_answer(status: int) -> None:
    """A wrong request goes back as it came, from the first rung, with its status."""
    play = Play(rung("pod"), cpu())
    play.replies(1, status, b'{"error":{"message":"bad tool","type":"x","param":"tools","code":"c"}}')
    assert play.opened == ["pod"]
    assert play.begun.status == status
    assert play.error == {"message": "bad tool", "type": "x", "param": "tools", "code": "c"}
    assert play.is_over


@pytest.mark.parametrize(
    "said", ["This model's maximum context length is 10 tokens", "context_length_exceeded", "context window"]
)
def test_too_long_for_one_may_fit_another(said: str) -> None:
    """A context overflow falls on to who reads more; when it is everybody's it is a 400."""
    body = dumps({"error": {"message": said, "code": None}})
    play = Play(
        rung("pod", context_tokens=10), rung("same", context_tokens=10), rung("more", context_tokens=20)
    )
    play.replies(1, 400, body)
    assert play.opened == ["pod", "more"]
    play.replies(2, 400, body)
    assert play.begun.status == 400
    assert play.error["code"] == "context_length_exceeded"


def test_too_long_without_a_word_is_still_said() -> None:
    """An error that only has a code gets a message."""
    play = Play(rung("pod", context_tokens=10))
    play.replies(1, 400, b'{"error":{"code":"context_length_exceeded"}}')
    assert (
        play.error["message"] == "This model's maximum context length is 10 tokens; your request is longer."
    )


def test_what_plainly_does_not_fit_is_refused_without_asking_anybody() -> None:
    """More than 16 bytes per token of context cannot fit, so no tokenizer has to look at it."""
    play = Play(rung("pod", context_tokens=10), asked=call(messages=[{"role": "user", "content": "x" * 161}]))
    assert play.opened == []
    assert play.begun.status == 400
    assert play.error["code"] == "context_length_exceeded"


def test_html_is_not_an_answer() -> None:
    """A proxy's page never reaches the caller, whatever its status."""
    play = Play(rung("pod"), cpu(), asked=call())
    play.send(Head(1, 1.0, 200, {"content-type": "text/html"}))
    play.send(Event(1, 1.0, Whole(b"<html>")))
    assert play.opened == ["pod", "local"]


@pytest.mark.parametrize(
    "reply",
    [
        {"choices": []},
        {"error": {"message": "no"}, "choices": [ANSWER]},
        {"choices": [ANSWER | {"finish_reason": "abort"}]},
        {"choices": 5},
    ],
)
def test_a_success_that_is_no_answer_falls(reply: dict[str, Any]) -> None:
    """A 200 with an error, without choices, or with an aborted one is a failure; in the shim it is shown."""
    play = Play(rung("pod"), cpu(), asked=call())
    play.replies(1, 200, dumps(reply))
    assert play.opened == ["pod", "local"]
    strict = Play(rung("host"), cpu(), asked=call(), strict=True)
    strict.replies(1, 200, dumps(reply))
    assert strict.opened == ["host"]
    assert strict.begun.status == 502


@pytest.mark.parametrize("status", [201, 202, 204, 301, 302, 307])
def test_another_success_or_a_redirect_is_no_answer(status: int) -> None:
    """Neither is ever shown as if it were one, nor followed."""
    play = Play(rung("pod"), cpu(), asked=call())
    play.replies(1, status, dumps({"choices": [ANSWER]}))
    assert play.opened == ["pod", "local"]


@pytest.mark.parametrize(
    "body", [b'{"error":null}', b'{"error":["x"]}', b'{"error":{}}', b"{}", b'{"error":"text"}']
)
def test_an_odd_error_is_still_the_callers_answer(body: bytes) -> None:
    """Whatever its shape, it goes back in OpenAI's frame with its status."""
    play = Play(rung("pod"), cpu())
    play.replies(1, 400, body)
    assert play.begun.status == 400
    assert play.opened == ["pod"]


def test_events_of_a_closed_attempt_are_nobodys_news() -> None:
    """What an abandoned backend still says is not taken for the next one's answer."""
    play = Play(rung("one"), cpu())
    play.passes(10)
    assert play.opened == ["one", "local"]
    assert play.send(Head(1, 10.1, 200, SSE)) == []
    assert play.send(Event(1, 10.1, First(TOKEN))) == []
    assert play.send(Lost(1, 10.2, "reset")) == []
    play.begins(2)
    assert play.chain.report.backend == "local"


def test_the_cpus_queue_is_not_silence() -> None:
    """Who waits for a slot of the CPU model waits, up to the deadline."""
    play = Play(cpu())
    play.passes(60)
    assert not play.is_over


def test_an_error_inside_a_200_stream_is_a_failure() -> None:
    """An error event where the first token should be hands over; its text is not shown."""
    play = Play(rung("pod"), cpu())
    play.streams(1, event({"error": {"message": "bad key sk-1 at http://10.0.0.1"}}))
    assert play.opened == ["pod", "local"]
    assert "sk-1" not in str(play.chain.report.failures)
    strict = Play(rung("host"), cpu(), strict=True)
    strict.streams(1, event({"error": {"message": "Incorrect API key"}}))
    assert strict.opened == ["host"]


@pytest.mark.parametrize("asked", [{"n": 2}, {"tools": [{}]}, {}])
def test_an_abort_before_the_first_token_is_a_failure(asked: dict[str, Any]) -> None:
    """An engine that is told to stop aborts what waits in its queue: the next rung answers it all."""
    play = Play(rung("pod"), rung("other"), asked=call(stream=True, **asked))
    play.streams(1, chunk(finish="abort"), DONE)
    assert play.opened == ["pod", "other"]
    play.streams(2, chunk("a"), chunk(finish="stop"), DONE)
    assert text_of(play.heard) == "a"
    assert play.adds_up()


# What the caller sees while and when nobody answers


def test_a_waiting_stream_gets_heartbeats() -> None:
    """After head_s a stream has its 200 and comments, and a later failure is an error event."""
    play = Play(rung("pod"))
    assert play.until == 5
    assert kinds(play.alarm()) == [Begin, Send]
    assert play.heard == b": waiting\n\n"
    assert play.begun.status == 200
    assert "x-sive-backend" not in play.begun.headers
    play.replies(1, 401)
    assert play.error["code"] == "no_backend"
    assert b"[DONE]" not in play.heard
    assert play.is_over


def test_json_sends_its_head_last() -> None:
    """A caller who wants one object waits without a head, so the status stays honest."""
    play = Play(rung("pod"), asked=call())
    play.passes(9)
    assert play.done == play.opens
    play.replies(1, 503, retry_after="7")
    assert play.begun.status == 503
    assert play.begun.headers["retry-after"] == "7"
    assert play.begun.headers["x-should-retry"] == "false"


def test_a_backend_that_failed_twice_is_named_once() -> None:
    """One part a backend; what it said twice is said once, and what it said then comes after it."""
    play = Play(rung("pod"), rung("other"))
    play.loses(1, "refused")
    play.passes(1)
    play.loses(2, "refused")
    play.replies(3, 500)
    play.passes(1)
    play.loses(4, "tls")
    assert play.error["message"] == (
        "no backend could answer for 'spinoza': pod: refused the connection; "
        "other: HTTP 500, then its certificate or TLS failed"
    )


NOBODY: Json = {
    "error": {
        "message": "no backend could answer for 'pod-model': engine: the engine is not ready "
        "(compiling for 40 s, about 60 s left)",
        "type": "server_error",
        "param": None,
        "code": "no_backend",
    }
}


def test_a_pods_own_reason_is_carried_on() -> None:
    """Callers hear why the pod's sive could not answer, and when to come back."""
    play = Play(rung("pod"))
    play.replies(1, 503, dumps(NOBODY), retry_after="60", x_sive_attempts="0")
    why = "pod: HTTP 503: the engine is not ready (compiling for 40 s, about 60 s left)"
    assert play.error["message"] == f"no backend could answer for 'spinoza': {why}"
    assert play.begun.headers["retry-after"] == "60"


def test_a_pods_own_reason_is_carried_on_from_a_stream() -> None:
    """A sive that had begun to show life says it in an event."""
    play = Play(rung("pod"), asked=call(stream=True))
    play.send(Head(1, 0.1, 200, SSE | {"x-sive-attempts": "0"}))
    play.send(Event(1, 0.2, First(NOBODY)))
    why = "an error in its stream: the engine is not ready (compiling for 40 s, about 60 s left)"
    assert why in play.error["message"]


def test_a_sive_is_not_told_what_it_knows() -> None:
    """That other voices are not its own is no news to one that asked for no other."""
    asked = replace(call(), hop=1, requires_adapter=True)
    play = Play(rung("pod"), cpu(), asked=asked)
    play.loses(1, "dns")
    assert play.error["message"] == "no backend could answer for 'spinoza': pod: its name was not found"
    alone = Play(cpu(), asked=asked)
    assert "another voice" in alone.error["message"]


def test_heartbeats_say_why_the_wanted_voice_is_not_there() -> None:
    """While somebody else is waited for, the engine's own words, on one line."""
    rests = {("pod", ""): Rest("the engine is not ready\n(loading for 3 s)", 12)}
    play = Play(rung("pod"), rung("other"), rests=rests)
    play.alarm()
    assert play.heard == b": waiting; pod: the engine is not ready (loading for 3 s)\n\n"


def test_when_all_fail_the_caller_hears_why_each_did() -> None:
    """The 503 names every rung and its reason, and no URL."""
    play = Play(rung("pod"), rung("other"), rests={("other", ""): Rest("the engine is loading", 12.2)})
    play.loses(1, "dns")
    assert play.begun.status == 503
    assert play.begun.headers["retry-after"] == "13"
    assert "pod: its name was not found" in play.error["message"]
    assert "other: the engine is loading" in play.error["message"]
    assert "http" not in play.error["message"]


def test_a_resting_backend_is_not_asked() -> None:
    """A backend known to be down costs a request nothing."""
    play = Play(rung("pod"), cpu(), rests={("pod", ""): Rest("down", 3)})
    assert play.opened == ["local"]


@pytest.mark.parametrize("said", ["inf", "nan", "-3", "1e300", "soon"])
def test_a_senseless_retry_after_is_survived(said: str) -> None:
    """The 503 carries a whole number of seconds all the same."""
    play = Play(rung("pod"), asked=call())
    play.replies(1, 503, retry_after=said)
    if not play.is_over:
        play.passes(3)
        play.replies(2, 503, retry_after=said)
    assert 1 <= int(play.begun.headers["retry-after"]) <= 3600


# Whose voice


def test_require_adapter_refuses_another_voice() -> None:
    """With x-sive-require the CPU is not asked under a philosopher's name."""
    play = Play(rung("pod"), cpu(), asked=call(stream=True, require=True))
    play.replies(1, 401)
    assert play.opened == ["pod"]
    assert play.begun.status == 503


def test_a_model_may_refuse_to_degrade() -> None:
    """Degrade = "refuse" is an error rather than another voice, for every caller."""
    play = Play(rung("pod"), cpu(), refuses_degraded=True)
    play.replies(1, 401)
    assert play.opened == ["pod"]
    assert play.begun.status == 503


def test_fields_a_rung_does_not_know_are_dropped_and_named() -> None:
    """The CPU gets what it understands; the caller is told what it did not."""
    play = Play(cpu(), asked=call(top_k=5, tools=[], n=1, temperature=0.5))
    assert set(play.asked.body) == {"model", "messages", "n", "temperature"}
    assert play.asked.headers["x-sive-truncate"] == "1"
    play.replies(1, 200, dumps({"model": "sive-embedded", "choices": [ANSWER]}))
    answer = loads(play.heard)
    assert answer["sive"]["dropped"] == ["tools", "top_k"]
    assert answer["model"] == "sive-embedded"


@pytest.mark.parametrize(("n", "dropped"), [(1, []), (4, []), (5, ["n"])])
def test_more_choices_than_the_cpu_gives_are_named(n: int, dropped: list[str]) -> None:
    """Up to four are asked for; of more it gives one, and says so."""
    play = Play(cpu(), asked=call(n=n))
    assert play.asked.body.get("n") == (None if dropped else n)
    play.replies(1, 200, dumps({"model": "sive-embedded", "choices": [ANSWER]}))
    assert loads(play.heard)["sive"]["dropped"] == dropped


def test_only_what_the_caller_sent_is_named_as_dropped() -> None:
    """Not the model's own sampling, and not what we asked a sive further up for."""
    asked = with_sampling(call(top_k=5), {"repetition_penalty": 1.1, "top_k": 9})
    play = Play(rung("hf", known_fields=OPENAI_FIELDS), asked=asked)
    assert "repetition_penalty" not in play.asked.body
    play.replies(1, 200, dumps({"model": "x", "choices": [ANSWER], "sive": {"dropped": ["min_p", "top_k"]}}))
    assert loads(play.heard)["sive"]["dropped"] == ["top_k"]


def test_a_streams_ids_that_we_asked_for_are_not_named_as_dropped() -> None:
    """A pod whose rung gives no token ids says that it dropped the field; the caller never sent it."""
    play = Play(rung("pod"), asked=call(stream=True, top_k=5))
    assert play.asked.body["return_token_ids"] is True
    said = {"sive": {"dropped": ["return_token_ids", "top_k"]}}
    play.streams(1, chunk("a", **said), chunk(finish="stop", **said), DONE)
    dropped = [one["sive"]["dropped"] for one in payloads(play.heard) if "sive" in one]
    assert dropped == [["top_k"]] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_who_would_begin_anew_is_not_asked_to_go_on(stream: bool) -> None:
    """A host that does not know the field answers 200, and the caller would join two answers."""
    begun = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "La joie"}]
    asked = call(messages=begun, continue_final_message=True, add_generation_prompt=False, stream=stream)
    deaf = rung("hf", known_fields=frozenset({"model", "messages", "stream", "stream_options"}))
    play = Play(deaf, cpu(), asked=asked)
    assert play.opened == ["local"]
    assert play.asked.body["continue_final_message"] is True
    assert Play(deaf, asked=asked).begun.status == 503
    told = rung("hf", known_fields=deaf.backend.known_fields, resume="text")
    assert Play(told, asked=asked).opened == ["hf"]
    assert Play(deaf, asked=call(messages=begun, stream=stream)).opened == ["hf"]


def test_the_model_is_the_served_name_when_not_degraded() -> None:
    """The backend's own spelling is replaced, and who spoke is said beside it."""
    play = Play(rung("pod"), asked=call())
    play.replies(1, 200, dumps({"model": "/weights/x", "choices": [ANSWER]}))
    answer = loads(play.heard)
    assert answer["model"] == "spinoza"
    assert answer["sive"] == {
        "backend": "pod",
        "degraded": False,
        "resumed": False,
        "truncated": False,
        "dropped": [],
    }


def test_a_system_prompt_is_only_lent_to_requests_without_one() -> None:
    """The model's prompt comes first, and never beside the caller's own."""
    play = Play(rung("pod"), system_prompt="You are Spinoza.")
    assert play.asked.body["messages"][0] == {"role": "system", "content": "You are Spinoza."}
    own = [{"role": "system", "content": "mine"}, {"role": "user", "content": "hi"}]
    play = Play(rung("pod"), asked=call(stream=True, messages=own), system_prompt="You are Spinoza.")
    assert play.asked.body["messages"] == own


def test_a_sive_never_degrades_for_another_sive() -> None:
    """Upstream requests say so, and count the hops."""
    play = Play(rung("pod"))
    assert play.asked.headers["x-sive-require"] == "adapter"
    assert play.asked.headers["x-sive-hop"] == "1"


# One answer in one piece


def test_json_is_streamed_upstream_and_put_together_here() -> None:
    """So clocks and resuming protect it; the caller sees one ordinary object."""
    play = Play(rung("pod"), asked=call())
    assert play.asked.body["stream"] is True
    assert play.asked.body["stream_options"] == {"include_usage": True}
    play.streams(
        1, chunk("a"), chunk("b"), chunk(finish="stop"), event({"choices": [], "usage": {"n": 2}}), DONE
    )
    answer = loads(play.heard)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "ab"}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"n": 2}
    assert answer["sive"]["backend"] == "pod"
    assert play.begun.headers["content-length"] == str(len(play.heard))


def test_json_of_a_host_that_does_not_stream_is_taken_as_it_comes() -> None:
    """A host that answers a stream request with one object has answered."""
    play = Play(rung("pod"), asked=call())
    play.replies(1, 200, dumps({"choices": [ANSWER]}))
    assert loads(play.heard)["choices"] == [ANSWER]


def test_a_stream_of_a_host_that_does_not_stream_is_no_answer() -> None:
    """One object where a stream was asked for hands over."""
    play = Play(rung("pod"), rung("other"))
    play.replies(1, 200, dumps({"choices": [ANSWER]}))
    assert play.opened == ["pod", "other"]


@pytest.mark.parametrize("field", ["best_of", "prompt_logprobs", "use_beam_search"])
def test_what_cannot_be_streamed_passes_whole(field: str) -> None:
    """As does everything of a model that says guard_json = false."""
    assert not Play(rung("pod"), asked=call(**{field: 2})).asked.stream
    assert not Play(rung("pod"), asked=call(), guards_json=False).asked.stream


def test_a_stream_that_is_no_answer_is_an_honest_error() -> None:
    """Chunks that cannot be put together never become a 200."""
    play = Play(rung("pod"), asked=call())
    odd = event({"choices": [{"index": 0, "delta": {"tool_calls": 5}, "finish_reason": None}]})
    play.streams(1, chunk("a"), odd, chunk(finish="stop"), DONE)
    while not play.is_over:
        play.passes(10)
    assert play.begun.status >= 500
    assert play.adds_up()


# The end of a stream


def test_an_answer_without_its_end_mark_is_complete() -> None:
    """Every choice has its finish_reason: what is missing is supplied within a second."""
    play = Play(rung("pod"))
    play.streams(1, chunk("a"), chunk(finish="stop"))
    play.passes(1)
    assert play.is_over
    assert play.heard.endswith(DONE)
    assert play.chain.report.is_complete
    assert play.adds_up()


@pytest.mark.parametrize("why", ["eof", "reset"])
def test_lost_after_the_finish_reason_is_complete(why: Any) -> None:
    """Nothing was left to say."""
    play = Play(rung("pod"))
    play.streams(1, chunk("a"), chunk(finish="stop"))
    play.loses(1, why)
    assert play.heard.endswith(DONE)
    assert play.opened == ["pod"]


def test_an_error_after_the_finish_reason_changes_nothing() -> None:
    """The answer was complete, so it ends well."""
    play = Play(rung("pod"))
    play.streams(1, chunk("a"), chunk(finish="stop"), event({"error": {"message": "died"}}))
    assert play.heard.endswith(DONE)
    assert play.opened == ["pod"]
    assert play.chain.report.cuts == []


def test_a_slow_caller_is_not_the_backends_stall() -> None:
    """Time in which the caller did not take what was sent does not count."""
    play = Play(rung("pod"))
    play.streams(1, chunk("a"))
    play.relay.is_blocked = True
    play.passes(30)
    assert play.open_now == {1}
    play.relay.is_blocked = False
    play.passes(8)
    assert 1 not in play.open_now


def test_a_caller_who_never_reads_is_let_go() -> None:
    """It must not hold a backend, and one of its places, for ever."""
    play = Play(rung("pod"))
    play.streams(1, chunk("a"))
    play.relay.is_blocked = True
    play.passes(CLOCKS.deadline_s + CLOCKS.stall_s)
    assert play.is_over
    assert play.chain.report.caller_left
    assert not any(play.health.in_flight().values())


def test_a_caller_who_does_not_read_is_no_sign_of_life() -> None:
    """Its frozen backend is silent for everybody else, and rests."""
    play = Play(rung("pod"))
    play.streams(1, chunk("a"))
    play.relay.is_blocked = True
    play.passes(40)
    assert play.health.silent(rung("pod"), CLOCKS.first_token_s, "no token", play.now)
    assert play.health.rest(rung("pod"), play.now) is not None


def test_bytes_move_the_clock_of_a_stream() -> None:
    """Only stall_s without any is a stall; comments are no progress."""
    play = Play(rung("pod"))
    play.streams(1, chunk("a"))
    play.passes(7)
    play.reads(1, [chunk("b")])
    play.passes(7)
    assert play.open_now == {1}
    play.reads(1, [b": still here\n\n"])
    play.passes(1)
    assert 1 not in play.open_now
    assert play.chain.report.cuts[0].reason == "stall"


# Those who end it


def test_a_caller_who_leaves_closes_the_backend() -> None:
    """The upstream is closed and nothing more is said."""
    play = Play(rung("pod"), cpu())
    play.begins(1)
    assert play.leaves() == [Close(1)]
    assert play.is_over
    assert play.chain.report.caller_left
    assert play.adds_up()


@pytest.mark.parametrize("asked", [{"stream": True}, {}])
def test_a_cancelled_request_is_told_so_with_an_honest_status(asked: dict[str, Any]) -> None:
    """Before the head: the status it was cancelled with; nothing runs on."""
    play = Play(rung("pod"), asked=call(**asked))
    play.cancel()
    assert play.begun.status == 499
    assert play.error["code"] == "request_cancelled"
    assert play.open_now == set()
    assert play.is_over
    assert play.chain.report.is_cancelled
    assert play.adds_up()


def test_a_cancelled_stream_ends_in_an_error_event() -> None:
    """After the head: never a clean end on half an answer."""
    play = Play(rung("pod"))
    play.streams(1, chunk("a"))
    play.cancel()
    assert play.begun.status == 200
    assert payloads(play.heard)[-1]["error"]["code"] == "request_cancelled"
    assert DONE not in play.heard
    assert play.open_now == set()
    assert play.adds_up()


def test_a_request_that_is_dropped_leaves_nothing_running() -> None:
    """A driver that is torn down closes the chain where it stands."""
    for play in (Play(rung("pod")), Play(rung("pod"))):
        play.begins(1)
        play.chain.close()
        assert play.adds_up()
