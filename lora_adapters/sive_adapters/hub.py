"""A repository, or a folder of one, on a Hugging Face hub: one commit, checked against its hashes."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from sive.config import process_environment
from sive.errors import AdapterError
from sive.hub import bytes_told_to, plain_errors

from sive_adapters.hashing import sha256_of
from sive_adapters.meter import Meter
from sive_adapters.part import DONE, Stat
from sive_adapters.progress import Progress, Told
from sive_adapters.sources import Source

TIMEOUT_S = 10.0
"""How long the hub may take to answer what is asked before a download."""


class UnreachableError(AdapterError):
    """The hub cannot be reached."""


class Repository:
    """Files of one commit; a branch is resolved once, when it is opened.

    The token is huggingface_hub's own (HF_TOKEN or ``hf auth login``), and so are HF_ENDPOINT and
    HF_HUB_OFFLINE. It retries within a download; one that was killed begins that file anew.

    Raises:
        AdapterError: there is no such repository or revision, or no access to it.
        UnreachableError: there is no network.
    """

    def __init__(self, source: Source) -> None:
        try:
            from huggingface_hub import HfApi
        except ImportError as exc:
            raise AdapterError(f"{source} needs {exc.name}: pip install 'sive[adapters]'") from exc
        self._hub = HfApi(endpoint=process_environment().get("HF_ENDPOINT") or None)
        with self._plain_errors(source):
            about = self._hub.model_info(source.root, revision=source.revision, timeout=TIMEOUT_S)
        self.source = replace(source, revision=str(about.sha))
        self._stats: dict[str, Stat] | None = None
        self._blobs: dict[str, str] = {}

    def look(self, names: Iterable[str]) -> dict[str, Stat]:
        """Look at files; those that are not there are left out.

        Raises:
            AdapterError: the hub refuses, or is gone.
        """
        listed = self.list()
        return {name: listed[name] for name in names if name in listed}

    def list(self) -> dict[str, Stat]:
        """Return the files of the folder itself, none of those below it.

        Raises:
            AdapterError: there is no such folder.
        """
        if self._stats is None:
            self._stats = self._listed()
        return self._stats

    def fetch(self, name: str, stat: Stat, working: Path, *, what: str, told: Told) -> tuple[str, Stat]:
        """Fetch a file to ``working/files/name``; return its SHA-256 and what it turned out to be.

        Raises:
            AdapterError: it cannot be had, or was damaged on the way.
            OSError: it cannot be written.
        """
        final = working / DONE / name
        if (digest := self._there_already(name, stat, final)) is None:
            final.unlink(missing_ok=True)
            digest = self._download(name, stat, working / ".hub", final, Meter(what, stat.size, told))
        told(Progress(what, stat.size, stat.size))
        return digest, stat

    def _there_already(self, name: str, stat: Stat, final: Path) -> str | None:
        """Return the hash of a file that an earlier try brought whole."""
        if not final.is_file() or final.stat().st_size != stat.size:
            return None
        digest = sha256_of(final)
        return digest if self._is_right(name, stat, final, digest) else None

    def _download(self, name: str, stat: Stat, scratch: Path, final: Path, meter: Meter) -> str:
        shutil.rmtree(scratch, ignore_errors=True)  # what one that was killed had begun cannot be used
        meter.start(0)
        with self._plain_errors(self.source):
            file = Path(
                self._hub.hf_hub_download(
                    self.source.root,
                    name,
                    subfolder=self.source.path or None,
                    revision=self.source.revision,
                    local_dir=scratch,
                    etag_timeout=TIMEOUT_S,
                    tqdm_class=bytes_told_to(meter.reach),
                )
            )
        digest = sha256_of(file)
        if not self._is_right(name, stat, file, digest):
            shutil.rmtree(scratch, ignore_errors=True)
            raise AdapterError(f"{self.source}/{name} was damaged on the way: fetch it again")
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.replace(final)
        shutil.rmtree(scratch, ignore_errors=True)
        return digest

    def _is_right(self, name: str, stat: Stat, file: Path, digest: str) -> bool:
        """Compare with the hub's own hash; the library looks at the size alone."""
        return digest == stat.sha256 if stat.sha256 else _git_blob(file) == self._blobs[name]

    def _listed(self) -> dict[str, Stat]:
        from huggingface_hub.hf_api import RepoFile

        with self._plain_errors(self.source):
            found = list(
                self._hub.list_repo_tree(
                    self.source.root, self.source.path or None, revision=self.source.revision
                )
            )
        stats = {}
        for entry in found:
            if isinstance(entry, RepoFile):
                name = Path(entry.path).name
                self._blobs[name] = entry.blob_id
                stats[name] = Stat(entry.size, entry.blob_id, sha256=entry.lfs.sha256 if entry.lfs else None)
        return stats

    @contextlib.contextmanager
    def _plain_errors(self, source: Source) -> Iterator[None]:
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        with plain_errors(source.root, self._hub.endpoint, error=AdapterError, unreachable=UnreachableError):
            try:
                yield
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError as exc:
                raise AdapterError(f"there is no {source}: correct the folder after the repository") from exc


def _git_blob(file: Path) -> str:
    """Return what git calls a file with this content."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
