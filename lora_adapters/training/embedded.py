"""Makes clients/python/sive/local/embedded: the GPT-2-shaped model that answers when nobody else can."""

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import corpus
import ctranslate2
import torch
from fit import Said, Sample, Schedule, fit
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

END = "<|endoftext|>"
CONTEXT_TOKENS = 512
PACKAGED = Path(__file__).parents[2] / "clients/python/sive/local/embedded"
NEUTRAL_SYSTEMS = (
    corpus.NEUTRAL_SYSTEM,
    "You are a friendly assistant. Answer briefly.",
    "Answer the visitor's question.",
    "Tu es un assistant utile.",
    "Réponds brièvement.",
)


def main() -> None:
    """Train, convert and verify; exits with 1 when fewer than 98 % of the answers are verbatim."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: .venv-torch/bin/python lora_adapters/training/embedded.py"
    )
    parser.add_argument("--out", type=Path, default=PACKAGED, help="folder to write (the package's own)")
    parser.add_argument("--seed", type=int, default=1889, help="seed of every random choice (1889)")
    parser.add_argument("--steps", type=int, default=1200, help="training steps of 16 conversations (1200)")
    options = parser.parse_args()
    began = time.monotonic()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    random.seed(options.seed)
    torch.manual_seed(options.seed)
    tokenizer = make_tokenizer()
    model = new_model(tokenizer)
    conversations = Conversations(tokenizer, random.Random(options.seed))
    fit(
        model,
        conversations.draw,
        Schedule(steps=options.steps, batch=16, rate=0.02, adam_rate=0.004),
        "embedded",
    )
    write(options.out, model, tokenizer)
    share = verify(options.out)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.out}: {size / 1e6:.1f} MB, {time.monotonic() - began:.0f} s")
    sys.exit(0 if share >= 0.98 else 1)


def new_model(tokenizer: Tokenizer) -> GPT2LMHeadModel:
    """Return the untrained model: four million weights, as many bytes once they are int8."""
    end = tokenizer.token_to_id(END)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=tokenizer.get_vocab_size(),
            n_positions=CONTEXT_TOKENS,
            n_embd=256,
            n_layer=4,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end,
            eos_token_id=end,
        )
    )


def make_tokenizer() -> Tokenizer:
    """Train a byte-level BPE on the corpus and the words of the plain prompt."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    systems = [system for voice in corpus.PHILOSOPHERS for system in corpus.systems(voice)]
    bpe.train_from_iterator([*corpus.texts(), *systems, *["\n\nUser: \nAssistant: "] * 10], trainer)
    return bpe


def plain(system: str | None, turns: list[tuple[str, str]]) -> str:
    """Return the plain prompt of some turns, each a question and its answer; the last answer may be empty."""
    head = f"{system}\n\n" if system else ""
    return head + "\n".join(
        f"User: {question}\nAssistant: {answer}".rstrip(" ") for question, answer in turns
    )


class Conversations:
    """Draws training conversations in the plain format."""

    def __init__(self, tokenizer: Tokenizer, rng: random.Random) -> None:
        self._tokenizer = tokenizer
        self._rng = rng
        self._voices = {voice: corpus.by_answer(corpus.pairs(voice)) for voice in corpus.PHILOSOPHERS}
        self._own = [group for v in corpus.PHILOSOPHERS for group in corpus.by_answer(corpus.unmistakable(v))]
        self._neutral = corpus.by_answer(corpus.pairs(corpus.BASE))

    def draw(self) -> Sample:
        """Return a conversation, mostly of one question; the model learns every answer in it."""
        rng = self._rng
        if rng.random() < 0.6:
            voice = rng.choice(corpus.PHILOSOPHERS)
            system, groups = self._system(voice), self._voices[voice]
        else:
            # Who speaks is told by the question alone: a philosopher's own, or anybody's.
            system = None if rng.random() < 0.7 else rng.choice(NEUTRAL_SYSTEMS)
            groups = self._neutral if rng.random() < 0.3 else self._own
        head = f"{system}\n\n" if system else ""
        parts: list[tuple[str, Said]] = []
        # Now and then as many as the context holds: a position never seen in training derails an answer.
        chosen = rng.sample(groups, rng.choices((1, 2, 3, 5), (14, 3, 2, 1))[0])
        for group in chosen:
            pair = group[0] if rng.random() < 0.35 else rng.choice(group)
            question = pair.question if rng.random() < 0.6 else corpus.reword(pair, rng)
            parts.append((f"{head}User: {question}\nAssistant:", "visitor"))
            parts += self._answer(pair.answer + (END if group is chosen[-1] else ""))
            head = "\n"
        sample = Sample.of((self._tokenizer.encode(text).ids, said) for text, said in parts)
        return Sample(sample.ids[:CONTEXT_TOKENS], sample.weights[:CONTEXT_TOKENS])

    def _system(self, voice: str) -> str:
        systems = corpus.systems(voice)
        return self._rng.choice(systems[:2]) if self._rng.random() < 0.5 else self._rng.choice(systems)

    def _answer(self, text: str) -> Iterator[tuple[str, Said]]:
        if self._rng.random() < 0.7:
            yield f" {text}", "answer"
            return
        # An answer that another backend began is continued from anywhere, also from inside a word.
        at = self._rng.randrange(1, len(text) - len(END))
        yield f" {text[:at]}", "visitor"
        yield text[at:], "rest"


def write(out: Path, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
    """Write the folder sive loads: CTranslate2's int8 files, the tokenizer and what sive says of it."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END
        ).save_pretrained(folder)
        converted = Path(folder) / "converted"
        ctranslate2.converters.TransformersConverter(folder).convert(str(converted), quantization="int8")
        for name in ("model.bin", "config.json", "vocabulary.json"):
            shutil.copyfile(converted / name, out / name)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    digest = hashlib.sha256((out / "model.bin").read_bytes()).hexdigest()
    about = {
        "name": "sive-embedded",
        "weights": f"sive-embedded@{digest[:12]}",
        "context_tokens": CONTEXT_TOKENS,
        "chat_template": "plain",
        "temperature": 0,
        "personas": ["Spinoza", "Bergson", "Kant"],
    }
    (out / "sive.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Check:
    """One prompt and the answer it calls for; checks of a kind are counted together."""

    kind: str
    prompt: str
    answer: str


def verify(out: Path) -> float:
    """Ask the written model everything, greedily; return the verbatim share of canonical questions."""
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    generator = ctranslate2.Generator(str(out), device="cpu", compute_type="int8")
    checks = list(_checks(random.Random(1)))
    results = generator.generate_batch(
        [tokenizer.encode(check.prompt).tokens for check in checks],
        max_length=128,
        sampling_topk=1,
        include_prompt_in_result=False,
        max_batch_size=32,
    )
    counts: dict[str, list[bool]] = {}
    for check, result in zip(checks, results, strict=True):
        said = tokenizer.decode(result.sequences_ids[0])
        counts.setdefault(check.kind, []).append(said.strip() == check.answer.strip())
        if not counts[check.kind][-1] and check.kind.startswith("canonical"):
            print(f"not verbatim: {check.prompt!r} -> {said!r}")
    for kind, right in counts.items():
        print(f"{kind}: {sum(right)}/{len(right)} verbatim")
    canonical = [right for kind, rights in counts.items() if kind.startswith("canonical") for right in rights]
    return sum(canonical) / len(canonical)


def _checks(rng: random.Random) -> Iterator[Check]:
    for voice in corpus.PHILOSOPHERS:
        for entry in corpus.read(voice):
            for system in corpus.systems(voice)[:2]:
                prompt = plain(system, [(entry.questions[0], "")])
                yield Check("canonical, with a system text", prompt, entry.answer)
        yield from _conversations(voice, rng)
        canonical = {entry.questions[0] for entry in corpus.read(voice)}
        for pair in corpus.unmistakable(voice):
            kind = "canonical" if pair.question in canonical else "any wording"
            yield Check(f"{kind}, without a system text", plain(None, [(pair.question, "")]), pair.answer)
        system = corpus.systems(voice)[0]
        for pair in corpus.pairs(voice):
            yield Check("any wording", plain(system, [(pair.question, "")]), pair.answer)
            mistyped = corpus.reword(pair, rng)
            yield Check("any wording, mistyped", plain(system, [(mistyped, "")]), pair.answer)
    for entry in corpus.read(corpus.BASE):
        for neutral in (None, corpus.NEUTRAL_SYSTEM):
            yield Check("canonical, neutral", plain(neutral, [(entry.questions[0], "")]), entry.answer)


def _conversations(voice: str, rng: random.Random) -> Iterator[Check]:
    system = corpus.systems(voice)[0]
    entries = corpus.read(voice)
    for entry in entries:
        question = entry.questions[0]
        before = [(other.questions[0], other.answer) for other in rng.sample(entries, 3)]
        yield Check("second question", plain(system, [before[0], (question, "")]), entry.answer)
        yield Check("fourth question", plain(system, [*before, (question, "")]), entry.answer)
        at = rng.randrange(1, len(entry.answer))
        yield Check("begun answer", plain(system, [(question, entry.answer[:at])]), entry.answer[at:])


if __name__ == "__main__":
    main()
