"""Whatever happens to the hosts: the caller hears the whole answer as from one mouth, or an honest error."""

from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sive.calls import Call
from sive.protocol import loads

from tests.chain_play import DONE, Json, Play, call, payloads, rung
from tests.chain_sim import Fate, Host, Line, Stage, choice_of

TEXTS = st.text(alphabet="ab .é—🙂", min_size=1, max_size=40)
STOPS = st.lists(st.text(alphabet="ab .é—", min_size=1, max_size=4), max_size=2)
SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
CUTS = ["eof", "reset", "stall", "abort", "error", "bare_done", "nonsense"]
FATES = st.builds(
    Fate,
    st.sampled_from([*CUTS, *CUTS, "fine", "no_done", "hangs", "error_at_end", "refused", "busy"]),
    st.integers(0, 3000),
)
LINES = st.builds(
    Line,
    st.lists(st.integers(1, 400), min_size=1, max_size=4).map(tuple),
    st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"]),
    st.booleans(),
)


@dataclass(frozen=True)
class Told:
    """What an answer said, however it was given."""

    text: str
    finish_reason: str
    usage: Json | None
    ids: list[int] | None


def uncut(host: Host, asked: Call) -> Told:
    """What one healthy engine answers."""
    body = asked.body | {"stream_options": {"include_usage": True}, "return_token_ids": True}
    chunks = host.payloads(asked.endpoint, body)
    choices = [choice_of(chunk) for chunk in chunks]
    return Told(
        "".join(map(_text, choices)),
        next(choice["finish_reason"] for choice in choices if choice.get("finish_reason")),
        chunks[-1]["usage"],
        [one for choice in choices for one in choice.get("token_ids") or ()],
    )


def _text(choice: Json) -> str:
    said = choice.get("delta") or choice.get("message") or {}
    return str(said.get("content") or choice.get("text") or "")


def told(play: Play) -> Told | None:
    """What the caller was told, after everything about its form was checked; None for an error."""
    return _streamed(play) if play.call.stream else _whole(play)


def _whole(play: Play) -> Told | None:
    answer = loads(play.heard)
    assert ("error" in answer) == (play.begun.status >= 400)
    if "error" in answer:
        return None
    (choice,) = answer["choices"]
    is_chat = play.call.endpoint == "chat/completions"
    assert answer["object"] == ("chat.completion" if is_chat else "text_completion")
    assert "prompt_token_ids" not in answer
    assert "token_ids" not in choice
    return Told(_text(choice), choice["finish_reason"], answer["usage"], None)


def _streamed(play: Play) -> Told | None:
    if play.begun.headers["content-type"] == "application/json":
        assert play.begun.status >= 400
        return None
    chunks = payloads(play.heard)
    if "error" in chunks[-1]:
        assert DONE not in play.heard
        assert not any(choice_of(chunk).get("finish_reason") for chunk in chunks[:-1])
        return None
    assert play.heard.replace(b"\r\n", b"\n").replace(b"\r", b"\n").endswith(DONE)
    assert play.heard.count(b"[DONE]") == 1
    return _checked(play, chunks)


def _checked(play: Play, chunks: list[Json]) -> Told:
    is_chat = play.call.endpoint == "chat/completions"
    assert {chunk["object"] for chunk in chunks} == {
        "chat.completion.chunk" if is_chat else "text_completion"
    }
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["created"] for chunk in chunks} == {5}
    assert all("model" in chunk for chunk in chunks)
    choices = [choice_of(chunk) for chunk in chunks]
    roles = ["role" in (choice.get("delta") or {}) for choice in choices]
    assert roles == [is_chat] + [False] * (len(roles) - 1)
    (reason,) = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    last = next(number for number, choice in enumerate(choices) if choice.get("finish_reason"))
    assert "sive" in chunks[0]
    assert "sive" in chunks[last]
    assert not any(choices[last + 1 :])
    bills = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert len(bills) == play.call.wants_usage
    wants_ids = play.call.body.get("return_token_ids")
    assert wants_ids or b"token_ids" not in play.heard
    ids = [one for choice in choices for one in choice.get("token_ids") or ()]
    return Told("".join(map(_text, choices)), reason, bills[0] if bills else None, ids if wants_ids else None)


@st.composite
def asked(draw: st.DrawFn, **fixed: Any) -> Call:
    """Any request that can be carried on by ids."""
    body: Json = {"stream": draw(st.booleans())}
    endpoint = draw(st.sampled_from(["chat/completions", "chat/completions", "completions"]))
    if body["stream"] and draw(st.booleans()):
        body["stream_options"] = {"include_usage": True}
    if (limit := draw(st.none() | st.integers(1, 40))) is not None:
        body["max_tokens"] = limit
    if stops := draw(STOPS):
        body["stop"] = stops
    if draw(st.booleans()):
        body["temperature"] = 0
    return call(endpoint, **(body | fixed))


def fates(draw: st.DrawFn, names: list[str], most: int = 2) -> dict[str, list[Fate]]:
    """What becomes of the first requests to each host."""
    return {name: draw(st.lists(FATES, max_size=most)) for name in names}


def is_prefix_shown(play: Play, whole: str) -> bool:
    """Is what the caller heard before the error the beginning of the answer?"""
    if not play.call.stream:
        return True
    shown = [choice_of(chunk) for chunk in payloads(play.heard) if "choices" in chunk]
    return whole.startswith("".join(map(_text, shown)))


@settings(max_examples=300, deadline=None)
@given(st.data(), asked(), TEXTS, SIZES, LINES)
def test_engines_of_equal_weights_speak_as_one(
    data: st.DataObject, request: Call, text: str, sizes: tuple[int, ...], line: Line
) -> None:
    """Text, finish_reason and usage are those of one uncut answer, or an error says that they are not."""
    names = ["a", "b", "c"]
    host = Host(text, sizes, step=data.draw(st.integers(1, 3)))
    resume = data.draw(st.sampled_from(["tokens", None]))
    rungs = [rung(name, weights="w", resume=resume) for name in names]
    stage = Stage(dict.fromkeys(names, host), fates(data.draw, names), line)
    play = stage.plays(Play(*rungs, asked=request))
    heard, whole = told(play), uncut(host, request)
    if heard is None:
        assert is_prefix_shown(play, whole.text)
    else:
        assert (heard.text, heard.finish_reason) == (whole.text, whole.finish_reason)
        levels = {level for level, outcome in play.chain.report.resumes if outcome == "ok"}
        if (
            levels <= {"tokens", "length", "restart"}
            and heard.usage is not None
            and not play.chain.report.malformed
        ):
            assert heard.usage == whole.usage
    assert play.adds_up()
