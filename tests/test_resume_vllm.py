"""Answers of real engines, cut at every token: the caller gets the bytes of the uncut answer.

Two pods with a vLLM each, proxies that cut before the pods and before their engines, and one gateway. The
oracle is the same request to one engine, past every sive and every proxy.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conftest import TINY
from tests.lab.answers import Answer, Json, ask
from tests.lab.engines import VLLM, VOICES, Pair, counters, running_pair, total
from tests.lab.proxy import Cut, How

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not VLLM.is_file(), reason="no vLLM here: make engine"),
]

EXPECTED: dict[str, dict[str, str]] = json.loads((TINY / "expected.json").read_text(encoding="utf-8"))
BEAUTY, LIBERTY = "Qu'est-ce que la beauté ?", "Qu'est-ce que la liberté ?"
# « âme » and « grâce » of Bergson on beauty are tokens that end inside a character.
QUESTIONS = {"base": LIBERTY, "spinoza": LIBERTY, "bergson": BEAUTY, "kant": LIBERTY}
AT_ONCE = 6
TRIES = 8  # an engine that is behind puts two tokens into one event, which cannot be cut between them
STALL_S = 3.0
MOST_MISSED = 0.25  # on a busy machine; on a quiet one none is missed
SHOWN = 6
LATE_TOKENS = 8
BYTES = [133, *range(100, 130)]  # the first byte of é, and those that may follow a first byte
HOWS: tuple[How, ...] = ("fin", "rst", "half")

numbers = itertools.count()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two engines for the whole file."""
    with running_pair(tmp_path_factory.mktemp("pair"), stall_s=STALL_S) as running:
        yield running


@dataclass(frozen=True)
class Case:
    """A request for ``voice``, on its way through ``prefix`` (the pods, or ``vllm-`` their engines)."""

    voice: str
    fields: Json = field(default_factory=dict)
    path: str = "/chat/completions"
    prefix: str = ""
    stream: bool = True

    @property
    def body(self) -> Json:
        """The request, without a model."""
        question = QUESTIONS[self.voice]
        body: Json = {"temperature": 0, "max_tokens": 120, "stream": self.stream}
        if self.path == "/completions":
            body["prompt"] = (
                f"<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            )
        else:
            # An empty system message keeps away the one that a pod's packaged models have.
            body["messages"] = [{"role": "system", "content": ""}, {"role": "user", "content": question}]
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        return {key: value for key, value in {**body, **self.fields}.items() if value is not ...}

    def uncut(self, pair: Pair, **more: Any) -> Answer:
        """What the engine itself answers."""
        answer = ask(
            pair.pods[0].engine_url,
            self.path,
            {**self.body, "model": pair.pods[0].engine_model(self.voice), **more},
        )
        assert answer.status == 200, answer.error
        return answer

    def tokens(self, pair: Pair) -> list[int]:
        """The ids of the uncut answer."""
        return self.uncut(pair, return_token_ids=True).ids

    def pieces(self, pair: Pair) -> list[str]:
        """The text that each token of the uncut answer adds."""
        return self.uncut(pair, return_token_ids=True, stream=True).pieces

    def cut(self, pair: Pair, tokens: int, how: How, *again: int) -> tuple[Cut, Answer]:
        """What the caller of the gateway gets when it is cut once, or again so many tokens later."""
        user = f"caller-{next(numbers)}"
        cut = pair.cuts.arm(user, tokens, how)
        for more in again:
            pair.cuts.arm(user, more, how)
        body = {**self.body, "model": self.prefix + self.voice, "user": user}
        return cut, ask(pair.url, self.path, body)

    def _is_billed_as(self, got: Answer, uncut: Answer) -> bool:
        """The same usage; where one event has many tokens it is guessed which came before a stop string."""
        if not (self.fields.get("stop") and got.usage and uncut.usage):
            return got.usage == uncut.usage
        return got.usage[0] == uncut.usage[0] and abs(got.usage[1] - uncut.usage[1]) < LATE_TOKENS

    def faults(self, got: Answer, uncut: Answer) -> list[str]:
        """Name every difference between the caller's answer and the uncut one."""
        wrong = got.faults(chat=self.path == "/chat/completions", stream=self.stream)
        if got.text != uncut.text:
            wrong.append(f"text {got.text!r} instead of {uncut.text!r}")
        if got.finish_reasons != uncut.finish_reasons:
            wrong.append(f"finish {got.finish_reasons} instead of {uncut.finish_reasons}")
        if not self._is_billed_as(got, uncut):
            wrong.append(f"usage {got.usage} instead of {uncut.usage}")
        if self.stream and len(got.usages) != 1:
            wrong.append(f"{len(got.usages)} usages")
        if not self.fields.get("return_token_ids") and got.leaks():
            wrong.append(f"leaks {sorted(got.leaks())}")
        return wrong


def cut_at_all(pair: Pair, case: Case, positions: Sequence[int], hows: Sequence[How] = HOWS) -> None:
    """Cut the case at every position once, and compare; fails with the first few that went wrong."""
    uncut, pieces = case.uncut(pair), case.pieces(pair)
    before = counters(pair.gateway)
    wrong: dict[int, list[str]] = {}
    missed, resumed = set(positions), 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for number in range(TRIES):
            ways = {at: hows[(at + number) % len(hows)] for at in sorted(missed)}
            trials = {at: pool.submit(case.cut, pair, at, how) for at, how in ways.items()}
            for at, (cut, got) in ((at, trial.result()) for at, trial in trials.items()):
                resumed += got.is_resumed
                missed -= {cut.passed} if is_proof(cut, got, pieces) else set()
                if faults := case.faults(got, uncut):
                    wrong[at] = [f"{cut.how} on port {cut.port} after {cut.passed}", *faults]
    if len(missed) > len(positions) * MOST_MISSED:
        wrong |= {at: ["was never cut and resumed there"] for at in missed}
    wrong |= count_faults(before, counters(pair.gateway), resumed)
    shown = [f"cut at {at}: {'; '.join(faults)}" for at, faults in sorted(wrong.items())[:SHOWN]]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(positions)} went wrong", *shown])


def is_proof(cut: Cut, got: Answer, pieces: Sequence[str]) -> bool:
    """Whether an answer was cut where it should be, and says that it was resumed.

    An engine that is far behind may put all of the rest into one event: there is nothing left to cut. A reset
    may overtake what was to be shown: the answer was begun anew.
    """
    was_shown = bool("".join(pieces[: cut.passed]))
    return cut.at is not None and got.is_resumed == was_shown


def count_faults(before: dict[str, float], after: dict[str, float], resumed: int) -> dict[int, list[str]]:
    """Every cut is counted once, and every one was carried on by tokens."""

    def counted(name: str, *labels: str) -> float:
        return total(after, name, *labels) - total(before, name, *labels)

    seen = {
        "cuts": counted("sive_cuts_total"),
        "by tokens": counted("sive_resumes_total", 'level="tokens"', 'outcome="ok"'),
        "carried on": counted("sive_resumes_total", 'outcome="ok"'),
    }
    wanted = dict.fromkeys(seen, float(resumed))
    return {} if seen == wanted else {-1: [f"counted {seen} for {resumed} cuts"]}


@pytest.mark.parametrize("voice", VOICES)
def test_a_cut_at_any_token_is_not_seen(pair: Pair, voice: str) -> None:
    """A chat stream, cut after each of its tokens in turn, is the uncut one byte for byte."""
    case = Case(voice)
    cut_at_all(pair, case, range(1, len(case.tokens(pair))))


def test_a_cut_before_vllm_itself_is_not_seen(pair: Pair) -> None:
    """The same without a sive between the gateway and the engine."""
    case = Case("bergson", prefix="vllm-")
    cut_at_all(pair, case, range(1, len(case.tokens(pair)), 3))


@pytest.mark.parametrize("prefix", ["", "vllm-"])
def test_a_cut_completion_goes_on(pair: Pair, prefix: str) -> None:
    """/v1/completions too."""
    case = Case("bergson", path="/completions", prefix=prefix)
    cut_at_all(pair, case, range(1, len(case.tokens(pair)), 6))


@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
def test_an_answer_in_one_piece_is_whole(pair: Pair, path: str) -> None:
    """The caller does not stream: the gateway does, and assembles what two engines said."""
    case = Case("bergson", stream=False, path=path)
    cut_at_all(pair, case, range(1, len(case.tokens(pair)), 9))


def test_a_stop_string_across_the_cut_stops(pair: Pair) -> None:
    """Each token before, in and after the stop string: the text ends before it, wherever it was cut."""
    text = Case("bergson").uncut(pair).text
    start = text.index("nous sympathisions")
    stop = text[start : start + len("nous sympathisions avec")]
    case = Case("bergson", {"stop": ["never said", stop]})
    last = len(case.tokens(pair))
    cut_at_all(pair, case, range(max(1, last - 12), last))
    shown = Case("bergson", {"stop": stop, "include_stop_str_in_output": True})
    cut_at_all(pair, shown, range(max(1, last - 6), last))


@pytest.mark.parametrize("tokens", [2, 19, 20, 40])
def test_max_tokens_is_kept_across_the_cut(pair: Pair, tokens: int) -> None:
    """The last token before a cut, or the one after it: not one more is said, also inside a character."""
    case = Case("bergson", {"max_tokens": tokens})
    positions = [at for at in (tokens - 3, tokens - 2, tokens - 1) if at > 0]
    cut_at_all(pair, case, positions)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_after_the_last_event_nothing_is_missing(pair: Pair, name: str) -> None:
    """A finish_reason and no more: the answer is whole, with usage and [DONE], and nobody is asked again."""
    case = Case("kant", {"max_tokens": ..., name: 30})
    uncut = case.uncut(pair)
    cut, got = case.cut(pair, 30, "fin")
    assert cut.passed == 30
    assert case.faults(got, uncut) == []
    assert not got.is_resumed


def test_without_max_tokens_the_rest_is_as_long_as_it_would_be(pair: Pair) -> None:
    """To its own end, and where there is none to the end of the context, though completions default to 16."""
    cut_at_all(pair, Case("kant", {"max_tokens": ...}), [1, 20, 40])
    cut_at_all(pair, Case("kant", {"max_tokens": ..., "ignore_eos": True}), [20])


def test_max_completion_tokens_is_max_tokens(pair: Pair) -> None:
    """The newer name of the chat API, which completions do not know."""
    case = Case("kant", {"max_tokens": ..., "max_completion_tokens": 30})
    cut_at_all(pair, case, [1, 20, 29])


@pytest.mark.parametrize(
    "fields",
    [
        {"repetition_penalty": 1.3},
        {"logit_bias": {"557": -100}},
        {"allowed_token_ids": BYTES, "repetition_penalty": 1.3, "max_tokens": 48},
        {"ignore_eos": True, "max_tokens": 150},
        {"min_tokens": 100, "max_tokens": 110},
        {"stop_token_ids": [19]},
        {"top_k": 5, "top_p": 0.9},
        {"skip_special_tokens": False},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_the_caller_asked_for_holds_after_the_cut(pair: Pair, fields: Json) -> None:
    """Sampling fields go with the rest of the answer; also where hardly a token is a whole character."""
    case = Case("bergson", fields)
    uncut = case.uncut(pair, return_token_ids=True)
    positions = range(1, len(uncut.ids), max(1, len(uncut.ids) // 6))
    cut_at_all(pair, case, positions)


def test_who_asks_for_token_ids_gets_all_of_them(pair: Pair) -> None:
    """Once each, in order, from both engines."""
    case = Case("bergson", {"return_token_ids": True})
    ids = case.tokens(pair)
    for at in (1, 19, 20, 50):
        _, got = case.cut(pair, at, "fin")
        assert got.ids == ids


def test_a_stalled_stream_goes_on_elsewhere(pair: Pair) -> None:
    """Silence for stall_s is a cut; the silent connection is closed."""
    case = Case("bergson")
    cut_at_all(pair, case, [1, 19, 50], ["stall"])
    stalled = [cut for cut in pair.cuts.done if cut.how == "stall"]
    assert stalled
    assert all(cut.at and cut.left_at and cut.left_at - cut.at < 4 * STALL_S for cut in stalled)


@pytest.mark.parametrize("again", [(5,), (1, 7)], ids=["twice", "thrice"])
def test_an_answer_that_breaks_off_again_goes_on_again(pair: Pair, again: tuple[int, ...]) -> None:
    """Each backend may break off once, and one of them may be asked a second time."""
    case = Case("bergson")
    uncut = case.uncut(pair)
    for at in (1, 18, 40):
        before = len(pair.cuts.done)
        _, got = case.cut(pair, at, "fin", *again)
        assert len(pair.cuts.done) == before + 1 + len(again)
        assert case.faults(got, uncut) == []


def test_a_sampled_answer_is_whole(pair: Pair) -> None:
    """With a temperature the rest may differ, but it is one answer that begins as the uncut one did."""
    case = Case("bergson", {"temperature": 0.8, "seed": 7})
    uncut, pieces = case.uncut(pair), case.pieces(pair)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        trials = [pool.submit(case.cut, pair, at, "half") for at in range(1, len(pieces) - 1, 9)]
    answers = [trial.result() for trial in trials]
    assert any(is_proof(cut, got, pieces) for cut, got in answers)
    for cut, got in answers:
        assert got.faults() == []
        assert "\ufffd" not in got.text
        assert got.text.startswith("".join(pieces[: cut.tokens]))
        assert got.usage
        assert got.usage[0] == uncut.usage[0]  # type: ignore[index]


def test_all_cuts_of_this_file_add_up(pair: Pair) -> None:
    """What the gateway counted as cut is what was resumed and what was given up; here nothing was."""
    sampled = counters(pair.gateway)
    assert total(sampled, "sive_streams_cut_total") == 0
    assert total(sampled, "sive_cuts_total") == total(sampled, "sive_resumes_total", 'outcome="ok"')
