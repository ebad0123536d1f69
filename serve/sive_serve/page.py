"""The chat page: the files of clients/netlify/public, which anybody may read, key or none."""

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response

PACKAGED = Path(__file__).with_name("page")
"""Where the wheel and the images have it."""

CHECKOUT = Path(__file__).parents[2] / "clients" / "netlify" / "public"

TYPES = {".mjs": "text/javascript", ".svg": "image/svg+xml"}
"""What some machines' lists of types lack; a module of another type would not run."""

WORTH_GZIP_BYTES = 1000

HEADERS = {
    # Asked for again at each visit, and answered with a 304: a new version is never seen in halves.
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "vary": "accept-encoding",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True)
class _File:
    """A file as it goes out; ``packed`` is None where that would save nothing."""

    media_type: str
    body: bytes
    packed: bytes | None
    etag: str


class Page:
    """The files of one folder, read once: what is not among them does not exist, whatever is asked for."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or next((place for place in (PACKAGED, CHECKOUT) if place.is_dir()), None)
        found = sorted(path for path in folder.rglob("*") if path.is_file()) if folder is not None else []
        self._files = {f"/{path.relative_to(folder).as_posix()}": _read(path) for path in found if folder}
        if index := self._files.get("/index.html"):
            self._files["/"] = index

    def __bool__(self) -> bool:
        """Is there a page at all?"""
        return "/" in self._files

    def answer(self, method: str, path: str, headers: Headers) -> Response | None:
        """The file of this path; None when the page has none there."""
        file = self._files.get(path)
        if file is None:
            return None
        if method not in ("GET", "HEAD"):
            return Response(status_code=405, headers={"allow": "GET, HEAD"})
        packs = file.packed is not None and _accepts_gzip(headers.get("accept-encoding", ""))
        etag = f'"{file.etag}-gzip"' if packs else f'"{file.etag}"'
        told = HEADERS | {"etag": etag}
        if _names(headers.get("if-none-match", ""), etag):
            return Response(status_code=304, headers=told)
        body = file.packed if packs and file.packed is not None else file.body
        told |= {"content-encoding": "gzip"} if packs else {}
        told |= {"content-length": str(len(body))}
        return Response(body if method == "GET" else b"", headers=told, media_type=file.media_type)


def _read(path: Path) -> _File:
    body = path.read_bytes()
    media_type = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    packed = gzip.compress(body, mtime=0) if len(body) > WORTH_GZIP_BYTES else None
    if packed is not None and len(packed) >= len(body):
        packed = None
    return _File(media_type, body, packed, hashlib.sha256(body).hexdigest()[:20])


def _accepts_gzip(accepted: str) -> bool:
    for offer in accepted.split(","):
        name, _, weight = offer.partition(";")
        if name.strip().lower() in ("gzip", "*"):
            return weight.strip().lower().replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _names(if_none_match: str, etag: str) -> bool:
    """Does the caller have this version? Weak comparison, as RFC 9110 has it for this header."""
    known = {one.strip().removeprefix("W/") for one in if_none_match.split(",")}
    return etag in known or "*" in known
