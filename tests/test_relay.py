"""Server-sent events and the relay: any split of any stream gives the caller the same."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sive import sse
from sive.pass_on import MAX_KEPT_BYTES, StreamRelay
from sive.protocol import dumps, loads
from sive.relay import FailedInBand, Finished, Finishing, Label

WORDS = st.lists(st.text(max_size=12), min_size=1, max_size=8)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def chunk(text: str | None, finish: str | None = None, **more: Any) -> bytes:
    """One upstream event."""
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return b"data: " + dumps({"id": "u", "model": "theirs", "choices": [choice], **more}) + b"\n\n"


def usage(tokens: int) -> bytes:
    """The usage event."""
    return (
        b"data: "
        + dumps({"model": "theirs", "choices": [], "usage": {"completion_tokens": tokens}})
        + b"\n\n"
    )


def answer(words: list[str]) -> bytes:
    """A whole, well-formed stream."""
    return b"".join(map(chunk, words)) + chunk(None, "stop") + usage(len(words)) + b"data: [DONE]\n\n"


def relay(**options: Any) -> StreamRelay:
    """A relay under the caller's name for the model."""
    return StreamRelay(Label("ours", {"backend": "b"}), **({"wants_usage": False} | options))


def run(fed: StreamRelay, pieces: list[bytes]) -> tuple[bytes, list[object]]:
    """Feed all pieces; the caller's bytes and what happened."""
    out, happened = b"", []
    for piece in pieces:
        out += fed.feed(piece, 0.0)
        if (happening := fed.take()) is not None:
            happened.append(happening)
        if isinstance(happening, Finished | FailedInBand):
            break
    return out, happened


def payloads(data: bytes) -> list[dict[str, Any]]:
    """What the caller's SDK would parse."""
    read = [sse.read(event) for event in sse.split(data)]
    return [data.json() for data in read if data is not None and not data.is_done]


def text(data: bytes) -> str:
    """The text the caller sees."""
    said = [
        payload["choices"][0]["delta"].get("content") or ""
        for payload in payloads(data)
        if payload["choices"]
    ]
    return "".join(said)


@given(words=WORDS, cuts=st.lists(st.integers(0, 4000), max_size=12), end=ENDS)
def test_any_split_gives_the_caller_the_same(words: list[str], cuts: list[int], end: bytes) -> None:
    """Text, labels and the end are the same wherever the bytes were split, with every kind of line end."""
    whole = answer(words).replace(b"\n", end)
    marks = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    out, happened = run(relay(), [whole[a:b] for a, b in itertools.pairwise(marks)])
    assert text(out) == "".join(words)
    assert {payload["model"] for payload in payloads(out)} == {"ours"}
    assert happened[-1] == Finished({"completion_tokens": len(words)})
    assert out.replace(b"\r\n", b"\n").endswith(b"data: [DONE]\n\n")
    labelled = [payload for payload in payloads(out) if "sive" in payload]
    assert len(labelled) == 2
    assert not any(payload.get("usage") for payload in payloads(out))


@given(words=WORDS, cut=st.integers(0, 4000))
def test_a_cut_is_never_a_clean_end(words: list[str], cut: int) -> None:
    """Cut anywhere, the caller has a prefix of the text, and the relay knows whether it was all."""
    whole = answer(words)
    fed = relay()
    out, happened = run(fed, [whole[:cut]])
    assert "".join(words).startswith(text(out))
    assert fed.is_finished == (b'"stop"' in out)
    if not fed.is_finished:
        assert b"\n\ndata: [DONE]" not in out  # which a text may say, but not on a line of its own
        assert not any(isinstance(happening, Finished) for happening in happened)


@given(st.binary(max_size=300), st.integers(1, 50))
def test_no_bytes_can_break_it(noise: bytes, size: int) -> None:
    """Noise is skipped or held, never an exception, and never reaches the caller as half an event."""
    fed = relay()
    fed.feed(chunk("a"), 0.0)
    out, _ = run(fed, [noise[start : start + size] for start in range(0, len(noise), size)])
    assert out == b"" or out.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))


@given(words=WORDS, ids=st.lists(st.integers(0, 10**6), max_size=3), may_strip=st.booleans())
def test_events_that_come_singly_are_as_those_that_come_together(
    words: list[str], ids: list[int], may_strip: bool
) -> None:
    """Text is the same, and so are the ids, what is kept of them, and what is counted."""
    plain = [{"index": 0, "delta": {"content": w}, "logprobs": None, "finish_reason": None} for w in words]
    events = [chunk("a", created=5)] + [
        b"data: " + dumps({"id": "u", "model": "theirs", "choices": [one | {"token_ids": ids}]}) + b"\n\n"
        for one in plain
    ]
    alone, together = (relay(strips_ids=may_strip, keeps=True) for _ in range(2))
    out, _ = run(alone, events)
    assert payloads(out) == payloads(run(together, [b"".join(events)])[0])
    shown = [payload["choices"][0].get("token_ids") for payload in payloads(out)[1:]]
    assert shown == [None if may_strip else ids] * len(words)
    assert alone.chunks == together.chunks == len(events)
    assert (one := alone.transcript()) is not None
    assert (other := together.transcript()) is not None
    assert (one.text, one.ids) == (other.text, other.ids)


@pytest.mark.parametrize(
    ("event", "happening"),
    [
        (chunk("b", "stop"), Finishing),
        (chunk("b", "abort"), FailedInBand),
        (chunk("b", error={"message": "x"}), FailedInBand),
        (chunk("b").replace(b'"id":"u"', b'"error":"x"'), FailedInBand),
        (chunk("b").replace(b'"model":"theirs"', b'"error":"x"'), FailedInBand),
        (chunk("b").replace(b'"logprobs":null', b'"finish_reason":"stop"'), type(None)),
        (chunk("b\n\ndata: [DONE]\n\n"), type(None)),
    ],
)
def test_an_event_that_comes_singly_is_looked_at(event: bytes, happening: type) -> None:
    """What says more than text is noticed however alike it looks; a later key of the same name counts."""
    fed = relay()
    fed.feed(chunk("a"), 0.0)
    fed.feed(event, 0.0)
    assert type(fed.take()) is happening


def test_an_event_of_several_lines_may_be_cut_between_them() -> None:
    """Only an empty line ends an event."""
    whole = chunk("b").replace(b'"model"', b'\ndata: "model"').replace(b'"choices"', b'\ndata: "choices"')
    for cut in range(1, len(whole)):
        fed = relay()
        fed.feed(chunk("a"), 0.0)
        out = fed.feed(whole[:cut], 0.0) + fed.feed(whole[cut:], 0.0)
        assert text(out) == "b", cut
        assert fed.malformed == 0


def test_a_choice_that_only_said_text_is_missed_when_it_has_no_end() -> None:
    """Of several choices each must end, however little its events say."""
    second = chunk("a").replace(b'"index":0', b'"index":1')
    ending = chunk(None, "stop").replace(b'"index":0', b'"index":1')
    _, happened = run(relay(choices=2), [second, chunk("b"), ending, b"data: [DONE]\n\n"])
    assert isinstance(happened[-1], FailedInBand)


def test_usage_beside_text_is_counted_and_not_shown() -> None:
    """Some backends count in every chunk."""
    fed = relay()
    fed.feed(chunk("a"), 0.0)
    out = fed.feed(chunk("b", usage={"completion_tokens": 2}), 0.0)
    assert fed.usage == {"completion_tokens": 2}
    assert "usage" not in payloads(out)[0]
    assert payloads(fed.feed(chunk("c", usage=None), 0.0))[0]["choices"][0]["delta"] == {"content": "c"}


def test_plain_chunks_pass_untouched() -> None:
    """Whatever stands in a chunk that only carries text stays as the backend wrote it."""
    fed = StreamRelay(Label(None, {}), wants_usage=False)
    fed.feed(chunk("first"), 0.0)
    odd = b'data: {"odd": 1,   "choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
    assert fed.feed(odd, 0.0) == odd
    assert fed.chunks == 2


def test_usage_is_shown_to_who_asked() -> None:
    """The usage chunk passes, under the caller's name for the model."""
    out, _ = run(relay(wants_usage=True), [answer(["a"])])
    assert payloads(out)[-1] == {"model": "ours", "choices": [], "usage": {"completion_tokens": 1}}


def test_an_error_in_the_middle_is_held_back() -> None:
    """What came before it passes; its text, which may hold keys, does not."""
    out, happened = run(relay(), [chunk("a") + b'data: {"error":{"message":"sk-1"}}\n\n' + chunk("b")])
    assert text(out) == "a"
    assert happened == [FailedInBand("an error in its stream")]


def test_an_abort_is_a_failure() -> None:
    """VLLM says finish_reason "abort" when it is told to stop: that is half an answer."""
    _, happened = run(relay(), [chunk("a"), chunk(None, "abort")])
    assert isinstance(happened[-1], FailedInBand)


def test_done_without_a_finish_reason_is_a_failure() -> None:
    """An end mark on half an answer is not believed."""
    out, happened = run(relay(), [chunk("a"), b"data: [DONE]\n\n"])
    assert isinstance(happened[-1], FailedInBand)
    assert b"[DONE]" not in out


def test_several_choices_are_finished_when_all_are() -> None:
    """With n = 2 the first finish_reason is not the end."""
    fed = relay(choices=2)
    second = b'data: {"choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}\n\n'
    _, happened = run(fed, [chunk("a"), chunk(None, "stop")])
    assert happened == []
    assert not fed.is_finished
    _, happened = run(fed, [second])
    assert happened == [Finishing()]


def test_half_a_choice_is_no_clean_end() -> None:
    """Two began, one has its finish_reason, and the end mark comes: the other broke off."""
    second = b'data: {"choices":[{"index":1,"delta":{"content":"half"},"finish_reason":null}]}\n\n'
    out, happened = run(relay(choices=2), [chunk("a"), second, chunk(None, "stop"), b"data: [DONE]\n\n"])
    assert isinstance(happened[-1], FailedInBand)
    assert b"[DONE]" not in out


def test_a_finish_reason_is_told_once() -> None:
    """A host that says it again is not repeated."""
    out, _ = run(relay(), [chunk("a"), chunk(None, "stop"), chunk(None, "stop"), b"data: [DONE]\n\n"])
    assert out.count(b'"finish_reason":"stop"') == 1


def test_a_bill_in_the_last_chunk_is_the_bill() -> None:
    """Some hosts put usage beside the finish_reason: no second one follows."""
    last = chunk(None, "stop", usage={"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2})
    out, _ = run(relay(wants_usage=True, keeps=True), [chunk("a"), last, b"data: [DONE]\n\n"])
    assert out.count(b'"completion_tokens"') == 1


def test_data_without_a_space_is_read() -> None:
    """The standard allows it: the finish is seen and the stream ends well."""
    whole = answer(["a", "b"]).replace(b"data: ", b"data:")
    out, happened = run(relay(), [event + b"\n\n" for event in whole.split(b"\n\n") if event])
    assert text(out) == "ab"
    assert isinstance(happened[-1], Finished)


def test_a_finish_beside_other_choices_is_seen() -> None:
    """Two unfinished choices in one chunk do not hide a finished one in the next."""
    two = {"index": 0, "delta": {"content": "x"}, "finish_reason": None}
    fed = relay()
    fed.feed(chunk("a"), 0.0)
    both = b"data: " + dumps({"choices": [two, two]}) + b"\n\n"
    _, happened = run(fed, [both + chunk(None, "stop")])
    assert happened == [Finishing()]


def test_a_backend_that_ignores_n_is_believed() -> None:
    """Two answers asked for, one given and ended with the end mark: complete."""
    out, happened = run(relay(choices=2), [answer(["a"])])
    assert isinstance(happened[-1], Finished)
    assert out.endswith(b"data: [DONE]\n\n")


def test_usage_in_the_middle_is_not_shown_to_who_did_not_ask() -> None:
    """Continuous usage is for the books alone."""
    counted = {"completion_tokens": 1}
    out, _ = run(relay(), [chunk("a"), chunk("b", usage=counted), chunk(None, "stop", usage=counted)])
    assert b"completion_tokens" not in out
    assert text(out) == "ab"


def test_comments_are_no_progress() -> None:
    """A backend that only sends comments is silent."""
    fed = relay()
    fed.feed(chunk("a"), 1.0)
    fed.feed(b": ping\n\n", 2.0)
    assert fed.fed_at == 1.0
    fed.feed(chunk("b"), 3.0)
    assert fed.fed_at == 3.0


def test_chunks_of_another_shape_are_skipped_and_counted() -> None:
    """One odd chunk does not end a stream."""
    odd = [b'{"choices":5}', b'{"choices":[{"index":null,"finish_reason":"x"}]}', b"[]", b'{"choices":[3]}']
    fed = relay()
    out, happened = run(fed, [chunk("a"), *(b"data: " + one + b"\n\n" for one in odd), answer(["b"])])
    assert text(out) == "ab"
    assert isinstance(happened[-1], Finished)
    assert fed.malformed == len(odd)


def test_malformed_events_and_comments_do_not_end_a_stream() -> None:
    """What cannot be read is skipped; comments pass."""
    out, happened = run(
        relay(), [b": hello\n\n", b"data: {broken\n\n", b"data: \xff\xfe\n\n", answer(["ok"])]
    )
    assert text(out) == "ok"
    assert out.startswith(b": hello\n\n")
    assert isinstance(happened[-1], Finished)


def test_what_an_inner_sive_dropped_is_kept() -> None:
    """The outermost sive's object says what any of them dropped or truncated."""
    inner = {"backend": "local", "degraded": False, "truncated": True, "dropped": ["top_k"]}
    out, _ = run(relay(), [chunk("a", sive=inner)])
    assert payloads(out)[0]["sive"] == {"backend": "b", "truncated": True, "dropped": ["top_k"]}


def test_an_endless_event_is_malformed() -> None:
    """A neighbour cannot fill the memory with one event."""
    splitter = sse.Splitter()
    piece = b"x" * 1_000_000
    for _ in range(sse.MAX_EVENT_BYTES // len(piece)):
        assert splitter.feed(piece) == b""
    with pytest.raises(ValueError, match="more than"):
        splitter.feed(piece)


def test_event_names_and_several_data_lines_are_read() -> None:
    """The parts of the standard that other backends use."""
    data = sse.read(b"event: complete\ndata: [1,\ndata: 2]\n\n")
    assert data is not None
    assert data.name == "complete"
    assert loads(data.text) == [1, 2]


# What is kept to carry an answer on from


def with_ids(number: int, text: str, finish: str | None = None) -> bytes:
    """An event with the id of its token."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish, "token_ids": [number]}
    return b"data: " + dumps({"id": "u", "created": 5, "model": "theirs", "choices": [choice]}) + b"\n\n"


def first_with_prompt(ids: list[int]) -> bytes:
    """The role, and the ids of the prompt, as vLLM gives them."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    said = {"id": "u", "created": 5, "model": "theirs", "choices": [choice], "prompt_token_ids": ids}
    return b"data: " + dumps(said) + b"\n\n"


@given(words=WORDS, cuts=st.lists(st.integers(0, 4000), max_size=12), end=ENDS)
def test_ids_that_only_we_asked_for_are_kept_and_not_shown(
    words: list[str], cuts: list[int], end: bytes
) -> None:
    """Wherever the bytes are split, also on the way that reads no JSON; text that names them stays."""
    spoken = [word + '"token_ids": [1]' for word in words]
    events = [first_with_prompt([7, 8]), *(with_ids(at, word) for at, word in enumerate(spoken))]
    whole = b"".join(events).replace(b"\n", end)
    marks = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    fed = relay(strips_ids=True, keeps=True)
    out, _ = run(fed, [whole[a:b] for a, b in itertools.pairwise(marks)])
    assert text(out) == "".join(spoken)
    shown = [payload["choices"][0] | payload for payload in payloads(out)]
    assert not any("token_ids" in one or "prompt_token_ids" in one for one in shown)
    said = fed.transcript()
    assert said is not None
    assert (said.text, said.prompt_ids, said.ids) == ("".join(spoken), [7, 8], list(range(len(words))))


def test_what_is_not_kept_cannot_be_carried_on() -> None:
    """Nothing is remembered of an answer that nobody could go on with."""
    fed = relay()
    run(fed, [answer(["a"])])
    assert fed.transcript() is None


def test_a_long_answer_is_kept_small() -> None:
    """What is older is read on the way: ids and text, not bytes; and nothing of it is lost."""
    fed, count = relay(strips_ids=True, keeps=True), 3000
    run(fed, [first_with_prompt([7]), *(with_ids(number, "x") for number in range(count))])
    assert fed._kept_bytes <= MAX_KEPT_BYTES
    said = fed.transcript()
    assert said is not None
    assert (said.text, said.ids) == ("x" * count, list(range(count)))


def test_an_event_that_cannot_be_read_is_a_cut_where_the_answer_can_go_on() -> None:
    """By ids it goes on from before that event: leaving it out would leave a hole."""
    fed = relay(strips_ids=True, keeps=True)
    out, happened = run(
        fed, [first_with_prompt([7]), with_ids(1, "a"), b"data: {broken\n\n", with_ids(2, "b")]
    )
    assert isinstance(happened[-1], FailedInBand)
    assert text(out) == "a"
    said = fed.transcript()
    assert said is not None
    assert (said.ids, said.can_go_on_by_ids, fed.malformed) == ([1], True, 1)


def test_an_event_that_cannot_be_read_is_left_out_where_it_cannot() -> None:
    """Without ids it is skipped and counted; nobody goes on from there by ids."""
    fed = relay(keeps=True)
    out, happened = run(fed, [chunk("a"), b"data: {broken\n\n", answer(["b"])])
    assert isinstance(happened[-1], Finished)
    assert (text(out), fed.malformed) == ("ab", 1)
    said = fed.transcript()
    assert said is not None
    assert not said.can_go_on_by_ids


def test_what_came_after_a_failure_was_not_said() -> None:
    """Neither shown nor carried on from."""
    fed = relay(strips_ids=True, keeps=True)
    failure = b'data: {"error":{"message":"died"}}\n\n'
    out, _ = run(fed, [first_with_prompt([7]) + with_ids(1, "a") + failure + with_ids(2, "b")])
    said = fed.transcript()
    assert said is not None
    assert (text(out), said.text, said.ids) == ("a", "a", [1])


def test_a_bill_that_never_came_is_counted_here() -> None:
    """The ids are known: a caller who asked for usage gets it when only the end is missing."""
    fed = relay(strips_ids=True, keeps=True, wants_usage=True)
    run(fed, [first_with_prompt([7, 8]), with_ids(1, "a"), with_ids(2, "", "stop")])
    (bill,) = payloads(fed.finish())
    assert bill["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    assert (bill["id"], bill["created"], bill["model"], bill["choices"]) == ("u", 5, "ours", [])
