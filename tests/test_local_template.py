"""Messages as a plain prompt, and what is dropped when they do not fit."""

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st
from sive.local.template import Chat, Turn, fit, fit_text

said = st.text(alphabet="ab é🙂", max_size=40)
chats = st.builds(
    Chat,
    said,
    st.lists(st.builds(Turn, st.sampled_from(["User", "Assistant"]), said), min_size=1, max_size=6).map(
        tuple
    ),
)


def chat(*contents: str, system: str = "") -> Chat:
    """Turns of both sides, the user first."""
    speakers: tuple[Literal["User", "Assistant"], ...] = ("User", "Assistant")
    return Chat(system, tuple(Turn(speakers[at % 2], content) for at, content in enumerate(contents)))


def test_a_prompt_is_the_system_text_the_turns_and_an_open_answer() -> None:
    """The template base models are used with, byte for byte."""
    assert chat("Hi", "Hello", "Who?", system="Be brief.").prompt() == (
        "Be brief.\n\nUser: Hi\nAssistant: Hello\nUser: Who?\nAssistant:"
    )


def test_without_a_system_text_it_begins_with_the_first_turn() -> None:
    """No empty lines stand for a system text that is not there."""
    assert chat("Hi").prompt() == "User: Hi\nAssistant:"


def test_the_oldest_turns_go_first() -> None:
    """The system text and the newest turns stay."""
    cut = fit(chat("a" * 50, "b" * 50, "c" * 10, system="S"), 50, len, bytes_per_token=16)
    assert cut == Chat("S", (Turn("User", "c" * 10),))


def test_what_fits_is_left_alone() -> None:
    """Nothing is dropped without need."""
    whole = chat("a", "b", "c", system="S")
    assert fit(whole, len(whole.prompt()), len, bytes_per_token=16) == whole


def test_a_last_turn_that_does_not_fit_keeps_its_tail() -> None:
    """The question usually stands at the end of a long text."""
    cut = fit(chat("old", "older", "x" * 500 + "why?", system="S"), 60, len, bytes_per_token=16)
    assert cut.system == "S"
    assert cut.turns[0].content.endswith("xwhy?")
    assert len(cut.prompt()) == 60


def test_a_system_text_that_crowds_the_question_out_is_dropped() -> None:
    """A question without its system text is better than a system text without a question."""
    cut = fit(chat("why?", system="S" * 500), 40, len, bytes_per_token=16)
    assert cut == chat("why?")


@given(whole=chats, budget=st.integers(24, 120))
def test_a_cut_chat_fits_and_keeps_the_end(whole: Chat, budget: int) -> None:
    """Whatever is cut, the prompt is within the budget and its last turn ends as the caller's did."""
    cut = fit(whole, budget, lambda text: len(text.encode()), bytes_per_token=16)
    assert len(cut.prompt().encode()) <= budget
    assert whole.turns[-1].content.endswith(cut.turns[-1].content)
    assert cut.turns[:-1] == whole.turns[len(whole.turns) - len(cut.turns) : -1]


def test_a_text_far_too_long_is_never_counted_whole() -> None:
    """Tokenising megabytes would hold a core for seconds."""
    counted: list[int] = []

    def count(text: str) -> int:
        counted.append(len(text))
        return len(text) // 4

    fit(chat("a" * 1_000_000, "b", "c" * 1_000_000), 100, count, bytes_per_token=16)
    fit_text("d" * 1_000_000, 100, count, bytes_per_token=16)
    assert max(counted) <= 1600
