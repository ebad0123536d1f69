"""Whatever happens to the hosts: the caller hears the whole answer as from one mouth, or an honest error."""

from dataclasses import dataclass, replace
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
    return Told(_text(choice), choice["finish_reason"], answer.get("usage"), None)


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
    assert len(bills) <= play.call.wants_usage
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


def is_limited_by_guess(play: Play) -> bool:
    """Was it carried on by who counts tokens otherwise, so that ``max_tokens`` is met only about?"""
    by_text = ("text", "ok") in play.chain.report.resumes
    return by_text and ("max_tokens" in play.call.body or play.call.endpoint == "completions")


def is_counted_exactly(play: Play, host: Host) -> bool:
    """Are all tokens known? Where a stop string is found here, not those behind it in the same chunk.

    Nor those of a character behind it that a limit of ours tore.
    """
    levels = {level for level, outcome in play.chain.report.resumes if outcome == "ok"}
    is_torn = any(cut.reason == "limited" for cut in play.chain.report.cuts)
    is_known = levels <= {"tokens", "length", "restart"} and not play.chain.report.malformed
    is_asked = play.call.wants_usage or not play.call.stream
    return is_known and is_asked and not ((host.step > 1 or is_torn) and play.call.body.get("stop"))


@settings(max_examples=300)
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
        if not is_limited_by_guess(play):
            assert (heard.text, heard.finish_reason) == (whole.text, whole.finish_reason)
        assert text.startswith(heard.text)
        if is_counted_exactly(play, host):
            assert heard.usage == whole.usage
    assert play.adds_up()


ABILITIES: dict[str, tuple[Json, Json]] = {
    "tokens": ({"resume": "tokens"}, {}),
    "learned": ({}, {}),
    "text": ({"resume": "text"}, {"gives_ids": False}),
    "none": ({"resume": "none"}, {"gives_ids": False, "continues": False}),
    "nothing": ({}, {"gives_ids": False, "continues": False}),
    "misdeclared": ({"resume": "tokens"}, {"gives_ids": False}),
}
"""What a backend is declared to be able to do, and what it can."""


@settings(max_examples=300)
@given(st.data(), asked(), TEXTS, TEXTS, SIZES, LINES)
def test_whoever_carries_on_the_text_is_one_answer(
    data: st.DataObject, request: Call, text: str, other: str, sizes: tuple[int, ...], line: Line
) -> None:
    """Hosts of every ability and of other weights: one host's answer, or an error; never a mixture."""
    hosts, rungs = {}, []
    of_others = data.draw(st.sampled_from([text, other]))
    speaks = {"w": Host(text, sizes, prefilled=of_others), "v": Host(of_others, sizes, prefilled=text)}
    for name in ("a", "b", "c"):
        declared, can = ABILITIES[data.draw(st.sampled_from(sorted(ABILITIES)))]
        weights = data.draw(st.sampled_from(["w", "w", "v"]))
        hosts[name] = replace(speaks[weights], **can)
        rungs.append(rung(name, weights=weights, **declared))
    play = Stage(hosts, fates(data.draw, list(hosts)), line).plays(Play(*rungs, asked=request))
    heard, wholes = told(play), [uncut(Host(one, sizes), request) for one in (text, other)]
    shown = heard.text if heard is not None else ""
    if heard is None:
        assert any(is_prefix_shown(play, whole.text) for whole in wholes)
    elif is_limited_by_guess(play):
        assert any(one.startswith(shown) for one in (text, other))
    else:
        assert (shown, heard.finish_reason) in [(whole.text, whole.finish_reason) for whole in wholes]
    assert play.adds_up()
