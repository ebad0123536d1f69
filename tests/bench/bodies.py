"""The requests that the gateway's benchmarks send."""

import json
from pathlib import Path

from tests.bench.processes import CACHE

SYSTEM = (
    "You are a helpful assistant for a reading group. Answer briefly, cite the text, never invent a line. "
)
QUESTION = (
    "Question {0}: how does the scheduler decide which replica gets the next request when two have the same "
    "queue length, and what happens \u2014 step by step \u2014 if one of them fails in mid-answer? "
)
ANSWER = (
    "Answer {0}: it compares the number of running requests, then the use of the cache, and then picks at "
    "random. If a replica fails before the first token the request goes elsewhere; after it, the stream is "
    "carried on from where it broke, and whoever asked sees neither a gap nor a repetition. "
)
LAST = "Thanks. Summarise it in one line. "


def chat(
    name: str, model: str, *, stream: bool = False, knobs: str = "[delay=5][n=64]", turns: int = 6
) -> Path:
    """A chat completion in a file; six turns are 3.7 KB. ``knobs``: what our upstream is told to do."""
    messages = [{"role": "system", "content": SYSTEM * 2}]
    for number in range(turns):
        messages.append({"role": "user", "content": QUESTION.format(number)})
        messages.append({"role": "assistant", "content": ANSWER.format(number)})
    messages.append({"role": "user", "content": LAST + knobs})
    body = {"model": model, "messages": messages, "temperature": 0.7, "max_tokens": 2048, "stream": stream}
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"body-{name}.json"
    path.write_text(json.dumps(body, separators=(",", ":")))
    return path
