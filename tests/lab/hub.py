"""A small Hugging Face hub: serves folders as model repositories to huggingface_hub over a real socket.

``python tests/lab/hub.py openai-community/gpt2=/some/folder`` prints its address and serves until killed.
"""

import argparse
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BLOCK = 65536


@dataclass
class Faults:
    """What the hub does wrong; may be changed while it runs.

    ``cut_after``: bytes of a weights download after which the connection is cut, ``cuts`` times.
    ``stall_after``: bytes after which the rest of it does not come. ``spoil``: weights arrive with their last
    byte changed.
    """

    token: str | None = None
    gated: bool = False
    cut_after: int = 0
    cuts: int = 0
    stall_after: int = 0
    spoil: bool = False


@dataclass
class Hub:
    """A hub in a thread; ``url`` is its address, ``seen`` the requests it got: ``GET /path``.

    ``revisions``: the branches and tags every repository has, and their commits.
    """

    repos: Mapping[str, Path]
    faults: Faults = field(default_factory=Faults)
    port: int = 0
    revisions: Mapping[str, str] = field(default_factory=lambda: {"main": COMMIT})
    seen: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass

    def _serve(self) -> None:
        path = urlsplit(self.path).path
        self.hub.seen.append(f"{self.command} {unquote(path)}")
        if self.hub.faults.token and self.headers.get("Authorization") != f"Bearer {self.hub.faults.token}":
            return self._missing("RepoNotFound", status=401)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)/?(.*))?", path):
            repo, what, revision, below = (unquote(part or "") for part in match.groups())
            return self._describe(repo, what, revision or "main", below)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(*(unquote(part) for part in match.groups()))
        return self._missing("EntryNotFound")

    def _describe(self, repo: str, what: str, revision: str, below: str) -> None:
        folder = self.hub.repos.get(repo)
        if folder is None:
            return self._missing("RepoNotFound")
        if (commit := self._commit(revision)) is None:
            return self._missing("RevisionNotFound")
        if what == "tree":
            if not (folder / below).is_dir():
                return self._missing("EntryNotFound")
            return self._json([_tree_entry(path, folder) for path in sorted((folder / below).iterdir())])
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [{"rfilename": str(path.relative_to(folder))} for path in files]
        return self._json({"id": repo, "sha": commit, "siblings": siblings, "gated": self.hub.faults.gated})

    def _commit(self, revision: str) -> str | None:
        known = self.hub.revisions
        return revision if revision in known.values() else known.get(revision)

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        if self._commit(revision) is None:
            return self._missing("RevisionNotFound")
        folder = self.hub.repos.get(repo)
        if folder is None:
            return self._missing("RepoNotFound")
        if self.hub.faults.gated:
            return self._missing("GatedRepo", status=403)
        if not (folder / name).is_file():
            return self._missing("EntryNotFound")
        return self._file(folder / name, revision)

    def _file(self, path: Path, revision: str) -> None:
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), min(int(asked[2] or size - 1), size - 1)) if asked else (0, size - 1)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.send_header("ETag", f'"{_digest(path)}"')
        self.send_header("X-Repo-Commit", self._commit(revision) or "")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start + 1))
        self.end_headers()
        if self.command == "GET":
            self._send(path, start, end + 1)

    def _send(self, path: Path, start: int, end: int) -> None:
        faults, sent = self.hub.faults, 0
        is_weights = path.suffix == ".safetensors"
        with path.open("rb") as file:
            file.seek(start)
            while start + sent < end:
                block = file.read(min(BLOCK, end - start - sent))
                if is_weights and faults.cuts and sent + len(block) > faults.cut_after:
                    faults.cuts -= 1
                    self.close_connection = True
                    return
                if is_weights and faults.stall_after and sent + len(block) > faults.stall_after:
                    self.hub.ended.wait()
                    return
                sent += len(block)
                if is_weights and faults.spoil and start + sent == end:
                    block = block[:-1] + bytes([block[-1] ^ 1])
                self.wfile.write(block)

    def _json(self, value: Any) -> None:
        self._reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str, *, status: int = 404) -> None:
        self._reply(status, b'{"error": "refused by the lab hub"}', {"X-Error-Code": code})

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _tree_entry(path: Path, root: Path) -> dict[str, Any]:
    name, size = str(path.relative_to(root)), path.stat().st_size
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": "0" * 40}
    entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": _git_oid(path)}
    if path.suffix == ".safetensors":
        entry["lfs"] = {"oid": _digest(path), "size": size, "pointerSize": 134}
    return entry


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_oid(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repo", nargs="+", help="NAME=FOLDER")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token", help="answer only to this one")
    asked = parser.parse_args()
    repos = {name: Path(folder) for name, _, folder in (repo.partition("=") for repo in asked.repo)}
    with Hub(repos, Faults(token=asked.token), asked.port) as hub:
        print(hub.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
