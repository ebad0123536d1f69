"""A host that recites one text, and goes on with it wherever it is asked to: it reads a prefill."""

import asyncio
import re
from collections.abc import Callable

from tests.lab.upstream import Exchange, Manner, chunk


def recites(
    text: str, *, pause_s: float = 0.0, cut_after: int | None = None, letters: bool = False
) -> Manner:
    """Streams the text word by word (or in one letter a token), from where the last message leaves off.

    ``cut_after``: the connection is dropped after so many words, and at once where it was asked to go on.
    """
    tokens: Callable[[str], list[str]] = list if letters else lambda rest: re.findall(r"\s*\S+\s*|\s+", rest)

    async def manner(exchange: Exchange) -> None:
        if exchange.seen.method == "GET":
            await exchange.json({"object": "list", "data": [{"id": "m", "object": "model"}]})
            return
        last = exchange.body["messages"][-1]
        said = last["content"] if exchange.body.get("continue_final_message") else ""
        assert text.startswith(said)
        await exchange.head()
        await exchange.event(chunk(exchange, {"role": "assistant", "content": ""}))
        for number, word in enumerate(tokens(text[len(said) :])):
            if cut_after is not None and (said or number == cut_after):
                exchange.close()
                return
            await exchange.event(chunk(exchange, {"content": word}))
            if pause_s:
                await asyncio.sleep(pause_s)
        await exchange.event(chunk(exchange, {}, "stop"))
        await exchange.done()

    return manner
