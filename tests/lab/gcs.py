"""A small object store over a real socket: GCS's XML API, which is also S3's, Azure's blobs, web folders.

``python -m tests.lab.gcs FOLDER`` serves ``FOLDER/bucket/key``, prints its address and serves until killed.
It checks no signature. Azure's addresses begin with its emulator's account, ``/devstoreaccount1``.
"""

import argparse
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

ACCOUNT = "devstoreaccount1"
BLOCK = 256 * 1024


@dataclass
class Faults:
    """What the store does wrong; may be changed while it runs.

    ``cut_after``: bytes of an answer after which the connection is cut, ``cuts`` times; ``stalls`` as often
    the rest just does not come. ``status`` is answered ``refusals`` times. ``bytes_per_s`` of all answers
    together. ``on_bytes``: called with the bytes of all answers before each block.
    """

    cut_after: int = 0
    cuts: int = 0
    stalls: int = 0
    status: int = 503
    refusals: int = 0
    spoil: bool = False
    ranges: bool = True
    etags: bool = True
    weak_etags: bool = False
    obeys_if_match: bool = True
    bytes_per_s: float | None = None
    on_bytes: Callable[[int], None] | None = None


@dataclass
class ObjectStore:
    """A store in a thread.

    ``seen``: the requests it got; ``sent``: bytes of each object that it gave; ``statuses``: how it
    refused; ``running``: answers that are on their way.
    """

    folder: Path
    faults: Faults = field(default_factory=Faults)
    port: int = 0
    seen: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    running: int = 0

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"lab": self})
        self.ended = threading.Event()
        self._pace = threading.Lock()
        self._due = 0.0
        self._server = _Server(("127.0.0.1", self.port), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def gets(self) -> list[str]:
        """The objects that were asked for, one entry a request."""
        return [line.removeprefix("GET ") for line in self.seen if line.startswith("GET ")]

    def count(self, change: int) -> None:
        """Count the answers that are on their way."""
        with self._pace:
            self.running += change

    def wait_for_turn(self, count: int) -> None:
        """Wait until so many more bytes may go out; all connections share the rate."""
        if not self.faults.bytes_per_s:
            return
        with self._pace:
            self._due = max(self._due, time.monotonic() - 0.05) + count / self.faults.bytes_per_s
            wait_s = self._due - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    lab: ObjectStore

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass

    def _serve(self) -> None:
        self.lab.count(1)
        try:
            self._answer()
        finally:
            self.lab.count(-1)

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path).strip("/")
        asked = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        is_azure = path.startswith(f"{ACCOUNT}/")
        path = path.removeprefix(f"{ACCOUNT}/")
        self.lab.seen.append(f"{self.command} {path}")
        if self.lab.faults.refusals > 0:
            self.lab.faults.refusals -= 1
            return self._reply(self.lab.faults.status, b"<Error><Code>Refused</Code></Error>")
        if asked.get("comp") == "list":
            return self._reply(200, _azure_list(self.lab.folder / path, asked, self._etag))
        if "list-type" in asked:
            return self._reply(200, _list(self.lab.folder / path, asked, self._etag))
        file = self.lab.folder / path
        if not file.is_file():
            return self._reply(
                404, b"<Error><Code>NoSuchKey</Code></Error>", {"x-ms-error-code": "BlobNotFound"}
            )
        return self._object(path, file, is_azure)

    def _object(self, path: str, file: Path, is_azure: bool) -> None:
        with file.open("rb") as content:
            size, etag = file.stat().st_size, self._etag(file)
            wanted = self.headers.get("If-Match")
            if wanted and self.lab.faults.obeys_if_match and (wanted != etag or etag.startswith("W/")):
                self._reply(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            said = self.headers.get("Range") or self.headers.get("x-ms-range") or ""
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", said) if self.lab.faults.ranges else None
            start, end = (int(asked[1]), min(int(asked[2] or size - 1) + 1, size)) if asked else (0, size)
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            if self.lab.faults.etags:
                self.send_header("ETag", etag)
            if self.lab.faults.etags or is_azure:
                self.send_header("Last-Modified", formatdate(file.stat().st_mtime, usegmt=True))
            self.send_header("Content-Length", str(end - start))
            self.send_header("x-ms-blob-type", "BlockBlob")
            self.end_headers()
            if self.command == "GET":
                self._send(path, content, start, end)

    def _send(self, path: str, content: BinaryIO, start: int, end: int) -> None:
        faults, at = self.lab.faults, start
        if faults == Faults():
            self.lab.sent[path] += end - start
            self.connection.sendfile(content, start, end - start)  # type: ignore[arg-type]
            return
        content.seek(start)
        while at < end:
            block = content.read(min(BLOCK, end - at))
            if at - start + len(block) > faults.cut_after:
                if faults.cuts > 0:
                    faults.cuts -= 1
                    self.close_connection = True
                    return
                if faults.stalls > 0:
                    faults.stalls -= 1
                    self.lab.ended.wait()
                    return
            if faults.on_bytes is not None:
                faults.on_bytes(self.lab.sent.total())
            at += len(block)
            if faults.spoil and at == end:
                block = block[:-1] + bytes([block[-1] ^ 1])
            self.lab.wait_for_turn(len(block))
            self.wfile.write(block)
            self.lab.sent[path] += len(block)

    def _etag(self, file: Path) -> str:
        stat = file.stat()
        return f'{"W/" if self.lab.faults.weak_etags else ""}"{stat.st_size:x}-{stat.st_mtime_ns:x}"'

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.lab.statuses[status] += 1
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


Etag = Callable[[Path], str]


def _keys(bucket: Path, asked: dict[str, str]) -> list[str]:
    prefix = asked.get("prefix", "")
    keys = sorted(str(path.relative_to(bucket)) for path in bucket.rglob("*") if path.is_file())
    return [key for key in keys if key.startswith(prefix)]


def _is_below(key: str, asked: dict[str, str]) -> bool:
    return bool(asked.get("delimiter")) and asked["delimiter"] in key[len(asked.get("prefix", "")) :]


def _list(bucket: Path, asked: dict[str, str], etag: Etag) -> bytes:
    """S3's ListObjectsV2, which GCS speaks as well."""
    entries = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{(bucket / key).stat().st_size}</Size>"
        f"<LastModified>{_iso(bucket / key)}</LastModified><ETag>{escape(etag(bucket / key))}</ETag>"
        "</Contents>"
        for key in _keys(bucket, asked)
        if not _is_below(key, asked)
    )
    is_all = "<IsTruncated>false</IsTruncated>"
    return f'<?xml version="1.0"?><ListBucketResult>{entries}{is_all}</ListBucketResult>'.encode()


def _azure_list(container: Path, asked: dict[str, str], etag: Etag) -> bytes:
    entries = "".join(
        f"<Blob><Name>{escape(key)}</Name><Properties>"
        f"<Last-Modified>{formatdate((container / key).stat().st_mtime, usegmt=True)}</Last-Modified>"
        f"<Content-Length>{(container / key).stat().st_size}</Content-Length>"
        "<Content-Type>application/octet-stream</Content-Type>"
        f"<Etag>{_unquoted(etag(container / key))}</Etag></Properties></Blob>"
        for key in _keys(container, asked)
        if not _is_below(key, asked)
    )
    return (
        f'<?xml version="1.0"?><EnumerationResults><Blobs>{entries}</Blobs><NextMarker/></EnumerationResults>'
    ).encode()


def _unquoted(etag: str) -> str:
    """Azure's lists have no quotes around it."""
    return escape(etag.strip('"'))


def _iso(file: Path) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(file.stat().st_mtime))


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bytes-per-s", type=float)
    asked = parser.parse_args()
    with ObjectStore(asked.folder, Faults(bytes_per_s=asked.bytes_per_s), asked.port) as served:
        print(served.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
