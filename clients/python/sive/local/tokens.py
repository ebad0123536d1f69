"""Tokens of a byte-level BPE back to text, one at a time."""

import codecs
from collections.abc import Mapping
from functools import cache


class TokenDecoder:
    """The text of one answer; the bytes of a character that is not whole yet are held back.

    ``added``: tokens outside the byte alphabet and what they read as, nothing for special ones.
    """

    def __init__(self, added: Mapping[str, str]) -> None:
        self._added = added
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: str) -> str:
        """Return the text that became whole with this token."""
        if token in self._added:
            return self._decoder.decode(self._added[token].encode())
        byte_of = byte_alphabet()
        return self._decoder.decode(bytes(byte_of[char] for char in token if char in byte_of))


@cache
def byte_alphabet() -> dict[str, int]:
    """Return the byte each character of a token stands for, as GPT-2 maps them."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
