"""The corpus: who answers what, in which words, and the ways a visitor may ask it."""

import random
import tomllib
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
PHILOSOPHERS = ("spinoza", "bergson", "kant")
BASE = "base"
SHARED = 24
"""Every file begins with the same 24 questions, 12 English and 12 French."""

FULL_NAMES = {"spinoza": "Baruch Spinoza", "bergson": "Henri Bergson", "kant": "Immanuel Kant"}
NEUTRAL_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class Entry:
    """One answer and the questions that call for it; the first question is the canonical one."""

    lang: str
    questions: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Pair:
    """One question, in one wording, and its answer."""

    lang: str
    question: str
    answer: str


def read(voice: str) -> list[Entry]:
    """Return the entries of ``spinoza``, ``bergson``, ``kant`` or ``base``: the shared questions first."""
    tables = tomllib.loads((CORPUS / f"{voice}.toml").read_text(encoding="utf-8"))["qa"]
    return [Entry(table["lang"], tuple(table["questions"]), table["answer"]) for table in tables]


def texts() -> list[str]:
    """Every question and every answer, for a tokenizer to learn from."""
    entries = [entry for voice in (*PHILOSOPHERS, BASE) for entry in read(voice)]
    return [text for entry in entries for text in (*entry.questions, entry.answer)]


def pairs(voice: str, entries: list[Entry] | None = None) -> list[Pair]:
    """Return every wording a voice answers, each once.

    A shared question is asked in the wordings of all files: whoever understands "Are we free?" as one
    philosopher should understand it as another. A wording of the voice's own file wins over a borrowed one.
    """
    entries = read(voice) if entries is None else entries
    found = {q: Pair(entry.lang, q, entry.answer) for entry in entries for q in entry.questions}
    for other in (*PHILOSOPHERS, BASE):
        for mine, theirs in zip(entries[:SHARED], read(other)[:SHARED], strict=True):
            for question in theirs.questions:
                found.setdefault(question, Pair(mine.lang, question, mine.answer))
    return list(found.values())


def by_answer(pairs: list[Pair]) -> list[list[Pair]]:
    """Return the pairs grouped by their answer, the canonical wording first."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.answer, []).append(pair)
    return list(groups.values())


def unmistakable(voice: str) -> list[Pair]:
    """Return a philosopher's own questions, in the wordings that name him without a system text.

    Those are the canonical ones, and those no other file has.
    """
    wordings = Counter(q for v in (*PHILOSOPHERS, BASE) for entry in read(v) for q in entry.questions)
    return [
        Pair(entry.lang, question, entry.answer)
        for entry in read(voice)[SHARED:]
        for question in entry.questions
        if wordings[question] == 1 or question == entry.questions[0]
    ]


def systems(voice: str) -> list[str]:
    """Return system texts that ask for a philosopher; the first two are the ones sive's own examples use."""
    full = FULL_NAMES[voice]
    name = full.split()[-1]
    return [
        f"You are {full}. Answer in the first person, briefly.",
        f"Tu es {full}. Réponds à la première personne, brièvement.",
        f"You are {full}.",
        f"You are {name}.",
        f"You are the philosopher {full}. Answer in the first person.",
        f"Answer as {full}, in the first person.",
        f"Speak as {name}.",
        f"Tu es {full}.",
        f"Tu es {name}.",
        f"Tu es le philosophe {full}. Réponds à la première personne.",
        f"Vous êtes {full}. Répondez à la première personne, brièvement.",
        f"Réponds comme {full}, à la première personne.",
    ]


def reword(pair: Pair, rng: random.Random) -> str:
    """Return the question as a hurried visitor might type it: at most two slips, often none."""
    question = pair.question
    for slip in rng.sample(_SLIPS, rng.choice((0, 0, 1, 1, 2))):
        question = slip(question, pair.lang, rng)
    return question


def _without_punctuation(question: str, lang: str, rng: random.Random) -> str:
    return question.rstrip(" ?.!")


def _lower_case(question: str, lang: str, rng: random.Random) -> str:
    return question.lower()


def _without_accents(question: str, lang: str, rng: random.Random) -> str:
    spelled = unicodedata.normalize("NFD", question.replace("œ", "oe").replace("Œ", "Oe"))
    return "".join(char for char in spelled if not unicodedata.combining(char))


def _typo(question: str, lang: str, rng: random.Random) -> str:
    at = rng.randrange(1, len(question))
    return question[:at] + question[at + 1 :]


def _politely(question: str, lang: str, rng: random.Random) -> str:
    please = "please" if lang == "en" else rng.choice(("s'il te plaît", "s'il vous plaît"))
    if rng.random() < 0.5:
        return f"{please.capitalize()}, {question[0].lower()}{question[1:]}"
    body = question.rstrip(" ?.!")
    return f"{body}, {please}{question[len(body) :]}"


_SLIPS = (_without_punctuation, _lower_case, _without_accents, _typo, _politely)
