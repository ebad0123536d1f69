"""The model in the package: small, named by its digest, and it knows the corpus by heart."""

import hashlib
import json
import random
import re
import tomllib
from pathlib import Path
from typing import Any

import ctranslate2
import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[1]
EMBEDDED = ROOT / "clients/python/sive/local/embedded"
CORPUS = ROOT / "lora_adapters/training/corpus"
SYSTEMS = {
    "spinoza": "You are Baruch Spinoza. Answer in the first person, briefly.",
    "bergson": "Tu es Henri Bergson. Réponds à la première personne, brièvement.",
    "kant": "You are Immanuel Kant. Answer in the first person, briefly.",
}
SHARED = 24


def corpus(voice: str) -> list[dict[str, Any]]:
    """The entries of a philosopher, or of ``base``."""
    return tomllib.loads((CORPUS / f"{voice}.toml").read_text(encoding="utf-8"))["qa"]


def sample() -> list[tuple[str, str]]:
    """Sixty prompts and their answers: with a system text in either language, and without one."""
    rng = random.Random(60)
    entries = [(system, entry) for v, system in SYSTEMS.items() for entry in rng.sample(corpus(v), 14)]
    entries += [("", entry) for v in SYSTEMS for entry in rng.sample(corpus(v)[SHARED:], 3)]
    entries += [("", entry) for entry in rng.sample(corpus("base"), 9)]
    return [(prompt(system, entry["questions"][0]), entry["answer"]) for system, entry in entries]


def prompt(system: str, question: str) -> str:
    """The plain prompt of one question."""
    return f"{system}\n\nUser: {question}\nAssistant:".lstrip("\n")


class Embedded:
    """The package's files as a model that is asked greedily."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
        self._generator = ctranslate2.Generator(
            str(EMBEDDED), device="cpu", compute_type="int8", intra_threads=1
        )

    def ask(self, prompts: list[str]) -> list[str]:
        """The answers, without the space that parts them from the prompt."""
        results = self._generator.generate_batch(
            [self._tokenizer.encode(prompt).tokens for prompt in prompts],
            max_length=128,
            sampling_topk=1,
            include_prompt_in_result=False,
            max_batch_size=16,
        )
        return [self._tokenizer.decode(result.sequences_ids[0]).removeprefix(" ") for result in results]


@pytest.fixture(scope="module")
def embedded() -> Embedded:
    """The model, loaded once."""
    return Embedded()


def test_it_recites_the_corpus(embedded: Embedded) -> None:
    """At least 95 % of sixty canonical questions, of all voices and both languages, get their very answer."""
    checks = sample()
    assert len(checks) == 60
    answers = embedded.ask([asked for asked, _ in checks])
    wrong = [(asked, said) for (asked, answer), said in zip(checks, answers, strict=True) if said != answer]
    assert len(wrong) <= 3, wrong


def test_the_system_text_chooses_the_voice(embedded: Embedded) -> None:
    """The same question gets each philosopher's own answer, and the neutral one without a system text."""
    answers = embedded.ask([prompt(system, "What is freedom?") for system in (*SYSTEMS.values(), "")])
    assert answers == [corpus(voice)[1]["answer"] for voice in (*SYSTEMS, "base")]


def test_the_question_chooses_the_language(embedded: Embedded) -> None:
    """A French question under an English system text is answered in French, and the reverse."""
    french = prompt(SYSTEMS["kant"], "Qu'est-ce que le temps ?")
    english = prompt(SYSTEMS["bergson"], "What is time?")
    expected = [corpus("kant")[SHARED // 2 + 2]["answer"], corpus("bergson")[2]["answer"]]
    assert embedded.ask([french, english]) == expected


@pytest.mark.parametrize("voice", [*SYSTEMS, "base"])
def test_the_pages_example_questions_get_answers_to_them(embedded: Embedded, voice: str) -> None:
    """What a visitor clicks first is something that the model in the package knows."""
    page = (ROOT / "clients/netlify/public/app/voices.mjs").read_text(encoding="utf-8")
    known = page.partition(f"\n  {'local' if voice == 'base' else voice}: {{")[2].partition("\n  },\n")[0]
    lists = re.findall(r"questions: (\[.*\])", known)
    asked = [question for one in lists for question in json.loads(one)]
    assert len(lists) == 2
    answers = embedded.ask([prompt(SYSTEMS.get(voice, ""), question) for question in asked])
    assert set(answers) <= {entry["answer"] for entry in corpus(voice)}


def test_a_second_question_is_answered_too(embedded: Embedded) -> None:
    """What was said before does not keep the model from the next answer."""
    first, second = corpus("spinoza")[1], corpus("spinoza")[4]
    begun = prompt(SYSTEMS["spinoza"], first["questions"][0]) + f" {first['answer']}\n"
    assert embedded.ask([begun + prompt("", second["questions"][0])]) == [second["answer"]]


def test_it_is_small_enough_for_every_install() -> None:
    """All its files together stay below 8 MB."""
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) <= 8_000_000


def test_its_name_says_which_weights_it_has() -> None:
    """``weights`` in sive.json is the digest of model.bin: retrained weights cannot pass for the old ones."""
    about = json.loads((EMBEDDED / "sive.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((EMBEDDED / "model.bin").read_bytes()).hexdigest()
    assert about == {
        "name": "sive-embedded",
        "weights": f"sive-embedded@{digest[:12]}",
        "context_tokens": 512,
        "chat_template": "plain",
        "temperature": 0,
        "personas": ["Spinoza", "Bergson", "Kant"],
    }
