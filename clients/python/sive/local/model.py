"""One prepared model in memory: its tokenizer and its CTranslate2 generator."""

import atexit
import ctypes
import json
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sive.errors import LocalModelError
from sive.local.store import LocalModelInfo
from sive.local.tokens import TokenDecoder

DEFAULT_TEMPERATURE = 1.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn; ``temperature`` 0 takes the likeliest token."""

    max_tokens: int
    temperature: float
    top_p: float


class LocalModel:
    """A model loaded for ``slots`` generations at once, one thread each; they share the weights.

    ``personas``: whom alone it can speak as; empty for a model that takes any system text as it is.

    CTranslate2's threads do not survive a fork: a process that forks loads its model after that.

    Raises:
        LocalModelError: the folder is damaged, or an extra is not installed.
    """

    def __init__(self, info: LocalModelInfo, slots: int) -> None:
        ctranslate2, tokenizers = _engines()
        self.info = info
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(info.path / "tokenizer.json"))
            self._generator = ctranslate2.Generator(
                str(info.path),
                device="cpu",
                compute_type="int8",
                inter_threads=slots,
                intra_threads=1,
            )
            about = json.loads((info.path / "sive.json").read_text(encoding="utf-8"))
            config = json.loads((info.path / "config.json").read_text(encoding="utf-8"))
        except Exception as exc:  # both engines raise bare Exception and RuntimeError
            raise LocalModelError(f"{info.name!r} in {info.path} cannot be loaded: {exc}") from exc
        self.is_closing = False
        _live.add(self)
        self.end_token: str = config["eos_token"]
        self.temperature = float(about.get("temperature", DEFAULT_TEMPERATURE))
        self.personas: tuple[str, ...] = tuple(about.get("personas", ()))
        self._tokenizer.encode_special_tokens = True  # a caller's "<|endoftext|>" is text, not the end
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._added = {token.content: "" if token.special else token.content for token in added}

    def close(self) -> None:
        """Stop what runs, within a token, and wait for CTranslate2's threads to end."""
        self.is_closing = True
        self._generator = None

    def encode(self, text: str) -> list[str]:
        """Return the tokens of a text."""
        return list(self._tokenizer.encode(text).tokens)

    def count(self, text: str) -> int:
        """Return how many tokens a text has."""
        return len(self._tokenizer.encode(text))

    def decoder(self) -> TokenDecoder:
        """Return a fresh decoder for one answer."""
        return TokenDecoder(self._added)

    def generate(self, tokens: list[str], sampling: Sampling, step: Callable[[Any], bool]) -> Any:
        """Start generating and return CTranslate2's ``AsyncGenerationResult``.

        ``step`` is called for each token from a thread of CTranslate2's; it stops by returning True.
        """
        greedy = sampling.temperature == 0
        drawn = {"sampling_topp": sampling.top_p, "sampling_temperature": sampling.temperature}
        (result,) = self._generator.generate_batch(
            [tokens or [self.end_token]],  # GPT-2 begins a text from the token that ends one
            asynchronous=True,
            callback=step,
            include_prompt_in_result=False,
            beam_size=1,
            max_length=sampling.max_tokens,
            sampling_topk=1 if greedy else 0,
            **({} if greedy else drawn),
        )
        return result


_live: weakref.WeakSet[LocalModel] = weakref.WeakSet()


def _close_all() -> None:
    """Before the interpreter goes: a thread of CTranslate2's that wants it afterwards aborts the process."""
    for model in list(_live):
        model.close()


def _leave_to_the_parent() -> None:
    """In a forked child the threads are gone, and a generator that waits for them would wait for ever."""
    for model in list(_live):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(model._generator))
    _live.clear()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)


def _engines() -> tuple[Any, Any]:
    try:
        import ctranslate2
        import tokenizers
    except ImportError as exc:
        raise LocalModelError(f"the CPU model needs {exc.name}: pip install 'sive[local]'") from exc
    return ctranslate2, tokenizers
