"""What an outcome means: the policy's table, row by row, and that no reply can confuse it."""

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sive.errors import Why
from sive.policy import LOST_IN_STRICT, STATUSES_IN_STRICT, Clocks, Policy, Verdict, retry_after_s
from sive.protocol import dumps

JSON = {"content-type": "application/json"}
BACKOFF = Clocks().backoff_s[1]
POLICY = Policy(uniform=lambda least, most: most)
STRICT = Policy(strict=True, uniform=lambda least, most: most)


def judge(status: int, message: str = "no", *, policy: Policy = POLICY, **error: Any) -> Verdict:
    """The verdict on an OpenAI error; ``retry_after`` is a header."""
    headers = JSON | ({"retry-after": error.pop("retry_after")} if "retry_after" in error else {})
    return policy.judge(status, headers, dumps({"error": {"message": message, **error}}))


@pytest.mark.parametrize("why", ["refused", "reset", "reset_reused"])
def test_lost_before_a_byte_is_asked_once_more(why: Why) -> None:
    """Refused, or reset before a byte: once more after the jitter."""
    assert POLICY.lost(why, before_a_byte=True) == Verdict("again", "host", BACKOFF)


@pytest.mark.parametrize("why", ["tls", "dns", "timeout", "malformed", "too_large"])
def test_lost_otherwise_hands_over(why: Why) -> None:
    """A TLS failure or whatever asking again does not mend: the next rung."""
    assert POLICY.lost(why, before_a_byte=True) == Verdict("next_rung", "host")


@pytest.mark.parametrize("why", ["reset", "eof", "timeout"])
def test_lost_after_the_head_hands_over(why: Why) -> None:
    """Something was said, so it may have worked on the request: the next rung."""
    assert POLICY.lost(why, before_a_byte=False) == Verdict("next_rung", "host")


@pytest.mark.parametrize(("status", "blame"), [(500, "model"), (502, "host")])
def test_500_and_502_are_asked_once_more(status: int, blame: str) -> None:
    """A server's slip: once more after the jitter; a 500 is the model's, a 502 the host's."""
    verdict = judge(status)
    assert (verdict.follow, verdict.blame, verdict.wait_s) == ("again", blame, BACKOFF)


@pytest.mark.parametrize("status", [501, 503, 504, 507, 520, 521, 522, 523, 524, 525, 526, 527, 529])
def test_other_server_errors_hand_over(status: int) -> None:
    """The next rung at once, and the host is to blame."""
    assert judge(status) == Verdict("next_rung", "host")


@pytest.mark.parametrize("status", [408, 425])
def test_a_timeout_of_theirs_hands_over(status: int) -> None:
    """408 and 425: the next rung, nobody's fault."""
    assert judge(status) == Verdict("next_rung")


@pytest.mark.parametrize("status", [429, 503])
def test_a_short_retry_after_is_waited_for(status: int) -> None:
    """Up to three seconds: that long, then the same backend."""
    verdict = judge(status, retry_after="3")
    assert (verdict.follow, verdict.blame, verdict.wait_s) == ("again", "nobody", 3)


@pytest.mark.parametrize(("status", "blame"), [(429, "nobody"), (503, "host")])
def test_a_long_retry_after_hands_over(status: int, blame: str) -> None:
    """More than three seconds: the next rung, and the caller is told how long if all fail."""
    verdict = judge(status, retry_after="4")
    assert (verdict.follow, verdict.blame, verdict.retry_after_s) == ("next_rung", blame, 4)


def test_a_429_without_a_word_is_asked_once_more() -> None:
    """A short jittered pause, nobody's fault, and no time that a caller should wait."""
    assert judge(429) == Verdict("again", "nobody", BACKOFF)


def test_an_engines_full_queue_is_asked_once_more() -> None:
    """The 503 of vLLM itself: busy, not broken."""
    said = "The engine is currently busy and cannot accept new requests."
    assert judge(503, said, type="Service Unavailable", code=503) == Verdict("again", "nobody", BACKOFF)


def test_a_sive_that_has_nobody_for_a_model_may_have_somebody_for_another() -> None:
    """The 503 of a pod whose own voice is not there says nothing about its other models."""
    said = "no backend could answer for 'spinoza': local: another voice"
    assert judge(503, said, type="server_error", code="no_backend") == Verdict("next_rung", "model")


@pytest.mark.parametrize("status", [200, 400, 404, 500, 502, 503])
def test_html_is_never_believed(status: int) -> None:
    """A proxy's page hands over, whatever its status."""
    verdict = POLICY.judge(status, {"content-type": "text/html"}, b"<html>{</html>")
    assert verdict.follow in ("next_rung", "no_answer")
    assert verdict.blame != "nobody"


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_refusal_rests_long(status: int) -> None:
    """A wrong key, no credit: the next rung, and asking again does not mend it."""
    assert judge(status) == Verdict("next_rung", "refusal")


def test_a_host_without_the_route_rests_long() -> None:
    """404 other than an unknown model."""
    assert judge(404, "Not Found") == Verdict("next_rung", "refusal")


@pytest.mark.parametrize(
    "error",
    [
        {"code": "model_not_found"},
        {"message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404},
    ],
)
def test_an_unknown_model_is_that_models_trouble(error: dict[str, Any]) -> None:
    """OpenAI's and vLLM's words for it: other models there are not to blame."""
    assert judge(404, **error) == Verdict("next_rung", "model")


@pytest.mark.parametrize(
    "message",
    ["The requested model 'x' is not supported by any provider you have enabled.", "model_not_supported"],
)
def test_a_model_that_no_provider_has_rests_long(message: str) -> None:
    """A 400 that blames our choice of backend is not the caller's."""
    assert judge(400, message) == Verdict("next_rung", "refusal")


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize(
    "error",
    [
        {"code": "context_length_exceeded"},
        {"message": "This model's maximum context length is 128 tokens. However, your request has 9000."},
        {"message": "the prompt exceeds the context window"},
    ],
)
def test_too_long_is_only_for_who_reads_more(status: int, error: dict[str, Any]) -> None:
    """By code or by text, as hosts say it."""
    assert judge(status, **error) == Verdict("too_long")


@pytest.mark.parametrize("status", [400, 405, 409, 413, 415, 422, 451])
def test_other_client_errors_are_the_callers(status: int) -> None:
    """Content policy, wrong fields: never rerouted."""
    assert judge(status, code="content_policy_violation") == Verdict("callers_answer")


@pytest.mark.parametrize("status", [201, 202, 204, 206, 301, 302, 307])
def test_another_success_is_no_answer(status: int) -> None:
    """Only a 200 with a JSON object is one."""
    assert POLICY.judge(status, JSON, b"{}").follow == "no_answer"
    assert POLICY.judge(200, JSON, b"[]").follow == "no_answer"
    assert POLICY.judge(200, JSON, b"{}") == Verdict("answer")


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 422, 429, 500, 501, 520])
def test_strict_gives_an_error_back(status: int) -> None:
    """In the shim without a configuration a wrong key must not answer gpt2."""
    assert judge(status, policy=STRICT) == Verdict("callers_answer")


@pytest.mark.parametrize("status", sorted(STATUSES_IN_STRICT))
def test_strict_hands_over_when_the_host_is_gone(status: int) -> None:
    """502, 503 and 504 alone."""
    assert judge(status, policy=STRICT).follow in ("again", "next_rung")


@pytest.mark.parametrize("why", get_args(Why))
def test_strict_hands_over_when_the_host_cannot_be_reached(why: Why) -> None:
    """Connect, TLS and silence; what is not HTTP is shown."""
    follow = STRICT.lost(why, before_a_byte=False).follow
    assert (follow in ("again", "next_rung")) == (why in LOST_IN_STRICT)
    assert follow in ("again", "next_rung", "no_answer")


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("-3", 0),
        ("2.5", 2.5),
        ("1e300", 3600),
        ("inf", None),
        ("nan", None),
        ("soon", None),
    ],
)
def test_retry_after_is_a_sensible_number_or_none(said: str, seconds: float | None) -> None:
    """An hour at most; what is no number is not waited for."""
    assert retry_after_s({"retry-after": said}) == seconds
    assert retry_after_s({}) is None


@pytest.mark.parametrize(
    ("said", "seconds"), [("20.5", 20.5), ("true", None), ("1" + "0" * 400, None), ('"soon"', None)]
)
def test_a_wait_that_a_body_says_is_a_sensible_number_or_none(said: str, seconds: float | None) -> None:
    """An integer may have any number of digits."""
    body = b'{"error": "loading", "estimated_time": %b}' % said.encode()
    assert retry_after_s({}, body) == seconds
    assert Policy().judge(503, {"content-type": "application/json"}, body).retry_after_s == seconds


def test_the_jitter_stays_within_its_bounds() -> None:
    """50 to 250 ms unless configured otherwise."""
    drawn = [Policy().backoff_s() for _ in range(100)]
    assert 0.05 <= min(drawn) < max(drawn) <= 0.25


BODIES = st.one_of(
    st.binary(max_size=60),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["error", "message", "code", "type", "choices"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    ).map(dumps),
)
HEADERS = st.dictionaries(
    st.sampled_from(["content-type", "retry-after", "x"]),
    st.sampled_from(["application/json", "text/html", "3", "-1", "nan", "1_0", "", "٣"])
    | st.text(max_size=9),
)


@given(st.integers(100, 999), HEADERS, BODIES, st.booleans())
def test_no_reply_can_confuse_it(status: int, headers: dict[str, str], body: bytes, strict: bool) -> None:
    """Any status, headers and body have a verdict, and only a 200 is ever an answer."""
    verdict = Policy(strict=strict).judge(status, headers, body)
    assert (verdict.follow == "answer") <= (status == 200 and body.lstrip()[:1] == b"{")
    assert (verdict.follow == "callers_answer") <= (status >= 400)
    assert (verdict.follow == "again") <= (verdict.wait_s is not None and 0 <= verdict.wait_s <= 3)
