"""A toy language model: tokens, and the next one as a function of all before it, so a wrong prompt shows."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise

BEGIN, END = 256, 257
"""Special tokens; ids below them are bytes, ids above them pieces of words."""

Ids = list[int]

CORPUS = (
    "La joie est le passage de l'homme d'une moindre à une plus grande perfection.",
    "La tristesse est le passage de l'homme à une moindre perfection — elle n'est pas une vertu.",
    "Le cœur connaît « la joie » — et l'amour 🙂.",
    "L'amour est une joie — 🙂 qu'accompagne l'idée d'une cause extérieure.",
    "Une œuvre de l'esprit « est une idée » de la nature.",
    "Le désir est l'essence même de l'homme — « l'appétit » avec la conscience de l'appétit.",
    "L'esprit est une idée de la nature, et le cœur 🙂 est une partie de l'œuvre.",
    "La vertu « est la puissance même » de l'homme — 🙂 et la nature de l'esprit.",
)
"""What it learned to speak from: two-, three- and four-byte characters in nearly every sentence."""

_PIECE = re.compile(r" ?[A-Za-zÀ-ÖØ-öø-ÿ']+|[^A-Za-zÀ-ÖØ-öø-ÿ]", re.DOTALL)
_IN_PARTS = {"œ": (1, 1), "«": (1, 1), "»": (1, 1), "—": (2, 1), "🙂": (2, 1, 1)}
"""Characters that take several tokens, and how many bytes each holds."""


def _parts(piece: str) -> Iterator[bytes]:
    raw, at = piece.encode(), 0
    for size in _IN_PARTS.get(piece, (len(raw),)):
        yield raw[at : at + size]
        at += size


def _cut(text: str) -> Iterator[bytes]:
    for piece in _PIECE.findall(text):
        yield from _parts(piece)


def _learn() -> tuple[dict[bytes, int], dict[int, Ids]]:
    pieces = dict.fromkeys(part for sentence in CORPUS for part in _cut(" " + sentence) if len(part) > 1)
    ids = {piece: END + 1 + number for number, piece in enumerate(pieces)}
    follows: dict[int, Ids] = {END: []}
    for sentence in CORPUS:
        spoken = [ids.get(part, part[0]) for part in _cut(" " + sentence)]
        follows[END].append(spoken[0])
        for one, after in pairwise([*spoken, END]):
            follows.setdefault(one, []).append(after)
    follows[ord(".")] = [END, END, *follows[END]]
    return ids, follows


_IDS, _FOLLOWS = _learn()
_PIECES = {number: piece for piece, number in _IDS.items()}
VOCABULARY = END + 1 + len(_IDS)


def encode(text: str) -> Ids:
    """The ids of a text; what is in no piece goes byte by byte."""
    ids: Ids = []
    for part in _cut(text):
        ids += [_IDS[part]] if part in _IDS else part
    return ids


def bytes_of(ids: Ids) -> bytes:
    """The bytes of ids, special ones left out."""
    return b"".join(_PIECES.get(one, bytes([one]) if one < BEGIN else b"") for one in ids)


def complete(raw: bytes) -> str:
    """The text of bytes whose last character may be incomplete; that one is left out."""
    return raw.decode("utf-8", "ignore")


def render(messages: list[dict[str, object]], *, continues: bool = False) -> Ids:
    """The prompt of a chat; ``continues``: the last message is the beginning of the answer."""
    ids: Ids = []
    for message in messages:
        ids += [BEGIN, *encode(f"{message['role']}\n{_content(message)}"), END]
    return ids[:-1] if continues else [*ids, BEGIN, *encode("assistant\n")]


def _content(message: dict[str, object]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


@dataclass(frozen=True)
class Voice:
    """What speaks: equal ``weights`` speak alike, all others differently.

    ``position_seeds``: a seed's noise depends on the position alone, as on vLLM's GPU runner; else on where
    the request began, as on its CPU runner. ``max_model_len``: prompt and answer together, in tokens.
    """

    weights: str
    position_seeds: bool = True
    max_model_len: int = 4096

    def ids(self, prompt: Ids, salt: str = "") -> Iterator[int]:
        """The answer to a prompt, token after token; END is its last."""
        state = hashlib.blake2b(f"{self.weights}|{salt}|".encode())
        state.update(b"".join(one.to_bytes(4) for one in prompt))
        one = prompt[-1] if prompt else END
        while True:
            choices = _FOLLOWS.get(one) or _FOLLOWS[END]
            one = choices[int.from_bytes(state.digest()[:4]) % len(choices)]
            yield one
            if one == END:
                return
            state.update(one.to_bytes(4))

    def salt(self, seed: int | None, prompt: Ids) -> str:
        """What makes a seeded answer another one than the greedy."""
        return f"seed {seed}" if self.position_seeds else f"seed {seed} from {len(prompt)}"


@dataclass(frozen=True, slots=True)
class Piece:
    """One step of an answer: its tokens, and the text that became complete with them."""

    ids: Ids
    text: str
    finish_reason: str | None = None
    stop_reason: str | None = None


@dataclass(slots=True)
class Detokenizer:
    """Text from tokens as vLLM makes it: whole characters only, and held back while a stop may be coming."""

    prompt: Ids
    stop: tuple[str, ...] = ()
    _raw: bytes = b""
    _sent: int = 0
    _before: str = field(init=False)

    def __post_init__(self) -> None:
        # vLLM gives the whole prompt's text back when its last character is incomplete: facts/vllm.md 0.10.
        whole = bytes_of(self.prompt)
        tail = whole[len(complete(whole).encode()) :]
        self._before = complete(whole) if tail else ""
        self._raw = tail

    def feed(self, ids: Ids, *, is_last: bool) -> tuple[str, str | None]:
        """The text to send with these tokens, and the stop string that was found."""
        self._raw += bytes_of(ids)
        said = complete(self._raw)
        text = self._before + said if said else ""
        found = [(at, stop) for stop in self.stop if (at := text.find(stop)) >= 0]
        if found:
            at, stop = min(found)
            return text[self._sent : at], stop
        held = 0 if is_last else max((len(stop) for stop in self.stop), default=1) - 1
        until = max(self._sent, len(text) - held)
        out, self._sent = text[self._sent : until], until
        return out, None


def pieces(
    voice: Voice, prompt: Ids, *, max_tokens: int, stop: tuple[str, ...] = (), salt: str = "", step: int = 1
) -> Iterator[Piece]:
    """An answer as it flows, ``step`` tokens at a time."""
    text = Detokenizer(prompt, stop)
    flow, left = voice.ids(prompt, salt), max_tokens
    while True:
        ids = list(islice(flow, min(step, left)))
        left -= len(ids)
        reason = "stop" if ids[-1] == END else "length" if left == 0 else None
        out, found = text.feed(ids, is_last=reason is not None)
        if found is not None:
            reason = "stop"
        yield Piece(ids, out, reason, found)
        if reason is not None:
            return
