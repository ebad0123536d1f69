"""The lab itself is honest: its voice resumes exactly, and each manner does on the wire what it says."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.conftest import until
from tests.lab import manners
from tests.lab.hosts import Hosts
from tests.lab.upstream import Manner, Upstream, resets, says, stays_silent
from tests.lab.voice import VOCABULARY, Voice, bytes_of, complete, render

VOICE = Voice("base+spinoza@1")
ASK = [{"role": "user", "content": "Pourquoi Dieu."}]
PROMPT = render(ASK)
IDS = list(VOICE.ids(PROMPT))
TEXT = complete(bytes_of(IDS))


@pytest.fixture
def host() -> Iterator[Upstream]:
    """A healthy host."""
    with Hosts() as hosts:
        yield hosts.add(manners.speaks(), VOICE)


def post(host: Upstream, path: str = "chat/completions", **fields: Any) -> httpx2.Response:
    """Ask; greedy."""
    body = {"model": "m", "temperature": 0, **fields}
    if path == "chat/completions":
        body.setdefault("messages", ASK)
    return httpx2.post(f"{host.url}/{path}", json=body, timeout=10)


def payloads(text: str) -> list[dict[str, Any]]:
    """The JSON events of a stream."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def told(chunks: list[dict[str, Any]]) -> tuple[str, list[int]]:
    """Text and token ids of a stream, whichever endpoint it is of."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)
    return text, [one for choice in choices for one in choice.get("token_ids") or ()]


def test_the_answer_has_what_makes_a_resume_hard() -> None:
    """Characters of two to four bytes, some in several tokens, in an answer of some length."""
    assert len(IDS) > 30
    assert {"é", "œ", "—", "«", "🙂"} <= set(TEXT)
    assert any(complete(bytes_of([one])) == "" for one in IDS[:-1])


def test_another_prompt_or_other_weights_speak_otherwise() -> None:
    """One id more, less or different in the prompt, a longer one, other weights: another answer."""
    for wrong in (PROMPT[:-1], [*PROMPT, PROMPT[-1]], [*PROMPT[:5], 33, *PROMPT[6:]], render(ASK + ASK)):
        assert list(VOICE.ids(wrong)) != IDS
    assert list(Voice("base+kant@1").ids(PROMPT)) != IDS


@pytest.mark.parametrize("k", range(1, len(IDS)))
def test_resuming_by_ids_gives_exactly_the_rest(host: Upstream, k: int) -> None:
    """Prompt and first k ids in, the other ids and their text out, streamed and whole."""
    left = {"prompt": PROMPT + IDS[:k], "max_tokens": 99, "return_token_ids": True}
    text, ids = told(payloads(post(host, "completions", stream=True, **left).text))
    whole = post(host, "completions", **left).json()["choices"][0]
    assert ids == whole["token_ids"] == IDS[k:]
    assert text == whole["text"]
    before = bytes_of(PROMPT + IDS[:k])
    if len(complete(before).encode()) == len(before):
        assert complete(bytes_of(IDS[:k])) + text == TEXT
    else:  # facts/vllm.md 0.10
        assert text == complete(bytes_of(PROMPT + IDS))


def test_resuming_by_text_gives_exactly_the_rest(host: Upstream) -> None:
    """A prefilled message is carried on, whatever whole characters it ends in."""
    for k in range(1, len(IDS)):
        said = complete(bytes_of(IDS[:k]))
        messages = [*ASK, {"role": "assistant", "content": said}]
        answer = post(host, messages=messages, continue_final_message=True, add_generation_prompt=False)
        assert said + answer.json()["choices"][0]["message"]["content"] == TEXT
    assert post(host, messages=messages, continue_final_message=True).status_code == 400


def test_token_ids_come_as_from_vllm(host: Upstream) -> None:
    """Chat: prompt ids at the top of the role chunk, ids in every later one, also where text is empty."""
    chunks = payloads(post(host, stream=True, return_token_ids=True).text)
    assert chunks[0]["prompt_token_ids"] == PROMPT
    assert "token_ids" not in chunks[0]["choices"][0]
    assert told(chunks) == (TEXT, IDS)
    assert all(chunk["choices"][0]["token_ids"] for chunk in chunks[1:])
    assert any(chunk["choices"][0]["delta"]["content"] == "" for chunk in chunks[1:-1])
    first = payloads(post(host, "completions", prompt=PROMPT, stream=True, return_token_ids=True).text)[0]
    assert first["choices"][0]["prompt_token_ids"] == PROMPT
    assert first["choices"][0]["token_ids"] == IDS[:1]
    whole = post(host, return_token_ids=True).json()
    assert (whole["prompt_token_ids"], whole["choices"][0]["token_ids"]) == (PROMPT, IDS)
    plain = payloads(post(host, stream=True).text)
    assert not any(chunk.get("prompt_token_ids") or told([chunk])[1] for chunk in plain)


def test_stream_and_whole_agree(host: Upstream) -> None:
    """Text, finish_reason and usage, for n, stop and max_tokens alike."""
    for fields in ({}, {"n": 3}, {"stop": "plus"}, {"max_tokens": 9}, {"stop": ["— 🙂", "zzz"], "n": 2}):
        whole = post(host, **fields).json()
        chunks = payloads(post(host, stream=True, stream_options={"include_usage": True}, **fields).text)
        assert chunks[-1]["usage"] == whole["usage"]
        for choice in whole["choices"]:
            mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
            assert "".join(c["delta"]["content"] for c in mine) == choice["message"]["content"]
            assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]


@pytest.mark.parametrize("stop", ["plus", " gr", "— 🙂", "zzzzzz"])
def test_a_stop_string_is_held_back_and_never_shown(host: Upstream, stop: str) -> None:
    """Text lags the ids by the stop string's length less one, and ends before it."""
    chunks = payloads(post(host, stream=True, stop=stop, return_token_ids=True).text)
    wanted = TEXT.partition(stop)[0]
    assert told(chunks)[0] == wanted
    for at in range(2, len(chunks) - 1):
        text, ids = told(chunks[:at])
        assert text == complete(bytes_of(ids))[: -(len(stop) - 1)]
    last = chunks[-1]["choices"][0]
    assert last["stop_reason"] == (stop if stop in TEXT else None)


def test_a_stop_string_across_a_resume_is_missed(host: Upstream) -> None:
    """As in vLLM: only this request's own text is searched, so whoever resumes must look himself."""
    k = next(k for k in range(len(IDS)) if complete(bytes_of(IDS[:k])).endswith(" plus"))
    rest = {"prompt": PROMPT + IDS[:k], "stop": "plus grande", "max_tokens": 99}
    assert post(host, "completions", **rest).json()["choices"][0]["stop_reason"] is None


def test_logprobs_and_tools(host: Upstream) -> None:
    """A logprob for each token; a tool call in deltas says the same as in one piece."""
    content = post(host, logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert bytes(byte for one in content for byte in one["bytes"]).decode() == TEXT
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    whole = post(host, tools=tools).json()["choices"][0]
    chunks = payloads(post(host, tools=tools, stream=True).text)
    calls = [c["choices"][0]["delta"]["tool_calls"][0]["function"] for c in chunks[1:]]
    assert calls[0]["name"] == whole["message"]["tool_calls"][0]["function"]["name"] == "look_up"
    arguments = whole["message"]["tool_calls"][0]["function"]["arguments"]
    assert "".join(call["arguments"] for call in calls) == arguments
    assert json.loads(arguments)
    assert whole["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_seeds_draw_by_position_or_from_the_start_of_a_request() -> None:
    """The GPU's way a seeded answer can be resumed, the CPU's way it cannot; without a seed none is alike."""
    with Hosts() as hosts:
        for by_position in (True, False):
            voice = Voice(VOICE.weights, position_seeds=by_position)
            host = hosts.add(manners.speaks(), voice)
            asked = {"temperature": 1, "seed": 4, "return_token_ids": True, "max_tokens": 40}
            ids = told(payloads(post(host, "completions", prompt=PROMPT, stream=True, **asked).text))[1]
            rest = post(host, "completions", prompt=PROMPT + ids[:5], **asked).json()["choices"][0]
            assert (rest["token_ids"][: len(ids) - 5] == ids[5:]) is by_position
        texts = {post(host, temperature=1, max_tokens=40).text.partition("content")[2] for _ in range(4)}
        assert len(texts) == 4


def test_wrong_requests_are_refused_in_vllms_words(host: Upstream) -> None:
    """Too long, out of vocabulary, no token wanted: 400 with the status as code."""
    for fields, said in (
        ({"prompt": [65] * 5000}, "maximum context length is 4096"),
        ({"prompt": [VOCABULARY]}, "out of vocabulary"),
        ({"prompt": "x", "max_tokens": 0}, "at least 1"),
    ):
        answer = post(host, "completions", **fields)
        assert answer.status_code == answer.json()["error"]["code"] == 400
        assert said in answer.json()["error"]["message"]


def test_models_say_their_weights(host: Upstream) -> None:
    """So that a gateway learns who speaks alike."""
    model = httpx2.get(f"{host.url}/models").json()["data"][0]
    assert (model["weights"], model["max_model_len"]) == (VOICE.weights, 4096)


# What each manner does on the wire


def wire(manner: Manner, *, stream: bool = True) -> tuple[bytes, str]:
    """All bytes of an answer, and how the connection ended: FIN, RST, or silent."""
    body = json.dumps({"model": "m", "messages": ASK, "temperature": 0, "stream": stream}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    with Upstream(manner, voice=VOICE) as host, socket.create_connection(("127.0.0.1", host.port)) as line:
        line.sendall(head + body)
        line.settimeout(0.2)
        raw = b""
        try:
            while part := line.recv(65536):
                raw += part
        except ConnectionResetError:
            return raw, "RST"
        except TimeoutError:
            return raw, "silent"
        return raw, "FIN"


def spoken(raw: bytes) -> str:
    """The text of the events that are whole."""
    body = raw.partition(b"\r\n\r\n")[2].decode("utf-8", "replace").replace("\r\n", "\n")
    events = [line for line in body.split("\n") if line.startswith("data: {") and line.endswith("}")]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    return told([chunk for chunk in chunks if "choices" in chunk])[0]


BEGUN = complete(bytes_of(IDS[:4]))


@pytest.mark.parametrize(
    ("manner", "end", "has", "has_not"),
    [
        (manners.speaks(), "silent", b"data: [DONE]\n\n\r\n0\r\n\r\n", b"error"),
        (manners.cuts(4), "FIN", b"", b"[DONE]"),
        (manners.cuts(4, manners.rst), "RST", b"", b"[DONE]"),
        (manners.cuts(4, manners.clean_end), "silent", b"0\r\n\r\n", b"[DONE]"),
        (manners.cuts(4, manners.half_chunk), "FIN", b"", b"0\r\n\r\n"),
        (manners.cuts(4, manners.half_event), "silent", b"0\r\n\r\n", b"[DONE]"),
        (manners.cuts(4, manners.silence), "silent", b"", b"0\r\n\r\n"),
        (manners.cuts(4, manners.bare_done), "silent", b"[DONE]", b'"finish_reason":"'),
        (manners.cuts(4, manners.error_event), "silent", b'data: {"error":', b'"finish_reason":"'),
        (manners.cuts(4, manners.abort), "silent", b'"finish_reason":"abort"', b'"finish_reason":"stop"'),
    ],
)
def test_a_cut_is_where_and_how_it_says(manner: Manner, end: str, has: bytes, has_not: bytes) -> None:
    """Four tokens arrive and no fifth (all, without a break); then the end that was scripted."""
    raw, ended = wire(manner)
    assert ended == end
    assert raw.endswith(has) or has in raw
    assert has_not not in raw
    assert spoken(raw) == (BEGUN if has_not != b"error" else TEXT)


def test_a_character_is_cut_in_its_middle() -> None:
    """The last byte on the wire is the first of several."""
    raw, ended = wire(manners.cuts(4, manners.half_character))
    assert ended == "FIN"
    with pytest.raises(
        UnicodeDecodeError, match="invalid continuation byte"
    ):  # CRLF where the rest should be
        raw.decode()
    assert TEXT.startswith(spoken(raw))


def test_nonsense_is_between_whole_events() -> None:
    """One event that is no JSON, and nothing is missing."""
    raw, _ = wire(manners.cuts(4, manners.nonsense))
    assert raw.count(b'"content": \n\n') == 1
    assert spoken(raw) == TEXT


def test_the_ends_and_the_spellings() -> None:
    """Without the end mark, closed or held; CRLF and comments; several tokens in one event."""
    raw, _ = wire(manners.speaks(end=manners.no_done))
    assert raw.endswith(b"0\r\n\r\n")
    assert b"[DONE]" not in raw
    raw, ended = wire(manners.speaks(end=manners.never_ends))
    assert ended == "silent"
    assert b"[DONE]" not in raw
    assert b'"finish_reason":"stop"' in raw
    raw, _ = wire(manners.speaks(spelled=manners.crlf))
    assert raw.count(b": keep-alive\r\n\r\ndata: {") == len(IDS) + 1
    assert spoken(raw) == TEXT
    raw, _ = wire(manners.speaks(step=7))
    assert raw.count(b"data: {") == 1 + -(-len(IDS) // 7)
    assert spoken(raw) == TEXT


def test_before_the_first_byte() -> None:
    """A reset, silence, and a head without an answer."""
    assert wire(resets) == (b"", "RST")
    assert wire(stays_silent) == (b"", "silent")
    raw, ended = wire(manners.head_only)
    assert raw.startswith(b"HTTP/1.1 200")
    assert (raw.partition(b"\r\n\r\n")[2], ended) == (b"", "silent")
    started = time.monotonic()
    raw, _ = wire(manners.speaks(breaks=manners.pause(0.1), when=manners.after(0)))
    assert time.monotonic() - started > 0.1
    assert spoken(raw) == TEXT


def test_an_answer_in_one_piece_is_broken_too() -> None:
    """Half a body, then FIN or silence; an abort is said in it."""
    for manner, end in ((manners.cuts(4), "FIN"), (manners.cuts(4, manners.silence), "silent")):
        raw, ended = wire(manner, stream=False)
        length = int(raw.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        assert ended == end
        assert len(raw.partition(b"\r\n\r\n")[2]) < length
    raw, _ = wire(manners.cuts(4, manners.abort), stream=False)
    assert json.loads(raw.partition(b"\r\n\r\n")[2])["choices"][0]["finish_reason"] == "abort"


def test_manners_compose_by_the_number_of_the_request(host: Upstream) -> None:
    """Once and then well; down and up in turn; counted for each host."""
    down, up = says(500), manners.speaks()
    host.manner = manners.first(1, down, up)
    assert [post(host).status_code for _ in range(3)] == [500, 200, 200]
    host.manner = manners.flapping(1, 2, down, up)
    assert [post(host).status_code for _ in range(6)] == [500, 200, 200, 500, 200, 200]


def test_hosts_that_know_less_than_vllm(host: Upstream) -> None:
    """No ids; a field that is refused by name; a prefill that is refused, or not seen."""
    prefilled = [*ASK, {"role": "assistant", "content": " Le"}]
    asked = {"messages": prefilled, "continue_final_message": True, "add_generation_prompt": False}
    host.manner = manners.ignores("return_token_ids", then=manners.speaks())
    assert post(host, return_token_ids=True).json()["choices"][0]["token_ids"] is None
    host.manner = manners.rejects("return_token_ids", manners.speaks())
    assert "return_token_ids" in post(host, return_token_ids=True).json()["error"]["message"]
    assert post(host).status_code == 200
    host.manner = manners.rejects_prefill(manners.speaks())
    assert (post(host, **asked).status_code, post(host).status_code) == (400, 200)
    host.manner = manners.ignores_prefill(manners.speaks())
    assert post(host, **asked).json()["choices"][0]["message"]["content"] == TEXT


def test_everything_is_logged(host: Upstream) -> None:
    """Time, path, body, what was done, and when the other side left."""
    host.manner = manners.cuts(3, manners.silence)
    with httpx2.stream(
        "POST", f"{host.url}/chat/completions", json={"model": "m", "messages": ASK, "stream": True}
    ) as answer:
        pieces = answer.iter_bytes()
        next(pieces)
        until(lambda: host.seen[0].end == "silent")
        assert host.seen[0].left_at is None
        assert (host.seen[0].status, host.seen[0].events) == (200, 4)
    until(lambda: host.seen[0].left_at is not None)
    assert host.seen[0].at < host.seen[0].left_at < time.monotonic()  # type: ignore[operator]
    assert "200, 4 events, silent, left at" in host.seen[0].line(host.seen[0].at)
