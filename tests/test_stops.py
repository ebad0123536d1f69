"""Stop strings across the seams of a text."""

from hypothesis import given
from hypothesis import strategies as st
from sive.local.tokens import TokenDecoder, byte_alphabet
from sive.stops import StopFinder

texts = st.text(alphabet="ab\nU", max_size=30)
stop_strings = st.lists(st.text(alphabet="ab\nU", min_size=1, max_size=4), max_size=4)


def cut_at_first_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """What a reader who sees the whole text does: look for the first place where a stop is complete."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(pieces=st.lists(texts, max_size=8), stops=stop_strings)
def test_the_seams_make_no_difference(pieces: list[str], stops: list[str]) -> None:
    """However a text is cut into pieces, it ends before the first stop string, and says whether it did."""
    finder = StopFinder(stops)
    shown = "".join(finder.feed(piece) for piece in pieces) + finder.flush()
    assert (shown, finder.found is not None) == cut_at_first_stop("".join(pieces), stops)


@given(pieces=st.lists(texts, max_size=8), stops=stop_strings)
def test_no_more_is_held_than_may_be_a_stop(pieces: list[str], stops: list[str]) -> None:
    """Text that cannot begin a stop string is shown at once."""
    finder, shown, came = StopFinder(stops), "", ""
    for piece in pieces:
        came += piece
        shown += finder.feed(piece)
        if finder.found is not None:
            return
        held = came[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_stop_across_a_seam_is_never_shown() -> None:
    r"""The "\nUser:" of a base model is cut although no piece holds the whole of it."""
    finder = StopFinder(["\nUser:"])
    assert [finder.feed(piece) for piece in ("Hello\n", "Us", "er", ": hi")] == ["Hello", "", "", ""]
    assert finder.found == "\nUser:"


@given(text=st.text(max_size=30))
def test_tokens_of_single_bytes_give_whole_characters(text: str) -> None:
    """Bytes of a character that is not whole are held back; what comes out is the text."""
    char_of = {byte: char for char, byte in byte_alphabet().items()}
    decoder = TokenDecoder({})
    shown = [decoder.feed(char_of[byte]) for byte in text.encode("utf-8", "replace")]
    assert "".join(shown) == text.encode("utf-8", "replace").decode()
    assert all(len(piece) <= 1 for piece in shown)


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    """A model that writes a lone continuation byte gives U+FFFD, never broken UTF-8."""
    char_of = {byte: char for char, byte in byte_alphabet().items()}
    decoder = TokenDecoder({"<|endoftext|>": "", "~1~": "~1~"})
    assert decoder.feed(char_of[0x80]) == "\ufffd"
    assert decoder.feed("<|endoftext|>") == ""
    assert decoder.feed("~1~") == "~1~"
