"""The relay that writes every chunk anew: one voice for the caller, whoever speaks."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sive.budget import Budget
from sive.protocol import Endpoint
from sive.relay import FailedInBand, Finished, Finishing, Label
from sive.rewrite import Diverged, RewritingRelay, Voice
from sive.stops import StopFinder
from sive.transcript import Transcript

from tests.chain_play import DONE, chunk, completion, event, payloads, role, text_of

END = completion(finish="stop", ids=[9]) + DONE
USAGE = event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}})


def voice(endpoint: Endpoint = "chat/completions", *stops: str, **options: Any) -> Voice:
    """How the caller wants it."""
    settings: dict[str, Any] = {
        "wants_usage": False,
        "wants_ids": False,
        "transcript": Transcript(),
    } | options
    return Voice(endpoint=endpoint, finder=StopFinder(stops) if stops else None, **settings)


def resumed(voice: Voice, had: Transcript | None = None, **options: Any) -> RewritingRelay:
    """A relay that goes on from "ab", which the caller has."""
    had = had or Transcript(
        "up", 7, "chat.completion.chunk", "m", [5, 6], [1, 2], 2, 2, "ab", 2, prompt_tokens=2
    )
    voice.transcript, voice.has_role = had, True
    return RewritingRelay(Label("ours", {"backend": "b"}), voice, had, resumes=True, **options)


def fed(relay: RewritingRelay, *pieces: bytes) -> tuple[bytes, list[object]]:
    """The caller's bytes, and what happened."""
    out, happened = b"", []
    for piece in pieces:
        out += relay.feed(piece, 0.0)
        if (happening := relay.take()) is not None:
            happened.append(happening)
        if isinstance(happening, Finished | FailedInBand):
            break
    return out, happened


def test_completion_chunks_become_chat_chunks() -> None:
    """Under the id, the date and the name that the caller knows, without a second role."""
    out, happened = fed(resumed(voice()), completion("c", ids=[3]), END)
    chunks = payloads(out)
    assert [one["choices"][0]["delta"] for one in chunks] == [{"content": "c"}, {}]
    assert {(one["id"], one["created"], one["object"], one["model"]) for one in chunks} == {
        ("up", 7, "chat.completion.chunk", "ours")
    }
    assert "text" not in chunks[0]["choices"][0]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert out.endswith(DONE)
    assert isinstance(happened[-1], Finished)


def test_a_role_beside_text_is_not_said_again() -> None:
    """A chat host that carries on by text begins as every answer begins."""
    begins = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": "c"}}]})
    out, _ = fed(resumed(voice()), begins, END)
    assert [one["choices"][0]["delta"] for one in payloads(out)] == [{"content": "c"}, {}]


def test_completion_chunks_stay_completion_chunks() -> None:
    """For a caller of that endpoint."""
    out, _ = fed(resumed(voice("completions")), completion("c", ids=[3]), END)
    assert payloads(out)[0]["choices"][0]["text"] == "c"
    assert payloads(out)[0]["object"] == "text_completion"
    assert text_of(out) == "c"


def test_the_first_chunk_and_the_last_say_who_speaks() -> None:
    """And no other; an inner sive's word is kept."""
    out, _ = fed(resumed(voice()), completion("c"), completion("d"), completion("e"), END)
    assert ["sive" in one for one in payloads(out)] == [True, False, False, True]


def test_chunks_that_say_nothing_are_left_out() -> None:
    """A second role, an empty text, a usage in the middle."""
    out, _ = fed(resumed(voice()), role(), chunk(ids=[3]), USAGE, chunk("c", usage={"completion_tokens": 1}))
    assert text_of(out) == "c"
    assert len(payloads(out)) == 1
    assert b"completion_tokens" not in out


def test_a_caller_who_wants_ids_has_them() -> None:
    """Those of the answer; the prompt's he has already."""
    out, _ = fed(resumed(voice(wants_ids=True)), completion("c", ids=[3]), completion(ids=[4]), END)
    assert [one["choices"][0]["token_ids"] for one in payloads(out)] == [[3], [4], [9]]
    hidden, _ = fed(resumed(voice()), completion("c", ids=[3]), END)
    assert b"token_ids" not in hidden


def test_one_bill_of_all() -> None:
    """The caller's prompt, and the tokens of everybody who spoke."""
    relay = resumed(voice(wants_usage=True), before=2)
    out, happened = fed(relay, completion("c", ids=[3]), completion(finish="stop", ids=[4]) + USAGE + DONE)
    bill = {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}
    assert payloads(out)[-1]["usage"] == bill
    assert payloads(out)[-1]["choices"] == []
    assert happened[-1] == Finished(bill)


def test_a_bill_without_the_backends_word() -> None:
    """The ids are counted where its usage never came."""
    out, _ = fed(resumed(voice(wants_usage=True), before=2), completion("c", ids=[3]), END)
    assert payloads(out)[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}


def test_what_is_too_long_to_be_kept_is_counted_all_the_same() -> None:
    """It cannot be carried on; the bill is that of all."""
    relay = resumed(voice(wants_usage=True), before=2)
    relay.budget = Budget(300)
    words = [completion("cdef", ids=[3, 4]) for _ in range(20)]
    out, _ = fed(relay, *words)
    assert relay.transcript() is None
    assert text_of(out) == "cdef" * 20
    out, _ = fed(relay, END)
    assert payloads(out)[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 43, "total_tokens": 45}
    assert payloads(out)[-1]["id"] == "up"


WORDS = st.lists(st.text("abé🙂", max_size=5), min_size=1, max_size=6)


@given(
    WORDS, st.text("abé", min_size=1, max_size=3), st.lists(st.integers(0, 4000), max_size=6), st.booleans()
)
def test_any_split_gives_the_same_and_ends_at_the_stop(
    words: list[str], stop: str, cuts: list[int], shows: bool
) -> None:
    """However bytes and words are cut, the text ends before the stop string, or with it if wanted."""
    whole = b"".join(chunk(word) for word in words if word) + chunk(finish="length") + DONE
    marks = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    relay = RewritingRelay(Label("ours"), voice("chat/completions", stop, shows_stop=shows), Transcript())
    out, happened = fed(relay, *(whole[a:b] for a, b in itertools.pairwise(marks)))
    text = "".join(words)
    before, found, _ = text.partition(stop)
    assert text_of(out) == before + (found if shows else "")
    (reason,) = [
        one["choices"][0]["finish_reason"] for one in payloads(out) if one["choices"][0]["finish_reason"]
    ]
    assert reason == ("stop" if found else "length")
    assert isinstance(happened[-1], Finished)
    assert out.endswith(DONE)


@given(WORDS, st.integers(0, 12), st.integers(0, 12), st.sampled_from(["", "X"]))
def test_what_is_said_again_is_swallowed_exactly(
    words: list[str], known: int, wrong: int, ending: str
) -> None:
    """The caller hears only the rest; a text that is another, or ends sooner, is not heard at all."""
    text = "".join(words)
    has, other = text[:known], text[:wrong] + ending
    relay = resumed(voice(), Transcript("up", 7), swallow=has)
    out, _ = fed(relay, *(chunk(word) for word in words if word), chunk(finish="stop") + DONE)
    assert text_of(out) == text[known:]
    relay = resumed(voice(), Transcript("up", 7), swallow=has)
    out, happened = fed(relay, *map(chunk, other), chunk(finish="stop") + DONE)
    if len(other) < len(has) or other[: len(has)] != has:
        assert text_of(out) == ""
        assert isinstance(happened[-1], Diverged)
        assert DONE not in out
        assert not relay.is_finished


def test_until_all_has_come_again_nothing_is_new() -> None:
    """Cut in the middle of what is swallowed, the next one goes on from what the caller has."""
    had = Transcript("up", 7, text="abc")
    speaks = voice(transcript=had)
    relay = RewritingRelay(Label("ours"), speaks, had.started_over(), swallow="abc", resumes=True)
    fed(relay, chunk("ab"))
    assert relay.transcript() is had
    fed(relay, chunk("cd"))
    assert (said := relay.transcript()) is not None
    assert said.text == "abcd"


@pytest.mark.parametrize("last", [chunk(finish="abort"), event({"error": {"message": "died"}}), DONE])
def test_a_failure_is_held_back(last: bytes) -> None:
    """An abort, an error, an end without a reason: nothing of it is shown."""
    out, happened = fed(resumed(voice()), completion("c"), last)
    assert text_of(out) == "c"
    assert len(payloads(out)) == 1
    assert isinstance(happened[-1], FailedInBand)
    assert DONE not in out


def test_the_end_may_be_told_without_a_backend() -> None:
    """When only that was lost; what was held for a stop string comes out."""
    speaks = voice("chat/completions", "END")
    relay = resumed(speaks)
    assert speaks.finder is not None
    shown, _ = fed(relay, completion("cE"))
    out = relay.conclude("length")
    assert text_of(shown + out) == "cE"
    assert payloads(out)[-1]["choices"][0]["finish_reason"] == "length"
    assert out.endswith(DONE)


def test_a_finish_is_announced_before_the_end() -> None:
    """Usage and the end mark may follow it."""
    _, happened = fed(resumed(voice()), completion("c"), completion(finish="stop"), DONE)
    assert [type(one) for one in happened] == [Finishing, Finished]


@given(st.binary(max_size=200), st.integers(1, 40))
def test_no_bytes_can_break_it(noise: bytes, size: int) -> None:
    """Noise is skipped, counted and never shown."""
    relay = resumed(voice())
    out, _ = fed(relay, *(noise[at : at + size] for at in range(0, len(noise), size)))
    assert text_of(out) == ""
