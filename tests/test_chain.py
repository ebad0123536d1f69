"""The chain on a fake clock, without sockets: what follows what."""

from typing import Any

import pytest
from sive.backends.openai import LOCAL_FIELDS, OpenAIBackend
from sive.calls import Call, parse
from sive.chain import Chain
from sive.events import (
    Alarm,
    Begin,
    CallerLeft,
    Close,
    Command,
    End,
    Event,
    First,
    Head,
    Lost,
    Open,
    Relay,
    Send,
    Step,
    Whole,
)
from sive.faces import StreamFace, WholeFace
from sive.health import Health
from sive.policy import Clocks, Policy
from sive.protocol import dumps, loads
from sive.relay import FailedInBand, Finished, Finishing
from sive.routes import Model, Rest, Rung

CLOCKS = Clocks(deadline_s=120, head_s=5, first_token_s=10, stall_s=8)
TOKEN: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
ANSWER = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
SSE = {"content-type": "text/event-stream"}
JSON = {"content-type": "application/json"}


def rung(name: str, **options: Any) -> Rung:
    """A rung that speaks OpenAI."""
    backend = OpenAIBackend(name, "http://x/v1", context_tokens=options.pop("context_tokens", None))
    return Rung(backend, f"{name}-model", "test", **options)


def cpu(**options: Any) -> Rung:
    """The CPU model as a fallback."""
    backend = OpenAIBackend(
        "local", "local:/v1", known_fields=LOCAL_FIELDS, context_tokens=512, wire="local", is_local=True
    )
    return Rung(backend, "sive-embedded", "test", is_degraded=True, **options)


def call(**body: Any) -> Call:
    """A caller's request."""
    body = {"model": "spinoza", "messages": [{"role": "user", "content": "hi"}]} | body
    headers = {"x-request-id": "r1"}
    if body.pop("require", False):
        headers["x-sive-require"] = "adapter"
    return parse("chat/completions", dumps(body), headers)


class Play:
    """A chain, a clock, and all that the caller and the driver were told."""

    def __init__(
        self,
        *rungs: Rung,
        asked: Call | None = None,
        strict: bool = False,
        rests: dict[str, Rest] | None = None,
        health: Health | None = None,
        now: float = 0.0,
        **model: Any,
    ) -> None:
        self.call = asked or call(stream=True)
        face = StreamFace() if self.call.stream else WholeFace(self.call)
        policy = Policy(CLOCKS, strict=strict, uniform=lambda least, most: most)
        self.health = health or Health(policy, rests=lambda: rests or {})
        self.chain = Chain(
            self.call,
            Model("spinoza", rungs, **model),
            face,
            policy,
            health=self.health,
            now=now,
        )
        self.done: list[Command] = []
        self.until: float | None = None
        self._take(self.chain.start())

    def _take(self, step: Step) -> list[Command]:
        self.done += step.do
        self.until = step.until
        return list(step.do)

    def send(self, event: Any) -> list[Command]:
        """Let something happen; what the chain does about it."""
        return self._take(self.chain.send(event))

    def alarm(self) -> list[Command]:
        """Let the time come that the chain asked for."""
        assert self.until is not None
        return self.send(Alarm(self.until))

    def answers(self, number: int, at: float = 1.0) -> list[Command]:
        """Attempt ``number`` gives a head and a first token."""
        self.send(Head(number, at, 200, SSE))
        return self.send(Event(number, at, First(TOKEN)))

    def refuses(
        self,
        number: int,
        status: int,
        body: bytes = b'{"error":{"message":"no"}}',
        at: float = 1.0,
        **headers: str,
    ) -> list[Command]:
        """Attempt ``number`` gives a whole reply."""
        named = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
        self.send(Head(number, at, status, named))
        return self.send(Event(number, at, Whole(body)))

    @property
    def opened(self) -> list[str]:
        """Backends that were asked, in order."""
        return [command.rung.backend.name for command in self.done if isinstance(command, Open)]

    @property
    def begun(self) -> Begin:
        """The head the caller got; exactly one."""
        (begin,) = [command for command in self.done if isinstance(command, Begin)]
        return begin

    @property
    def said(self) -> bytes:
        """The bytes the chain itself sent to the caller."""
        return b"".join(command.data for command in self.done if isinstance(command, Send | End))

    @property
    def error(self) -> dict[str, Any]:
        """The error the caller got."""
        body = self.said.removeprefix(b": waiting\n\n").removeprefix(b"data: ")
        error: dict[str, Any] = loads(body)["error"]
        return error

    @property
    def is_over(self) -> bool:
        """Is there nothing to wait for?"""
        return self.until is None


def test_the_first_rung_answers() -> None:
    """The first token of the first rung begins the answer; nobody else is asked."""
    play = Play(rung("pod"), cpu())
    assert [type(command) for command in play.answers(1)] == [Begin, Relay]
    assert play.begun.headers["x-sive-backend"] == "pod"
    assert play.begun.headers["x-sive-degraded"] == "false"
    assert play.begun.headers["x-request-id"] == "r1"
    play.send(Event(1, 2.0, Finishing()))
    assert [type(command) for command in play.send(Event(1, 2.0, Finished({"completion_tokens": 3})))] == [
        Close,
        End,
    ]
    assert play.is_over
    assert play.opened == ["pod"]
    assert play.chain.report.usage == {"completion_tokens": 3}


def test_a_200_head_is_not_yet_an_answer() -> None:
    """A backend that dies between its head and its first token hands over to the next rung."""
    play = Play(rung("pod"), cpu())
    assert play.send(Head(1, 1.0, 200, SSE)) == []
    play.send(Lost(1, 2.0, "reset"))
    play.answers(2)
    assert play.opened == ["pod", "local"]
    assert play.begun.headers["x-sive-degraded"] == "true"
    assert play.begun.headers["x-sive-attempts"] == "2"


@pytest.mark.parametrize("status", [401, 402, 403, 404, 408, 425, 429, 500, 502, 503, 520, 524, 529])
def test_a_status_that_is_the_backends_trouble_falls_to_the_next_rung(status: int) -> None:
    """What another rung may do better is never shown."""
    play = Play(rung("pod"), rung("other"))
    play.refuses(1, status)
    assert play.opened == ["pod", "other"]
    assert play.chain.report.failures[0].reason == f"http_{status}"


@pytest.mark.parametrize("status", [400, 405, 409, 413, 415, 422])
def test_a_400_is_the_callers_answer(status: int) -> None:
    """A wrong request goes back as it came, from the first rung, with its status."""
    play = Play(rung("pod"), cpu())
    play.refuses(1, status, b'{"error":{"message":"bad tool","type":"x","param":"tools","code":"c"}}')
    assert play.opened == ["pod"]
    assert play.begun.status == status
    assert play.error == {"message": "bad tool", "type": "x", "param": "tools", "code": "c"}
    assert play.is_over


@pytest.mark.parametrize(
    "said", ["This model's maximum context length is 10 tokens", "context_length_exceeded", "context window"]
)
def test_too_long_for_one_may_fit_another(said: str) -> None:
    """A context overflow falls on; when it is everybody's, it is a 400 with OpenAI's code."""
    play = Play(rung("pod", context_tokens=10))
    play.refuses(1, 400, dumps({"error": {"message": said, "code": None}}))
    assert play.begun.status == 400
    assert play.error["code"] == "context_length_exceeded"


def test_too_long_without_a_word_is_still_said() -> None:
    """An error that only has a code gets a message."""
    play = Play(rung("pod", context_tokens=10))
    play.refuses(1, 400, b'{"error":{"code":"context_length_exceeded"}}')
    assert (
        play.error["message"] == "This model's maximum context length is 10 tokens; your request is longer."
    )


def test_what_plainly_does_not_fit_is_refused_without_asking_anybody() -> None:
    """More than 16 bytes per token of context cannot fit, so no tokenizer has to look at it."""
    play = Play(rung("pod", context_tokens=10), asked=call(messages=[{"role": "user", "content": "x" * 161}]))
    assert play.opened == []
    assert play.begun.status == 400
    assert play.error["code"] == "context_length_exceeded"


def test_a_reset_on_an_idle_connection_counts_for_nothing() -> None:
    """Nobody has seen that request: the same backend gets it once more, on a fresh connection."""
    play = Play(rung("pod"), cpu())
    play.send(Lost(1, 1.0, "reset_reused"))
    assert play.opened == ["pod", "pod"]
    play.send(Lost(2, 1.0, "reset_reused"))
    assert play.opened == ["pod", "pod", "local"]


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
    play.refuses(1, 200, dumps(reply))
    assert play.opened == ["pod", "local"]
    strict = Play(rung("host"), cpu(), asked=call(), strict=True)
    strict.refuses(1, 200, dumps(reply))
    assert strict.opened == ["host"]
    assert strict.begun.status == 502


@pytest.mark.parametrize("status", [201, 202, 204, 301, 302, 307])
def test_another_success_or_a_redirect_is_no_answer(status: int) -> None:
    """Neither is ever shown as if it were one, nor followed."""
    play = Play(rung("pod"), cpu(), asked=call())
    play.refuses(1, status, dumps({"choices": [ANSWER]}))
    assert play.opened == ["pod", "local"]


@pytest.mark.parametrize(
    "body", [b'{"error":null}', b'{"error":["x"]}', b'{"error":{}}', b"{}", b'{"error":"text"}']
)
def test_an_odd_error_is_still_the_callers_answer(body: bytes) -> None:
    """Whatever its shape, it goes back in OpenAI's frame with its status."""
    play = Play(rung("pod"), cpu())
    play.refuses(1, 400, body)
    assert play.begun.status == 400
    assert play.opened == ["pod"]


def test_events_of_a_closed_attempt_are_nobodys_news() -> None:
    """What an abandoned backend still says is not taken for the next one's answer."""
    play = Play(rung("one"), cpu())
    play.alarm()
    play.alarm()
    assert play.opened == ["one", "local"]
    assert play.send(Head(1, 10.1, 200, SSE)) == []
    assert play.send(Event(1, 10.1, First(TOKEN))) == []
    assert play.send(Lost(1, 10.2, "reset")) == []
    play.answers(2, at=11)
    assert play.chain.report.backend == "local"


def test_the_cpus_queue_is_not_silence() -> None:
    """Who waits for a slot of the CPU model waits, up to the deadline."""
    play = Play(cpu())
    while play.until is not None and play.until < 60:
        play.alarm()
    assert not play.is_over


@pytest.mark.parametrize("said", ["inf", "nan", "-3", "1e300", "soon"])
def test_a_senseless_retry_after_is_survived(said: str) -> None:
    """The 503 carries a whole number of seconds all the same."""
    play = Play(rung("pod"), asked=call())
    play.refuses(1, 503, retry_after=said)
    assert 1 <= int(play.begun.headers["retry-after"]) <= 3600


def test_a_callers_own_429_keeps_what_it_says_of_time() -> None:
    """In the shim the SDK's back-off sees the host's Retry-After."""
    play = Play(rung("host"), cpu(), strict=True)
    play.refuses(1, 429, retry_after="7", server="secret")
    assert play.begun.headers["retry-after"] == "7"
    assert "server" not in play.begun.headers


def test_an_error_inside_a_200_stream_is_a_failure() -> None:
    """An error event where the first token should be hands over; its text is not shown."""
    play = Play(rung("pod"), cpu())
    play.send(Head(1, 1.0, 200, SSE))
    play.send(Event(1, 1.0, First({"error": {"message": "bad key sk-1 at http://10.0.0.1"}})))
    assert play.opened == ["pod", "local"]
    assert "sk-1" not in str(play.chain.report.failures)
    strict = Play(rung("host"), cpu(), strict=True)
    strict.send(Head(1, 1.0, 200, SSE))
    strict.send(Event(1, 1.0, First({"error": {"message": "Incorrect API key"}})))
    assert strict.opened == ["host"]


def test_a_silent_backend_is_left_after_its_clock() -> None:
    """No first token within first_token_s closes the attempt and asks the next rung."""
    play = Play(rung("pod"), cpu())
    play.alarm()  # the heartbeat at 5 s
    commands = play.alarm()
    assert commands[0] == Close(1)
    assert play.opened == ["pod", "local"]
    assert play.chain.report.failures[0].reason == "silent"


def test_a_waiting_stream_gets_heartbeats() -> None:
    """After head_s a stream has its 200 and comments, and a later failure is an error event."""
    play = Play(rung("pod"))
    assert play.until == 5
    assert [type(command) for command in play.alarm()] == [Begin, Send]
    assert play.said == b": waiting\n\n"
    assert play.begun.status == 200
    assert "x-sive-backend" not in play.begun.headers
    play.send(Lost(1, 7.0, "reset"))
    assert play.error["code"] == "no_backend"
    assert b"[DONE]" not in play.said
    assert play.is_over


def test_json_sends_its_head_last() -> None:
    """A caller who wants one object waits without a head, so the status stays honest."""
    play = Play(rung("pod"), asked=call())
    play.alarm()
    play.alarm()
    assert play.said == b""
    play.refuses(1, 503, retry_after="7")
    assert play.begun.status == 503
    assert play.begun.headers["retry-after"] == "7"
    assert play.begun.headers["x-should-retry"] == "false"


def test_when_all_fail_the_caller_hears_why_each_did() -> None:
    """The 503 names every rung and its reason, and no URL."""
    play = Play(rung("pod"), rung("other"), rests={"other": Rest("the engine is loading", 12.2)})
    play.send(Lost(1, 1.0, "refused"))
    assert play.begun.status == 503
    assert play.begun.headers["retry-after"] == "13"
    assert "pod: refused the connection" in play.error["message"]
    assert "other: the engine is loading" in play.error["message"]
    assert "http" not in play.error["message"]


def test_a_resting_backend_is_not_asked() -> None:
    """A backend known to be down costs a request nothing."""
    play = Play(rung("pod"), cpu(), rests={"pod": Rest("down", 3)})
    assert play.opened == ["local"]


def test_an_answer_that_breaks_off_ends_in_an_error_event() -> None:
    """Half an answer never ends cleanly."""
    play = Play(rung("pod"), cpu())
    play.answers(1)
    play.send(Lost(1, 3.0, "eof"))
    assert play.error["code"] == "stream_interrupted"
    assert b"[DONE]" not in play.said
    assert isinstance(play.done[-1], End)
    assert not play.chain.report.is_complete


def test_an_abort_in_the_stream_is_a_loss() -> None:
    """What the relay recognises as a failure in band ends in an error event."""
    play = Play(rung("pod"))
    play.answers(1)
    play.send(Event(1, 2.0, FailedInBand("the backend aborted the answer")))
    assert play.error["code"] == "stream_interrupted"


def test_a_stream_that_stalls_is_cut() -> None:
    """No bytes for stall_s is a loss; bytes move the clock."""
    play = Play(rung("pod"))
    relay = next(command.relay for command in play.answers(1, at=1.0) if isinstance(command, Relay))
    relay.fed_at = 6.0
    assert play.until == 9.0
    assert play.alarm() == []
    assert play.until == 14.0
    assert play.alarm()[0] == Close(1)
    assert play.error["code"] == "stream_interrupted"


def test_a_slow_caller_is_not_the_backends_stall() -> None:
    """Time in which the caller did not take what was sent does not count."""
    play = Play(rung("pod"))
    relay = next(command.relay for command in play.answers(1) if isinstance(command, Relay))
    relay.is_blocked = True
    assert play.alarm() == []
    assert play.alarm() == []
    relay.is_blocked = False
    assert play.alarm()[0] == Close(1)


def test_an_answer_without_its_end_mark_is_complete() -> None:
    """Every choice has its finish_reason: what is missing is supplied, and nothing is lost."""
    play = Play(rung("pod"))
    relay = next(command.relay for command in play.answers(1) if isinstance(command, Relay))
    relay.feed(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n', 2.0)
    play.send(Event(1, 2.0, Finishing()))
    commands = play.alarm()
    assert commands[-1] == End(b"data: [DONE]\n\n")
    assert play.chain.report.is_complete


def test_the_deadline_ends_the_search() -> None:
    """One deadline over all attempts: no rung is asked after it."""
    play = Play(*(rung(f"pod{number}") for number in range(20)), asked=call())
    while not play.is_over:
        play.alarm()
    assert play.opened == ["pod0", "pod1"]  # 100 s for a whole answer, then 20 s are left
    assert play.begun.status == 503


def test_a_caller_who_leaves_closes_the_backend() -> None:
    """The upstream is closed and nothing more is said."""
    play = Play(rung("pod"), cpu())
    play.answers(1)
    assert play.send(CallerLeft(2.0)) == [Close(1)]
    assert play.is_over
    assert play.chain.report.caller_left


def test_require_adapter_refuses_another_voice() -> None:
    """With x-sive-require the CPU is not asked under a philosopher's name."""
    play = Play(rung("pod"), cpu(), asked=call(stream=True, require=True))
    play.send(Lost(1, 1.0, "refused"))
    assert play.opened == ["pod"]
    assert play.begun.status == 503


def test_a_model_may_refuse_to_degrade() -> None:
    """Degrade = "refuse" is an error rather than another voice, for every caller."""
    play = Play(rung("pod"), cpu(), refuses_degraded=True)
    play.send(Lost(1, 1.0, "refused"))
    assert play.begun.status == 503


def test_strict_shows_a_wrong_key_rather_than_another_voice() -> None:
    """In the shim without a sive.toml a 401, 429 or 500 is the caller's answer."""
    for status in (401, 404, 429, 500):
        play = Play(rung("host"), cpu(), strict=True)
        play.refuses(1, status)
        assert play.opened == ["host"]
        assert play.begun.status == status


@pytest.mark.parametrize("status", [502, 503, 504])
def test_strict_falls_when_the_host_is_gone(status: int) -> None:
    """In the shim 502, 503 and 504 hand over."""
    play = Play(rung("host"), cpu(), strict=True)
    play.refuses(1, status)
    assert play.opened == ["host", "local"]


def test_fields_a_rung_does_not_know_are_dropped_and_named() -> None:
    """The CPU gets what it understands; the caller is told what it did not."""
    asked = call(top_k=5, tools=[], n=1, temperature=0.5)
    play = Play(cpu(), asked=asked)
    request = next(command.request for command in play.done if isinstance(command, Open))
    assert set(request.body) == {"model", "messages", "temperature"}
    assert request.headers["x-sive-truncate"] == "1"
    play.refuses(1, 200, dumps({"model": "sive-embedded", "choices": [ANSWER]}))
    answer = loads(play.said)
    assert answer["sive"]["dropped"] == ["tools", "top_k"]
    assert answer["model"] == "sive-embedded"


def test_the_model_is_the_served_name_when_not_degraded() -> None:
    """The backend's own spelling is replaced, and who spoke is said beside it."""
    play = Play(rung("pod"), asked=call())
    play.refuses(1, 200, dumps({"model": "/weights/x", "choices": [ANSWER]}))
    answer = loads(play.said)
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
    messages = next(c.request.body["messages"] for c in play.done if isinstance(c, Open))
    assert messages[0] == {"role": "system", "content": "You are Spinoza."}
    own = [{"role": "system", "content": "mine"}, {"role": "user", "content": "hi"}]
    play = Play(rung("pod"), asked=call(stream=True, messages=own), system_prompt="You are Spinoza.")
    assert next(c.request.body["messages"] for c in play.done if isinstance(c, Open)) == own


def test_a_sive_never_degrades_for_another_sive() -> None:
    """Upstream requests say so, and count the hops."""
    play = Play(rung("pod"))
    request = next(command.request for command in play.done if isinstance(command, Open))
    assert request.headers["x-sive-require"] == "adapter"
    assert request.headers["x-sive-hop"] == "1"
