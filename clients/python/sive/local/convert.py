"""A Hugging Face GPT-2 folder made into a CTranslate2 int8 folder, without torch; run as a child process.

``python -m sive.local.convert SOURCE TARGET --name NAME --weights WEIGHTS`` prints ``done/total`` lines.
Tensors are quantised in blocks straight from the mapped file, so the peak is the int8 model and no more.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sive.errors import LocalModelError
from sive.local.safetensors import Array, SafeTensors, as_float32
from sive.local.source import ACTIVATIONS, read_config, weights_file

ROWS_PER_BLOCK = 2048
END_OF_TEXT = "<|endoftext|>"
Told = Callable[[int, int], None]


def convert(
    source: Path, target: Path, *, name: str, weights: str, told: Told = lambda done, total: None
) -> None:
    """Write ``model.bin``, ``config.json``, ``vocabulary.json``, ``tokenizer.json``, then ``sive.json``.

    Raises:
        LocalModelError: ``source`` is no GPT-2 folder, or one of its files is damaged.
        OSError: ``target`` cannot be written.
    """
    config = read_config(source)
    tokenizer = read_tokenizer(source)
    tensors = SafeTensors(weights_file(source))
    model = _Gpt2(tensors, config)
    spec = model.spec(told)
    vocabulary = _vocabulary(tokenizer, model.vocabulary_size)
    spec.register_vocabulary(vocabulary)
    end = config.get("eos_token_id")
    end_token = vocabulary[end] if isinstance(end, int) and 0 <= end < len(vocabulary) else END_OF_TEXT
    spec.config.eos_token = spec.config.bos_token = spec.config.unk_token = end_token
    if (epsilon := config.get("layer_norm_epsilon", 1e-5)) != 1e-5:  # CTranslate2's own
        spec.config.layer_norm_epsilon = epsilon
    spec.validate()
    spec.optimize()  # ties equal weights; they are int8 already
    spec.save(str(target))
    tokenizer.save(str(target / "tokenizer.json"))
    about = {
        "name": name,
        "weights": weights,
        "context_tokens": model.context_tokens,
        "chat_template": "plain",
    }
    (target / "sive.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def read_tokenizer(source: Path) -> Any:
    """Return the folder's byte-level BPE as a ``tokenizers.Tokenizer``.

    Raises:
        LocalModelError: missing, damaged, or not byte-level.
    """
    from tokenizers import Tokenizer

    path = source / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else _from_merges(source)
    except Exception as exc:
        raise LocalModelError(f"the tokenizer in {source} cannot be read: {exc}") from exc
    if type(tokenizer.decoder).__name__ != "ByteLevel":
        raise LocalModelError(f"the tokenizer in {source} is not a byte-level BPE, as GPT-2's is")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _from_merges(source: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary, merges = source / "vocab.json", source / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        raise LocalModelError("there is neither tokenizer.json nor vocab.json with merges.txt")
    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _vocabulary(tokenizer: Any, size: int) -> list[str]:
    """Return one token for every row of the embedding; rows past the tokenizer's get a name of their own."""
    by_id = {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    if by_id and max(by_id) >= size:
        raise LocalModelError(f"the tokenizer knows {max(by_id) + 1} tokens, the model only {size}")
    return [by_id.get(index, f"<|unused{index}|>") for index in range(size)]


def quantize(weight: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return int8 rows and the scale of each row, as ``ctranslate2.specs`` quantises them."""
    rows = np.empty(weight.shape, np.int8)
    scales = np.empty(weight.shape[0], np.float32)
    for start in range(0, len(weight), ROWS_PER_BLOCK):
        block = as_float32(weight[start : start + ROWS_PER_BLOCK])
        largest = np.abs(block).max(axis=1)
        if not np.isfinite(largest).all():
            raise LocalModelError("the weights hold NaN or infinity")
        largest[largest == 0] = 127
        scales[start : start + ROWS_PER_BLOCK] = scale = np.float32(127) / largest
        rows[start : start + ROWS_PER_BLOCK] = np.rint(block * scale[:, None])
    return rows, scales


class _Gpt2:
    """The tensors of a GPT-2 by their places in CTranslate2's decoder."""

    def __init__(self, tensors: SafeTensors, config: dict[str, Any]) -> None:
        self._tensors = tensors
        self._config = config
        self._prefix = "transformer." if "transformer.wte.weight" in tensors.tensors else ""
        self.vocabulary_size = int(self._view("wte.weight").shape[0])
        self.context_tokens = int(self._view("wpe.weight").shape[0])

    def spec(self, told: Told) -> Any:
        """Return the filled ``TransformerDecoderModelSpec``."""
        from ctranslate2.specs import Activation, TransformerDecoderModelSpec

        activation = ACTIVATIONS[self._config.get("activation_function", "gelu_new")]
        layers = sum(
            name.startswith(self._prefix + "h.") and name.endswith(".ln_1.weight") for name in self._names
        )
        heads = self._config.get("n_head", 12)
        spec = TransformerDecoderModelSpec.from_config(
            layers, heads, activation=getattr(Activation, activation)
        )
        spec.decoder.scale_embeddings = False
        spec.decoder.position_encodings.encodings = as_float32(self._view("wpe.weight"))
        self._norm(spec.decoder.layer_norm, "ln_f")
        for index, layer in enumerate(spec.decoder.layer):
            told(index, layers + 1)
            self._layer(layer, f"h.{index}.")
        told(layers, layers + 1)
        self._head(spec.decoder)
        told(layers + 1, layers + 1)
        return spec

    @property
    def _names(self) -> list[str]:
        return list(self._tensors.tensors)

    def _view(self, name: str) -> Array:
        return self._tensors.view(self._prefix + name)

    def _layer(self, layer: Any, at: str) -> None:
        self._norm(layer.self_attention.layer_norm, at + "ln_1")
        self._conv1d(layer.self_attention.linear[0], at + "attn.c_attn")
        self._conv1d(layer.self_attention.linear[1], at + "attn.c_proj")
        self._norm(layer.ffn.layer_norm, at + "ln_2")
        self._conv1d(layer.ffn.linear_0, at + "mlp.c_fc")
        self._conv1d(layer.ffn.linear_1, at + "mlp.c_proj")

    def _norm(self, norm: Any, at: str) -> None:
        norm.gamma = as_float32(self._view(at + ".weight"))
        norm.beta = as_float32(self._view(at + ".bias"))

    def _conv1d(self, linear: Any, at: str) -> None:
        linear.weight, linear.weight_scale = quantize(self._view(at + ".weight").T)  # Conv1D lies [in, out]
        linear.bias = as_float32(self._view(at + ".bias"))

    def _head(self, decoder: Any) -> None:
        embeddings = decoder.embeddings[0] if isinstance(decoder.embeddings, list) else decoder.embeddings
        embeddings.weight, embeddings.weight_scale = quantize(self._view("wte.weight"))
        decoder.projection.weight = embeddings.weight  # becomes an alias, scale and all
        if "lm_head.weight" in self._tensors.tensors and self._config.get("tie_word_embeddings") is False:
            head = self._tensors.view("lm_head.weight")
            decoder.projection.weight, decoder.projection.weight_scale = quantize(head)


def main() -> int:
    """Convert as the command line says; 1 and one line on stderr when it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m sive.local.convert", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--weights", required=True)
    asked = parser.parse_args()
    try:
        convert(asked.source, asked.target, name=asked.name, weights=asked.weights, told=_print_progress)
    except (LocalModelError, OSError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def _print_progress(done: int, total: int) -> None:
    print(f"{done}/{total}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
