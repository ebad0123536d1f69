"""A model of gpt2's shape with random weights and a tokenizer of its size, and its int8 form for sive.

Speed and memory do not depend on what the weights say; nothing is downloaded.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import numpy.typing as npt
from sive.local.tokens import byte_alphabet
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.bench.processes import CACHE

LAYERS, WIDTH, HEADS, CONTEXT, VOCABULARY = 12, 768, 12, 1024, 50257
PARAMETERS = 124_439_808
END_OF_TEXT = "<|endoftext|>"
PLAIN, INT8 = CACHE / "gpt2-shaped", CACHE / "gpt2-shaped-int8"


def prepared() -> tuple[Path, Path]:
    """The Hugging Face folder and the converted one; made once."""
    if not (PLAIN / "model.safetensors").is_file():
        _make(PLAIN)
    if not (INT8 / "sive.json").is_file():
        shutil.rmtree(INT8, ignore_errors=True)
        INT8.mkdir()
        command = [sys.executable, "-m", "sive.local.convert", PLAIN, INT8]
        subprocess.run([*command, "--name", INT8.name, "--weights", f"{INT8.name}@1"], check=True, stdout=2)
    return PLAIN, INT8


def prompt_of(tokens: int) -> tuple[str, list[int]]:
    """A text of exactly so many tokens, and their ids."""
    tokenizer = Tokenizer.from_file(str(PLAIN / "tokenizer.json"))
    text = "whatsoever is is either in itself or in another"
    while len(ids := tokenizer.encode(text).ids) < tokens:
        text += "!"  # has no merges: each is a token of its own
    return text, list(ids)


def _make(folder: Path) -> None:
    working = folder.with_suffix(".tmp")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    _tokenizer().save(str(working / "tokenizer.json"))
    (working / "config.json").write_text(json.dumps(_config(), indent=2))
    _save(working / "model.safetensors")
    shutil.rmtree(folder, ignore_errors=True)
    working.rename(folder)


def _config() -> dict[str, object]:
    end = VOCABULARY - 1
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_ctx": CONTEXT,
        "n_embd": WIDTH,
        "n_head": HEADS,
        "n_layer": LAYERS,
        "n_positions": CONTEXT,
        "vocab_size": VOCABULARY,
        "bos_token_id": end,
        "eos_token_id": end,
        "dtype": "bfloat16",
    }


def _tokenizer() -> Tokenizer:
    """A byte-level BPE as large as gpt2's: single letters merge into pairs, pairs into fours."""
    alphabet = list(byte_alphabet())
    pairs = [(left, right) for left, right in product(["Ġ", *ascii_lowercase], ascii_lowercase)]
    joined = ["".join(pair) for pair in pairs]
    room = VOCABULARY - 1 - len(alphabet) - len(pairs)
    endings = [text for text in joined if text[0] != "Ġ"]
    merges = [*pairs, *islice(product(joined, endings), room)]
    tokens = [*alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "wte.weight", (VOCABULARY, WIDTH)
    yield "wpe.weight", (CONTEXT, WIDTH)
    for layer in range(LAYERS):
        for name, into, out in (("attn.c_attn", 1, 3), ("attn.c_proj", 1, 1), ("mlp.c_fc", 1, 4)):
            yield f"h.{layer}.{name}.weight", (into * WIDTH, out * WIDTH)
            yield f"h.{layer}.{name}.bias", (out * WIDTH,)
        yield f"h.{layer}.mlp.c_proj.weight", (4 * WIDTH, WIDTH)
        yield f"h.{layer}.mlp.c_proj.bias", (WIDTH,)
        for norm in ("ln_1", "ln_2"):
            yield from _norm(f"h.{layer}.{norm}")
    yield from _norm("ln_f")


def _norm(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (WIDTH,)
    yield f"{name}.bias", (WIDTH,)


def _save(path: Path) -> None:
    """Write the tensors as bfloat16, so that transformers computes with the very numbers sive quantised."""
    header, offset = {}, 0
    for name, shape in _shapes():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    assert offset == 2 * PARAMETERS
    head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    random = np.random.default_rng(1677)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, shape in _shapes():
            file.write(_values(name, shape, random).tobytes())


def _values(name: str, shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[np.uint16]:
    """As gpt2 is initialised; a bfloat16 is the upper half of a float32."""
    if name.endswith("bias"):
        values = np.zeros(shape, np.float32)
    elif len(shape) == 1:
        values = np.ones(shape, np.float32)
    else:
        values = random.standard_normal(shape, np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> 16).astype(np.uint16)
