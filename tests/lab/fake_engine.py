#!/usr/bin/env python3
"""A stand-in engine: a small honest program with vLLM's command line, log lines, routes and family.

``fake_engine.py serve --config FILE`` reads the keys vLLM would (port, served-model-name, lora-modules)
and ``fake-*`` keys that say how it misbehaves:

- ``fake-boot-s``: seconds until it listens. ``fake-fail``: print this and exit 1 instead.
- ``fake-family``: true starts a child, a grandchild in a session of its own, and a double-forked
  orphan; the last two ignore SIGTERM. All map one shared memory file.
- ``fake-borrow``: a shared memory file of somebody else, to map.
- ``fake-noise``: bytes printed before booting, more than any pipe holds.
"""

import json
import mmap
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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


class Routes(BaseHTTPRequestHandler):
    """``/health`` and ``/v1/models``, as vLLM answers them."""

    models: tuple[str, ...] = ()

    def do_GET(self) -> None:
        """Answer with 200 or 404."""
        body = b""
        if self.path == "/v1/models":
            listed = {"object": "list", "data": [{"id": name} for name in self.models]}
            body = json.dumps(listed).encode()
        self.send_response(200 if self.path in ("/health", "/v1/models") else 404)
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
    modules = [json.loads(module)["name"] for module in config.get("lora-modules", ())]
    Routes.models = (*config["served-model-name"], *modules)
    server = ThreadingHTTPServer(("127.0.0.1", config["port"]), Routes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
