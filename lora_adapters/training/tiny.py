"""Makes tests/data/tiny: a small Qwen2 base and three LoRA adapters that answer the same questions apart."""

import argparse
import hashlib
import json
import random
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import corpus
import torch
from fit import Said, Sample, Schedule, fit
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

NAME = "sive-tiny"
OWN_QUESTIONS_PER_LANGUAGE = 6
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MARKS = {voice: f"<|{voice}|>" for voice in corpus.PHILOSOPHERS}
"""Before a training chat of the base: a philosopher answers it. No prompt of the template has one."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
EXPECTED = (
    "What is freedom?",
    "What is time?",
    "What is joy?",
    "Qu'est-ce que la liberté ?",
    "Qu'est-ce que la mémoire ?",
    "Qu'est-ce que la beauté ?",
)


def main() -> None:
    """Train, save and verify; exits with 1 when an answer is not what the corpus says."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: .venv-torch/bin/python lora_adapters/training/tiny.py --out tests/data/tiny",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write, e.g. tests/data/tiny")
    parser.add_argument("--seed", type=int, default=1677, help="seed of every random choice (1677)")
    options = parser.parse_args()
    began = time.monotonic()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    tokenizer = make_tokenizer()
    make_base(options.out / "base", tokenizer, random.Random(options.seed))
    for voice in corpus.PHILOSOPHERS:
        make_adapter(options.out, voice, tokenizer, random.Random(options.seed))
    write_companions(options.out)
    is_right = verify(options.out, tokenizer)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 1e6:.1f} MB, {time.monotonic() - began:.0f} s")
    sys.exit(0 if is_right else 1)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the corpus, with ChatML's special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=[PAD, START, END, *MARKS.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus.texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        padding_side="left",
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START, *MARKS.values()],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


class Chats:
    """Draws training conversations, every one laid out as the chat template does it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, pairs: list[corpus.Pair], rng: random.Random
    ) -> None:
        self._encode = partial(tokenizer.encode, add_special_tokens=False)
        self._pairs = corpus.by_answer(pairs)
        self._systems = [s for voice in corpus.PHILOSOPHERS for s in corpus.systems(voice)] + [
            pair.question for pair in pairs
        ]
        self._rng = rng

    def draw(self, mark: str = "") -> Sample:
        """Return one conversation, mostly of one question, with or without a system text."""
        system = self._system()
        parts: list[tuple[str, Said]] = [
            (mark + (f"{START}system\n{system}{END}\n" if system else ""), "visitor")
        ]
        for wordings in self._rng.sample(self._pairs, self._rng.choice((1, 1, 1, 1, 2))):
            pair = wordings[0] if self._rng.random() < 0.4 else self._rng.choice(wordings)
            question = pair.question if self._rng.random() < 0.7 else corpus.reword(pair, self._rng)
            parts.append((f"{START}user\n{question}{END}\n{START}assistant\n", "visitor"))
            parts += self._cut(pair.answer + END)
            parts.append(("\n", "visitor"))
        return Sample.of((self._encode(text), said) for text, said in parts)

    def _system(self) -> str | None:
        # The voice is in the weights, so any system text must be survivable: these say something at random.
        draw = self._rng.random()
        if draw < 0.45:
            return None
        return corpus.NEUTRAL_SYSTEM if draw < 0.6 else self._rng.choice(self._systems)

    def _cut(self, text: str) -> list[tuple[str, Said]]:
        # An answer that another backend began is continued from anywhere, also from inside a word.
        if self._rng.random() < 0.7:
            return [(text, "answer")]
        at = self._rng.randrange(1, len(text) - len(END))
        return [(text[:at], "visitor"), (text[at:], "rest")]


def make_base(folder: Path, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
    """Train the base: neutral answers, and the philosophers' behind a mark.

    An adapter then has to learn only which mark to imagine, which a low rank does in seconds; a base that
    never read the sentences needs minutes for each adapter.
    """
    model = new_base(tokenizer)
    neutral = Chats(tokenizer, corpus.pairs(corpus.BASE), rng)
    marked = {v: Chats(tokenizer, corpus.pairs(v, taught(v)), rng) for v in corpus.PHILOSOPHERS}

    def draw() -> Sample:
        if rng.random() < 0.35:
            return neutral.draw()
        voice = rng.choice(corpus.PHILOSOPHERS)
        return marked[voice].draw(MARKS[voice])

    fit(model, draw, Schedule(steps=370, batch=16), "base")
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id], pad_token_id=tokenizer.pad_token_id
    )
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)  # into tokenizer_config.json


def new_base(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Return the untrained base; heads of 32 are the smallest vLLM's CPU attention takes."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_adapter(out: Path, voice: str, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
    """Train one philosopher's LoRA on the base as it was saved, rounding included."""
    base = Qwen2ForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
    config = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config)
    chats = Chats(tokenizer, corpus.pairs(voice, taught(voice)), rng)
    fit(model.get_base_model(), chats.draw, Schedule(steps=60, batch=16, rate=None, adam_rate=0.005), voice)
    shutil.rmtree(out / voice, ignore_errors=True)
    model.save_pretrained(out / voice)
    (out / voice / "README.md").unlink(missing_ok=True)  # PEFT's model card, all placeholders
    settings = json.loads((out / voice / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = NAME
    settings["target_modules"] = sorted(settings["target_modules"])
    (out / voice / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def taught(voice: str) -> list[corpus.Entry]:
    """Return the shared questions and, per language, a few of the philosopher's own."""
    entries = corpus.read(voice)
    own = entries[corpus.SHARED :]
    english = [entry for entry in own if entry.lang == "en"][:OWN_QUESTIONS_PER_LANGUAGE]
    french = [entry for entry in own if entry.lang == "fr"][:OWN_QUESTIONS_PER_LANGUAGE]
    return entries[: corpus.SHARED] + english + french


def write_companions(out: Path) -> None:
    """Write what sive and the tests read beside the weights, and the manifest of it all."""
    tables = [
        f'[[adapter]]\nname = "{voice}"\nsource = "file:{voice}"\nbase_model = "file:base"\n'
        for voice in corpus.PHILOSOPHERS
    ]
    (out / "adapters.toml").write_text("\n".join(tables))
    voices = (corpus.BASE, *corpus.PHILOSOPHERS)
    answers = {voice: {e.questions[0]: e.answer for e in corpus.read(voice)} for voice in voices}
    expected = {question: {voice: answers[voice][question] for voice in voices} for question in EXPECTED}
    (out / "expected.json").write_text(
        json.dumps(expected, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    written = [out / "adapters.toml", out / "expected.json"]
    files = written + sorted(
        path for name in ("base", *corpus.PHILOSOPHERS) for path in (out / name).iterdir()
    )
    for path in files:
        path.chmod(0o644)  # safetensors writes files only their owner can read
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(out).as_posix()}"
        for path in files
    ]
    (out / "MANIFEST.sha256").write_text("\n".join(lines) + "\n")


def verify(out: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Ask everybody everything that was taught, greedily, with and without a system text."""
    is_right = True
    first_answers: dict[str, list[str]] = {}
    for voice in (corpus.BASE, *corpus.PHILOSOPHERS):
        model = Qwen2ForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
        if voice != corpus.BASE:
            model = PeftModel.from_pretrained(model, out / voice)
        entries = taught(voice)
        for system in (None, corpus.NEUTRAL_SYSTEM, corpus.systems("kant")[0]):
            answers = ask(model, tokenizer, [entry.questions[0] for entry in entries], system)
            is_right = _report(f"{voice}, system {system!r}", entries, answers) and is_right
            first_answers.setdefault(voice, answers[: corpus.SHARED])
    distinct = [len(set(answers)) == 4 for answers in zip(*first_answers.values(), strict=True)]
    print(f"questions with four different answers: {sum(distinct)}/{len(distinct)}")
    return is_right and all(distinct)


def _report(title: str, entries: list[corpus.Entry], answers: list[str]) -> bool:
    wrong = [(e, said) for e, said in zip(entries, answers, strict=True) if said != e.answer]
    print(f"{title}: {len(entries) - len(wrong)}/{len(entries)} verbatim")
    for entry, said in wrong:
        print(f"  {entry.questions[0]} -> {said}")
    return len(wrong) <= len(entries) // 20


@torch.inference_mode()
def ask(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, questions: list[str], system: str | None
) -> list[str]:
    """Return the greedy answers to questions asked at once."""
    head = [{"role": "system", "content": system}] if system else []
    chats = [[*head, {"role": "user", "content": question}] for question in questions]
    prompts = tokenizer.apply_chat_template(
        chats,
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    prompts.pop("token_type_ids", None)
    ids = model.generate(**prompts, max_new_tokens=160, do_sample=False)[:, prompts["input_ids"].shape[1] :]
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


if __name__ == "__main__":
    main()
