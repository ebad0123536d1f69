"""The wire to the CPU model: a real model of random weights answers OpenAI requests in this process."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sive.config.sections import LocalSettings
from sive.local.prepare import PACKAGE_ROOT
from sive.wires import WireRequest, WireResponse
from sive.wires.local import LocalWire

from tests.test_local_convert import make, write_gpt2

CHAT = "/v1/chat/completions"
LONG = 200  # tokens of an answer that is still running while others are looked at


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared model with a context of 256 tokens."""
    root = tmp_path_factory.mktemp("models")
    return make(write_gpt2(root / "hf"), root / "int8")


@asynccontextmanager
async def wire(folder: Path, embedded: Path | None = None, **settings: Any) -> AsyncIterator[LocalWire]:
    """A wire that is closed again."""
    local = LocalWire(LocalSettings(model=str(folder), headroom_mb=0, **settings), embedded or folder)
    try:
        yield local
    finally:
        await local.aclose()


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test on an event loop of its own; 60 s is a hang."""
    asyncio.run(asyncio.wait_for(test(), 60))


def request(*, path: str = CHAT, headers: dict[str, str] | None = None, **fields: Any) -> WireRequest:
    """A request; a short greedy chat unless told otherwise."""
    body = {"model": "local", "temperature": 0, "max_tokens": 8} | fields
    if path == CHAT:
        body.setdefault("messages", [{"role": "user", "content": "hi"}])
    return WireRequest("POST", path, headers or {}, json.dumps(body).encode())


@dataclass
class Said:
    """A reply read to its end; ``chunks`` of a stream."""

    status: int
    headers: dict[str, str]
    body: bytes
    pieces: list[bytes] = field(default_factory=list)

    @property
    def json(self) -> Any:
        """The one object of a reply that is not a stream."""
        return json.loads(self.body)

    @property
    def chunks(self) -> list[Any]:
        """The events of a stream before ``[DONE]``."""
        *events, done, end = self.body.decode().split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    @property
    def text(self) -> str:
        """What the model said."""
        if self.headers["content-type"] == "application/json":
            choice = self.json["choices"][0]
            return str(choice["text"] if "text" in choice else choice["message"]["content"])
        choices = [chunk["choices"][0] for chunk in self.chunks if chunk["choices"]]
        return "".join(choice.get("text") or choice.get("delta", {}).get("content", "") for choice in choices)


async def read(response: WireResponse) -> Said:
    """Read a reply to its end."""
    pieces = [piece async for piece in response]
    return Said(response.status, dict(response.headers), b"".join(pieces), pieces)


async def ask(local: LocalWire, **fields: Any) -> Said:
    """Ask and read to the end."""
    return await read(await local.open(request(**fields)))


def test_a_chat_streams_token_by_token(model: Path) -> None:
    """Role and first text together, then text as tokens come, the finish reason, the usage, [DONE]."""

    async def test() -> None:
        async with wire(model) as local:
            said = await ask(local, stream=True, stream_options={"include_usage": True})
        first, second, *_, last, usage = said.chunks
        assert said.headers["content-type"].startswith("text/event-stream")
        assert b'"role"' in said.pieces[0]
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert second["choices"][0]["delta"]["content"]
        assert last["choices"][0]["finish_reason"] == "length"
        assert usage["usage"]["completion_tokens"] == 8
        assert {chunk["model"] for chunk in said.chunks} == {"lab/gpt2"}
        assert len(said.pieces) > 3

    run(test)


@pytest.mark.parametrize("fields", [{}, {"path": "/v1/completions", "prompt": ["User: hi\nAssistant:"]}])
def test_a_stream_and_one_object_say_the_same(model: Path, fields: dict[str, Any]) -> None:
    """The greedy answer does not depend on how it is sent."""

    async def test() -> None:
        async with wire(model) as local:
            whole, stream = await ask(local, **fields), await ask(local, stream=True, **fields)
        assert whole.text == stream.text != ""
        assert whole.json["usage"]["prompt_tokens"] > 1
        assert whole.json["choices"][0]["finish_reason"] == "length"

    run(test)


@pytest.mark.parametrize("fields", [{}, {"path": "/v1/completions", "prompt": "User: hi\nAssistant:"}])
def test_several_choices_are_given_one_after_the_other(model: Path, fields: dict[str, Any]) -> None:
    """Each with its index, its role and its end; the prompt is counted once and all that was said."""

    async def test() -> None:
        async with wire(model, slots=1) as local:
            one = await ask(local, **fields)
            whole, stream = await ask(local, n=3, **fields), await ask(local, n=3, stream=True, **fields)
        choices = whole.json["choices"]
        texts = [choice["text"] if "text" in choice else choice["message"]["content"] for choice in choices]
        assert [choice["index"] for choice in choices] == [0, 1, 2]
        assert texts == [one.text] * 3
        assert whole.json["usage"]["prompt_tokens"] == one.json["usage"]["prompt_tokens"]
        assert whole.json["usage"]["completion_tokens"] == 3 * one.json["usage"]["completion_tokens"]
        assert stream.text == one.text * 3
        ends = [c["choices"][0]["index"] for c in stream.chunks if c["choices"][0]["finish_reason"]]
        assert ends == [0, 1, 2]

    run(test)


def test_a_caller_who_leaves_between_choices_frees_the_slot(model: Path) -> None:
    """In a choice, at its end, or before the next: no other begins, and the next caller is answered."""

    async def test() -> None:
        async with wire(model, slots=1) as local:
            for pieces in range(1, 12):
                leaving = await local.open(request(stream=True, n=3, max_tokens=3))
                (choices,) = local._answers
                async for _ in leaving:
                    pieces -= 1
                    if not pieces:
                        break
                await leaving.aclose()
                assert (await ask(local)).status == 200
                assert choices.finished.is_set()
                assert not local._answers

    run(test)


def test_no_two_choices_run_at_once(model: Path) -> None:
    """A stop string ends the text a step before its thread is free; the slot is for one thread."""

    async def test() -> None:
        async with wire(model, slots=1) as local:
            stop = (await ask(local, max_tokens=30)).text[8:12]
            reply = await local.open(request(n=4, max_tokens=LONG, stop=stop))
            (choices,) = local._answers
            before = []
            async for _, generation in choices:
                assert all(one.finished.is_set() for one in before)
                before.append(generation)
                assert [text async for text in generation.texts()]
                assert generation.finish_reason == "stop"
            await reply.aclose()
        assert len(before) == 4

    run(test)


def test_a_wire_that_closes_begins_no_other_choice(model: Path) -> None:
    """It waits for what runs, and for nothing more."""

    async def test() -> None:
        async with wire(model, slots=1) as local:
            reply = await local.open(request(stream=True, n=4, max_tokens=LONG))
            (choices,) = local._answers
            reading = asyncio.create_task(read(reply))
            await asyncio.sleep(0)
        await reading
        assert choices.finished.is_set()
        assert choices._left == 0

    run(test)


def test_content_may_come_in_parts(model: Path) -> None:
    """A list of text parts is the same as one string."""

    async def test() -> None:
        parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
        async with wire(model) as local:
            assert (await ask(local, messages=[{"role": "user", "content": parts}])).text == (
                await ask(local)
            ).text

    run(test)


def test_a_stop_string_ends_the_answer_before_it(model: Path) -> None:
    """Wherever in the greedy answer a stop string lies, the text ends right before it, finish_reason stop."""

    async def test() -> None:
        async with wire(model) as local:
            whole = (await ask(local, max_tokens=30)).text
            for start in range(1, len(whole) - 3, 5):
                stop = whole[start : start + 3]
                said = await ask(local, max_tokens=30, stop=[stop, "never said"], stream=True)
                assert said.text == whole[: whole.index(stop)]
                assert said.chunks[-1]["choices"][0]["finish_reason"] == "stop"

    run(test)


def test_no_chunk_breaks_a_character(model: Path) -> None:
    """Random tokens are random bytes: each event is UTF-8 all the same, and no event is empty."""

    async def test() -> None:
        async with wire(model) as local:
            said = await ask(local, stream=True, temperature=2, max_tokens=LONG)
        for piece in said.pieces:
            piece.decode("utf-8")
        texts = [chunk["choices"][0]["delta"].get("content") for chunk in said.chunks[1:-1]]
        assert all(texts)

    run(test)


def test_an_answer_longer_than_the_context_leaves_is_capped(model: Path) -> None:
    """A generous max_tokens is no error: the answer ends where the context does."""

    async def test() -> None:
        async with wire(model) as local:
            usage = (await ask(local, max_tokens=100_000)).json["usage"]
        assert usage["total_tokens"] == 256

    run(test)


def test_the_default_length_is_the_configured_one(model: Path) -> None:
    """Without max_tokens a base model does not go on to the end of its context."""

    async def test() -> None:
        async with wire(model, max_tokens=5) as local:
            assert (await ask(local, max_tokens=None)).json["usage"]["completion_tokens"] == 5
            assert (await ask(local, max_completion_tokens=3)).json["usage"]["completion_tokens"] == 3

    run(test)


def test_a_prompt_that_does_not_fit_is_the_callers_400(model: Path) -> None:
    """OpenAI's code and OpenAI's kind of message, also for a text too long to be tokenised."""

    async def test() -> None:
        async with wire(model) as local:
            for content in ("x y " * 500, "x" * 5_000_000):
                said = await ask(local, messages=[{"role": "user", "content": content}])
                assert said.status == 400
                assert said.json["error"]["code"] == "context_length_exceeded"
                assert "maximum context length is 256 tokens" in said.json["error"]["message"]

    run(test)


def test_with_truncate_the_oldest_turns_are_dropped_and_it_is_said(model: Path) -> None:
    """A fallback answers the newest turns rather than nothing."""

    async def test() -> None:
        old = [{"role": "user", "content": "old " * 100}, {"role": "assistant", "content": "x"}] * 50
        messages = [*old, {"role": "user", "content": "hi"}]
        async with wire(model) as local:
            cut = await ask(local, messages=messages, headers={"X-Sive-Truncate": "1"}, stream=True)
            assert (cut.status, cut.headers["x-sive-truncated"]) == (200, "1")
            whole = await ask(local, headers={"x-sive-truncate": "1"})
            assert "x-sive-truncated" not in whole.headers
            raw = await ask(
                local, path="/v1/completions", prompt="a b " * 9999, headers={"x-sive-truncate": "1"}
            )
            assert (raw.headers["x-sive-truncated"], raw.status) == ("1", 200)

    run(test)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"n": 5}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": "all"}, "top_p"),
        ({"stop": [1]}, "stop"),
        ({"path": "/v1/completions", "prompt": [1, 2]}, "prompt"),
    ],
)
def test_a_wrong_value_is_a_400_that_names_it(model: Path, fields: dict[str, Any], param: str) -> None:
    """Errors are replies in OpenAI's shape, never exceptions."""

    async def test() -> None:
        async with wire(model) as local:
            said = await ask(local, **fields)
        assert (said.status, said.json["error"]["param"]) == (400, param)

    run(test)


def test_four_run_eight_wait_and_the_thirteenth_is_told_when_to_come_back(model: Path) -> None:
    """A full queue is 503 overloaded with whole seconds in Retry-After; those who wait are answered."""

    async def test() -> None:
        async with wire(model) as local:
            await ask(local)
            asks = [asyncio.create_task(ask(local, max_tokens=LONG)) for _ in range(12)]
            await asyncio.sleep(0)
            late = await ask(local)
            assert (late.status, late.json["error"]["code"]) == (503, "overloaded")
            assert int(late.headers["retry-after"]) >= 1
            assert {said.status for said in await asyncio.gather(*asks)} == {200}
            assert (await ask(local)).status == 200

    run(test)


def test_a_caller_who_leaves_frees_the_slot_within_a_token(model: Path) -> None:
    """Aclose stops the generation: the next in the queue begins long before the first would have ended."""

    async def test() -> None:
        async with wire(model, slots=1) as local:
            first = await local.open(request(stream=True, max_tokens=LONG))
            async for _ in first:
                break
            (choices,) = local._answers
            generation = choices._running
            waiting = asyncio.create_task(ask(local))
            await first.aclose()
            assert (await waiting).status == 200
            assert generation.finished.is_set()
            assert generation.completion_tokens < LONG

    run(test)


def test_a_caller_who_leaves_the_queue_frees_its_place(model: Path) -> None:
    """A cancelled waiter is not answered, and its place in the queue is free."""

    async def test() -> None:
        async with wire(model, slots=1, queue=1) as local:
            first = await local.open(request(stream=True, max_tokens=LONG))
            waiting = asyncio.create_task(local.open(request()))
            await asyncio.sleep(0)
            assert (await ask(local)).status == 503
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            second = asyncio.create_task(ask(local))
            await first.aclose()
            assert (await second).status == 200

    run(test)


def test_callers_at_once_load_the_model_once_and_one_leaving_does_not_stop_it(model: Path) -> None:
    """The first request may be cancelled while it loads; the others get their answer from the same load."""

    async def test() -> None:
        async with wire(model) as local:
            leaver, *others = [asyncio.create_task(ask(local)) for _ in range(3)]
            await asyncio.sleep(0)
            leaver.cancel()
            assert [said.status for said in await asyncio.gather(*others)] == [200, 200]
            assert [said.status for said in await asyncio.gather(*(ask(local) for _ in range(4)))] == [
                200
            ] * 4

    run(test)


def test_a_plain_folder_is_converted_and_answers(model: Path, tmp_path: Path) -> None:
    """HF_LOCAL_MODEL_PATH may be a Hugging Face folder; the answer is the prepared model's."""

    async def test() -> None:
        source = write_gpt2(tmp_path / "gpt2")
        async with wire(source, weights_dir=tmp_path / "weights") as local:
            assert local.describe().path == source
            said = await ask(local)
            assert (said.json["model"], local.describe().path.parent) == ("gpt2", tmp_path / "weights")
        async with wire(model) as local:
            assert (await ask(local)).text == said.text

    run(test)


def test_a_model_that_cannot_be_loaded_leaves_the_embedded_one(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning line says why; the caller is answered, under the embedded model's name."""
    broken = make(write_gpt2(tmp_path / "hf"), tmp_path / "broken")
    (broken / "model.bin").write_bytes(b"no model")

    async def test() -> None:
        async with wire(broken, embedded=model) as local:
            assert (await ask(local)).status == 200
            assert local.describe().path == model
            assert "cannot be loaded" in local.describe().why

    with caplog.at_level(logging.WARNING):
        run(test)
    assert ["cannot be loaded" in record.message for record in caplog.records] == [True]


def test_without_any_model_it_is_503_and_says_what_to_do(tmp_path: Path) -> None:
    """A wire with nothing to answer with answers so."""

    async def test() -> None:
        async with wire(tmp_path / "nothing", embedded=tmp_path / "neither") as local:
            said = await ask(local)
        assert (said.status, said.json["error"]["code"]) == (503, "model_unavailable")

    run(test)


def test_the_models_own_temperature_is_the_default(model: Path, tmp_path: Path) -> None:
    """``"temperature": 0`` in sive.json makes an answer greedy when the request says nothing."""
    greedy = tmp_path / "greedy"
    greedy.mkdir()
    for file in model.iterdir():
        (greedy / file.name).write_bytes(file.read_bytes())
    about = json.loads((greedy / "sive.json").read_text()) | {"temperature": 0}
    (greedy / "sive.json").write_text(json.dumps(about))

    async def test() -> None:
        async with wire(greedy) as local:
            assert (await ask(local, temperature=None)).text == (await ask(local)).text

    run(test)


def test_building_a_wire_imports_no_engine() -> None:
    """An idle sive pays nothing for the CPU model; nothing ever brings torch in."""
    program = (
        "import sys; from sive.config.sections import LocalSettings; from sive.wires.local import LocalWire\n"
        "LocalWire(LocalSettings())\n"
        "assert not {'ctranslate2', 'numpy', 'tokenizers', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=PACKAGE_ROOT, check=True)
