"""Where the files of an adapter or a model are, parsed from the string in the list."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from sive.errors import AdapterError

Kind = Literal["hf", "s3", "gs", "az", "https", "file"]

FORMS = (
    "hf://org/repo@revision/subfolder, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, "
    "https://host/folder or file:folder"
)
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]{1,221}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Source:
    """A folder with files in it; ``str(source)`` is its canonical text, which never holds credentials.

    ``root``: the repository, bucket, container or ``https://host``; empty for a folder. ``path``: within it,
    without slashes at its ends; for ``file`` the absolute folder.
    """

    kind: Kind
    root: str
    path: str
    revision: str | None = None

    def __str__(self) -> str:
        below = f"/{self.path}" if self.path else ""
        if self.kind == "file":
            return f"file:{self.path}"
        if self.kind == "https":
            return self.root + below
        at = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"{self.kind}://{self.root}{at}{below}"


def parse(text: str, folder: Path) -> Source:
    """Parse a source as it is written in the list; ``file:`` is relative to ``folder``.

    Raises:
        AdapterError: it is none; one line names the forms.
    """
    if _CONTROL.search(text):
        raise AdapterError("a source holds a line break or another control character: write it on one line")
    if text.startswith("file:"):
        return _folder(text, folder)
    scheme, has_scheme, rest = text.partition("://")
    if not has_scheme or scheme not in ("hf", "s3", "gs", "az", "https", "http"):
        raise AdapterError(f"{_shown(text)} is no source: write {FORMS}")
    if scheme == "hf":
        return _repository(text, rest)
    if scheme in ("https", "http"):
        return _web_folder(text)
    return _bucket(text, scheme, rest)


def _folder(text: str, folder: Path) -> Source:
    written = text.removeprefix("file:")
    written = written.removeprefix("//") if written.startswith("///") else written
    if not written or written.startswith("//"):
        raise AdapterError(f"{text!r} is no folder: write file:FOLDER or file:/absolute/folder")
    return Source("file", "", str((folder / Path(written).expanduser()).resolve()))


def _repository(text: str, rest: str) -> Source:
    form = "write hf://org/repo, hf://org/repo@revision or hf://org/repo@revision/subfolder"
    org, _, rest = rest.partition("/")
    name, _, path = rest.partition("/")
    name, has_revision, revision = name.partition("@")
    root = f"{org}/{name}"
    if not _REPOSITORY.fullmatch(root) or (has_revision and not revision):
        raise AdapterError(f"{_shown(text)} names no repository: {form}")
    # A branch with a slash is written as the hub's own file systems do: refs%2Fpr%2F1.
    return Source("hf", root, _below(text, path), unquote(revision) or None)


def _bucket(text: str, scheme: str, rest: str) -> Source:
    place = "container" if scheme == "az" else "bucket"
    bucket, _, path = rest.partition("/")
    if "@" in bucket or "?" in text:
        raise AdapterError(
            f"{_shown(text)} holds credentials or a query: write {scheme}://{place}/prefix, "
            "keys come from the environment"
        )
    if not _BUCKET.fullmatch(bucket):
        raise AdapterError(f"{_shown(text)} names no {place}: write {scheme}://{place}/prefix")
    kind: Kind = "s3" if scheme == "s3" else "gs" if scheme == "gs" else "az"
    return Source(kind, bucket, _below(text, path))


def _web_folder(text: str) -> Source:
    try:
        url = urlsplit(text)
        host, port = url.hostname or "", url.port
    except ValueError:
        host, port = "", None
        url = urlsplit("")
    if not host:
        raise AdapterError(f"{_shown(text)} names no host: write https://host/folder")
    if "@" in url.netloc or "?" in text or "#" in text:
        raise AdapterError(
            f"{_shown(text)} holds credentials or a query: write https://host/folder, without them"
        )
    if url.scheme == "http" and host not in LOOPBACK:
        raise AdapterError(f"{_shown(text)} is not encrypted: write https://{host}{url.path}")
    shown_host = f"[{host}]" if ":" in host else host
    return Source(
        "https", f"{url.scheme}://{shown_host}{f':{port}' if port else ''}", _below(text, unquote(url.path))
    )


def _below(text: str, path: str) -> str:
    """Return a path within a bucket, repository or host; a slash too many at its ends is forgiven."""
    parts = [part for part in path.strip("/").split("/") if path.strip("/")]
    if any(part in ("", ".", "..") for part in parts):
        raise AdapterError(f"{_shown(text)} has an empty, '.' or '..' part in its path: write it plainly")
    return "/".join(parts)


def _shown(text: str) -> str:
    """Return what was written without what could be a secret."""
    without_query = re.split(r"[?#]", text, maxsplit=1)[0]
    return repr(re.sub(r"//[^/@]*@(?=[^/]*[./:])", "//…@", without_query, count=1))
