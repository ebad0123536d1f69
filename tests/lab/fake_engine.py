#!/usr/bin/env python3
"""A stand-in engine: a small honest program with vLLM's command line, log lines, routes and family.

``fake_engine.py serve --config FILE`` reads the keys vLLM would (port, served-model-name, max-lora-rank),
loads and unloads adapters, reads prompts in a way of its own for each, and knows ``fake-*`` keys that say
how it misbehaves:

- ``fake-boot-s``: seconds until it listens. ``fake-fail``: print this and exit 1 instead.
- ``fake-family``: true starts a child, a grandchild in a session of its own, and a double-forked
  orphan; the last two ignore SIGTERM. All map one shared memory file.
- ``fake-borrow``: a shared memory file of somebody else, to map.
- ``fake-noise``: bytes printed before booting, more than any pipe holds.
- ``fake-deaf``: computes the base model whatever adapter is asked for. ``fake-drift``: reads every prompt
  otherwise than other engines of its kind, by so many nats.
- ``fake-no-logprobs``: refuses to say how it reads prompts.
- ``fake-load-s``: seconds that every adapter takes to load.
- ``fake-tokens``, ``fake-token-s``: how many tokens an answer has, and seconds between two.
- ``fake-log``: a file that gets a line for the model and each adapter that is loaded or unloaded.
"""

import contextlib
import json
import mmap
import os
import random
import signal
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LINES = (
    "(Worker pid=1) INFO 11-22 07:04:52 [cpu_model_runner.py:68] Starting to load model {model}...",
    "Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00, 178.69it/s]\r",
    "(Worker pid=1) INFO 11-22 07:04:52 [default_loader.py:501] Loading weights took 0.01 seconds",
    "(EngineCore pid=1) INFO 11-22 07:04:55 [core.py:402] init engine took 2.32 s",
    "(APIServer pid=1) INFO 11-22 07:04:55 [entry.py:136] Supported tasks: ['generate']",
)


def map_segment(path: Path) -> mmap.mmap:
    """Map shared memory as vLLM's workers do, and keep it mapped."""
    with path.open("r+b") as segment:
        return mmap.mmap(segment.fileno(), 4096)


def live_on(segment: Path, *, ignore_term: bool) -> None:
    """Be a process that only stays alive."""
    if ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mapped = map_segment(segment)
    while mapped[0] == 0:
        signal.pause()


def start_family(segment: Path) -> None:
    """Fork a child, its setsid grandchild, and an orphan whose parent is gone."""
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            live_on(segment, ignore_term=True)
        live_on(segment, ignore_term=False)
    if (middle := os.fork()) == 0:
        if os.fork() == 0:
            os.setsid()
            live_on(segment, ignore_term=True)
        os._exit(0)
    os.waitpid(middle, 0)


class Engine:
    """What it serves: the base, and adapters by name with the seed of how each reads."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.bases = tuple(config["served-model-name"])
        self.adapters: dict[str, int] = {}

    @property
    def models(self) -> list[str]:
        """Every name it answers to."""
        return [*self.bases, *self.adapters]

    def load(self, asked: dict[str, Any]) -> tuple[int, Any]:
        """As vLLM's /v1/load_lora_adapter."""
        name, folder = asked["lora_name"], Path(asked["lora_path"])
        if name in self.models:
            return 400, _error(f"The lora adapter '{name}' has already been loaded.")
        file = folder / "adapter_model.safetensors"
        if not file.is_file():
            return 404, _error("No adapter found for <path>")
        if seconds := self.config.get("fake-load-s"):
            self.note("loading", name)
            time.sleep(seconds)
        rank = json.loads((folder / "adapter_config.json").read_text())["r"]
        if rank > (limit := self.config["max-lora-rank"]):
            return 500, _error(f"LoRA rank {rank} is greater than max_lora_rank {limit}.")
        self.adapters[name] = zlib.crc32(file.read_bytes())
        self.note("load", name)
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, asked: dict[str, Any]) -> tuple[int, Any]:
        """As vLLM's /v1/unload_lora_adapter."""
        name = asked["lora_name"]
        if self.adapters.pop(name, None) is None:
            return 404, _error(f"The lora adapter '{name}' cannot be found.")
        self.note("unload", name)
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    def complete(self, asked: dict[str, Any]) -> tuple[int, Any]:
        """As vLLM's /v1/completions, as far as an identity probe goes: a token a word."""
        name = asked["model"]
        if name not in self.models:
            return 404, _error(f"The model `{name}` does not exist.")
        if self.config.get("fake-no-logprobs"):
            return 400, _error("Requested prompt logprobs of 5, which is greater than max allowed: 0")
        seed = 0 if self.config.get("fake-deaf") else self.adapters.get(name, 0)
        reads = random.Random(seed)
        drift = self.config.get("fake-drift", 0.0)
        said: list[Any] = [None]
        for token, _ in enumerate(asked["prompt"].split()[1:]):
            said.append({str(token): {"logprob": -reads.random() * 8 - drift, "rank": 1}})
        choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": said}
        return 200, {"choices": [choice], "usage": {"completion_tokens": 1}}

    def chat(self, asked: dict[str, Any]) -> tuple[int, Any]:
        """As vLLM's /v1/chat/completions, streamed: one token, which is the name it was asked under.

        With ``fake-tokens`` so many of them, ``fake-token-s`` apart.
        """
        name = asked["model"]
        if name not in self.models:
            return 404, _error(f"The model `{name}` does not exist.")
        head = {"id": "chat-1", "object": "chat.completion.chunk", "created": 1, "model": name}
        words = [name, *(f" {number}" for number in range(1, self.config.get("fake-tokens", 1)))]
        said = [
            ({"role": "assistant", "content": ""}, None),
            *(({"content": word}, None) for word in words),
            ({}, "stop"),
        ]
        chunks = [
            head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
            for delta, reason in said
        ]
        events = [f"data: {json.dumps(chunk, separators=(',', ':'))}" for chunk in chunks]
        return 200, [f"{event}\n\n" for event in [*events, "data: [DONE]"]]

    def note(self, what: str, name: str) -> None:
        """Write a line to the log, where one is kept."""
        if log := self.config.get("fake-log"):
            with Path(log).open("a") as file:
                file.write(f"{what} {name}\n")


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "InternalServerError", "param": None, "code": 500}}


class Routes(BaseHTTPRequestHandler):
    """What sive asks of vLLM, as vLLM answers it."""

    engine: Engine
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer what it is and what it serves."""
        if self.path == "/v1/models":
            listed = [{"id": name, "parent": None} for name in self.engine.models]
            self._answer(200, {"object": "list", "data": listed})
        elif self.path == "/version":
            self._answer(200, {"version": "0.32.0"})
        else:
            self._answer(200 if self.path == "/health" else 404, "")

    def do_POST(self) -> None:
        """Load, unload, complete."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        routes = {
            "/v1/load_lora_adapter": self.engine.load,
            "/v1/unload_lora_adapter": self.engine.unload,
            "/v1/completions": self.engine.complete,
            "/v1/chat/completions": self.engine.chat,
        }
        act = routes.get(self.path)
        self._answer(*(act(asked) if act else (404, _error("Not Found"))))

    def _stream(self, events: list[str]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):  # whoever asked has left
            for event in events:
                self.wfile.write(f"{len(event.encode()):x}\r\n{event}\r\n".encode())
                time.sleep(self.engine.config.get("fake-token-s", 0))
            self.wfile.write(b"0\r\n\r\n")

    def _answer(self, status: int, said: Any) -> None:
        if isinstance(said, list):
            self._stream(said)
            return
        body = said.encode() if isinstance(said, str) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def main() -> None:
    """Boot as vLLM does, a line per phase, and serve until a signal."""
    config = json.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if config.get("fake-family"):
        segment = Path(f"/dev/shm/fake_{os.getpid()}")
        segment.write_bytes(bytes(4096))
        start_family(segment)
        mapped = map_segment(segment)  # noqa: F841 - kept mapped until the end
    if config.get("fake-borrow"):
        borrowed = map_segment(Path(config["fake-borrow"]))  # noqa: F841 - kept mapped until the end
    print("x" * config.get("fake-noise", 0), flush=True)
    if config.get("fake-fail"):
        sys.exit(config["fake-fail"])
    for line in LINES:
        time.sleep(config.get("fake-boot-s", 0) / len(LINES))
        print(line.format(model=config["model"]), flush=True)
    Routes.engine = Engine(config)
    Routes.engine.note("serve", config["model"])
    server = ThreadingHTTPServer(("127.0.0.1", config["port"]), Routes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
