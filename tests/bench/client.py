"""A caller of sive who notes when text arrives, and reads its pages."""

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.bench.processes import KEY

TIMEOUT_S = 120


@dataclass(frozen=True)
class Stream:
    """One streamed answer: when its text came, on the monotonic clock, and how long it was."""

    asked_at: float
    texts_at: list[float]
    tokens: int

    @property
    def first_token_s(self) -> float:
        """Time to first token."""
        return self.texts_at[0] - self.asked_at

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed, the first token and its prompt left out."""
        return (self.tokens - 1) / (self.texts_at[-1] - self.texts_at[0])


def stream(port: int, prompt: str, max_tokens: int, *, model: str = "local") -> Stream:
    """Ask for a greedy completion and read it to its end."""
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    asked_at, texts_at, tokens = time.monotonic(), [], 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        reply = connection.getresponse()
        if reply.status != 200:
            raise RuntimeError(f"HTTP {reply.status}: {reply.read(500)!r}")
        for line in reply:
            chunk = _chunk(line)
            if any(choice.get("text") for choice in chunk.get("choices", ())):
                texts_at.append(time.monotonic())
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    finally:
        connection.close()
    if not texts_at:
        raise RuntimeError("an answer without text")
    return Stream(asked_at, texts_at, tokens)


def answer(port: int, body: Path) -> str:
    """The text of a chat completion in one piece, asked for with a file as body."""
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    reply = _page(port, "POST", "/v1/chat/completions", body.read_bytes(), headers)
    text: str = json.loads(reply)["choices"][0]["message"]["content"]
    return text


def metric(port: int, name: str, **labels: str) -> float:
    """What a server's /metrics say of all series of that name with these labels, added up."""
    page = _page(port, "GET", "/metrics", None, {"authorization": f"Bearer {KEY}"}).decode()
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())


def streams(number: int, port: int, prompt: str, max_tokens: int) -> list[Stream]:
    """So many at once, in the order in which their first tokens came."""
    with ThreadPoolExecutor(number) as pool:
        asked = [pool.submit(stream, port, prompt, max_tokens) for _ in range(number)]
        return sorted((one.result() for one in asked), key=lambda found: found.texts_at[0])


def _page(port: int, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        said = reply.read()
    finally:
        connection.close()
    if reply.status != 200:
        raise RuntimeError(f"HTTP {reply.status}: {said[:500]!r}")
    return said


def _chunk(line: bytes) -> dict[str, object]:
    data = line.removeprefix(b"data: ").strip()
    return json.loads(data) if data.startswith(b"{") else {}
