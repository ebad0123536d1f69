"""The tiny models of the tests: the committed files are the truth."""

import hashlib
import json

from tests.conftest import TINY


def test_every_file_is_the_one_that_was_made() -> None:
    """MANIFEST.sha256 names all files of the models, and each has its digest."""
    lines = (TINY / "MANIFEST.sha256").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}
    for name, digest in listed.items():
        assert hashlib.sha256((TINY / name).read_bytes()).hexdigest() == digest, name
    models = {str(path.relative_to(TINY)) for path in TINY.glob("*/*")}
    assert models <= {name.removeprefix("*").removeprefix("./") for name in listed}


def test_they_stay_small() -> None:
    """Twelve megabytes together."""
    assert sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file()) <= 12_000_000


def test_the_same_question_has_four_different_answers() -> None:
    """In both languages, with characters of several bytes."""
    expected = json.loads((TINY / "expected.json").read_text(encoding="utf-8"))
    assert len(expected) >= 6
    for answers in expected.values():
        assert len(set(answers.values())) == 4
    assert any(
        len(answer.encode()) > len(answer) for answers in expected.values() for answer in answers.values()
    )
