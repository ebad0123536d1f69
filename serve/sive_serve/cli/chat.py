"""`sive chat`: a streaming conversation in the terminal that shows who answers."""

import contextlib
import io
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import openai
import sive
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from rich.console import Console
from sive.errors import SiveError

from sive_serve.cli.client import Target, is_up, target


def chat(model: str, *, url: str | None, api_key: str | None, config: Path | None) -> None:
    """Read lines, stream answers, until end of input. Ctrl-C stops an answer, or leaves.

    Raises:
        SiveError: ``url`` was named and nobody answers there.
    """
    found = target(url, api_key, config)
    client, where = _client(found, is_named=url is not None, config=config)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - line editing at the prompt, where the platform has it
    had_error = _Conversation(client, model, Console(highlight=False)).run(where)
    if had_error and not sys.stdin.isatty():
        raise SystemExit(1)


def _client(found: Target, *, is_named: bool, config: Path | None) -> tuple[openai.OpenAI, str]:
    if is_up(found):
        return openai.OpenAI(base_url=f"{found.url}/v1", api_key=found.api_key, max_retries=0), found.url
    if is_named:
        raise SiveError(f"no sive answers at {found.url}: start one with `sive serve`")
    return sive.OpenAI(config=config), "this process"


class _Conversation:
    def __init__(self, client: openai.OpenAI, model: str, console: Console) -> None:
        self._client = client
        self._model = model
        self._console = console
        self._messages: list[ChatCompletionMessageParam] = []

    def run(self, where: str) -> bool:
        """Talk until the end of input; True when a question got an error."""
        had_error = False
        self._console.print(f"{self._model}, through {where}. Ctrl-D leaves.", style="dim")
        for line in _lines():
            before = len(self._messages)
            self._messages.append({"role": "user", "content": line})
            try:
                self._answer()
            except KeyboardInterrupt:
                self._console.print(" (stopped)", style="dim")
            except openai.APIError as exc:
                del self._messages[before:]
                had_error = True
                Console(stderr=True).print(exc.message, style="red", markup=False)
        self._console.print()
        return had_error

    def _answer(self) -> None:
        started, said, last = time.monotonic(), "", None
        stream = self._client.chat.completions.create(model=self._model, messages=self._messages, stream=True)
        try:
            with stream:
                for chunk in stream:
                    last = chunk if _sive_of(chunk) else last
                    text = chunk.choices[0].delta.content or "" if chunk.choices else ""
                    said += text
                    self._console.print(text, end="", markup=False, soft_wrap=True)
        finally:
            if said:
                self._messages.append({"role": "assistant", "content": said})
        self._console.print(f"\n{_speaker(last, time.monotonic() - started)}", style="dim", markup=False)


def _lines() -> Iterable[str]:
    """What the user types, or what is piped in."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
        if line.strip():
            yield line


def _sive_of(chunk: ChatCompletionChunk) -> dict[str, Any]:
    return (chunk.model_extra or {}).get("sive") or {}


def _speaker(chunk: ChatCompletionChunk | None, seconds: float) -> str:
    if chunk is None:
        return f"({seconds:.1f} s)"
    about = _sive_of(chunk)
    marks = [mark for mark in ("degraded", "resumed", "truncated") if about.get(mark)]
    return "(" + ", ".join([str(about.get("backend")), chunk.model, *marks, f"{seconds:.1f} s"]) + ")"
