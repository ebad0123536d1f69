"""Adapters on disk: one folder a version, named by its content, that never changes."""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sive.errors import AdapterError

from sive_adapters import disk
from sive_adapters.disk import FreeBytes, free_bytes
from sive_adapters.fetch import Fetched, Job, checked_pins, fetch_files
from sive_adapters.object_store import Patience
from sive_adapters.origin import Origin, open_origin
from sive_adapters.part import DONE, Stat
from sive_adapters.progress import Progress, Told, nobody
from sive_adapters.sources import Source, parse

__all__ = ["Progress", "Store", "Told", "Version", "digest_of", "nobody"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
FILES = (CONFIG_FILE, WEIGHTS_FILE)
"""What belongs to an adapter; PEFT folders hold more that nobody serves."""

ABOUT = "sive.json"
PARTS = ".parts"
OLD_PART_S = 7 * 24 * 3600.0
"""A download that nobody took up again for so long is thrown away."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Version:
    """An adapter's files on disk: a folder that never changes.

    ``digest``: 64 hex digits, the SHA-256 over the sorted lines that ``sha256sum`` prints for its files.
    ``sha256``: file name to lowercase hex. ``source``: where it is from, a branch resolved to its commit.
    """

    name: str
    digest: str
    folder: Path
    sha256: Mapping[str, str]
    source: str = ""

    @property
    def short(self) -> str:
        """The first 12 digits of the digest, as in the folder's name."""
        return self.digest[:12]


@dataclass(frozen=True, slots=True)
class Choice:
    """The files of an origin that are wanted, and the SHA-256 that is stated for some of them there."""

    stats: Mapping[str, Stat]
    sha256: Mapping[str, str] = field(default_factory=dict)


Choose = Callable[[str, Origin], Choice]
"""Looks at an origin and says which of its files are wanted; the text is what people call them."""


def adapter_files(title: str, origin: Origin) -> Choice:
    """Choose the two files of an adapter.

    Raises:
        AdapterError: one is not there.
    """
    stats = origin.look(FILES)
    if WEIGHTS_FILE not in stats and origin.look([PICKLE_FILE]):
        raise AdapterError(
            f"{title}: {origin.source} has its weights only as {PICKLE_FILE}, a pickle, which is not read: "
            "load it with PEFT and save it again, save_pretrained writes safetensors"
        )
    for file in FILES:
        if file not in stats:
            raise AdapterError(f"{title}: {origin.source} has no {file}: correct the source, or upload it")
    return Choice(stats)


class Store:
    """``root/NAME/DIGEST12/``: versions of read-only files; ``root/.parts/``: downloads under way.

    Several processes may use one root. ``choose``: which files make a version. ``free_bytes``: how much room
    a folder has.
    """

    def __init__(
        self,
        root: Path,
        *,
        choose: Choose = adapter_files,
        patience: Patience | None = None,
        free_bytes: FreeBytes = free_bytes,
    ) -> None:
        self.root = root.absolute()
        self._choose = choose
        self._patience = patience or Patience()
        self._free_bytes = free_bytes

    def find(self, name: str, sha256: Mapping[str, str]) -> Version | None:
        """Return the version with these files if it is on disk whole; asks no network, and reads no weights.

        What is not pinned at all is not found.
        """
        if not sha256:
            return None
        pinned = sha256.items()
        return next((one for one in self.versions(name) if pinned <= one.sha256.items()), None)

    def fetch(
        self,
        name: str,
        source: Source,
        sha256: Mapping[str, str] | None = None,
        *,
        told: Told = nobody,
        anew: bool = False,
    ) -> Version:
        """Bring a version onto the disk, or find it there.

        What is pinned and on disk asks no network. What is not pinned is looked at where it is from, and
        fetched when it is not what is on disk. What came twice with a wrong hash is fetched no more until it
        changes there, unless ``anew``. Another process that fetches this adapter is waited for. It
        blocks, and runs a loop of its own: beside another loop, call it in a thread.

        Raises:
            AdapterError: it cannot be had or stored, or its files are not the pinned ones.
        """
        pinned = checked_pins(_checked(name), sha256 or {})
        if found := self.find(name, pinned):
            return found
        with disk.plain_errors(self.root, name), self._locked(name):
            if found := self.find(name, pinned):  # brought by whom we waited for
                return found
            origin = open_origin(source, self._patience)
            choice = self._choose(name, origin)
            if strange := sorted(pinned.keys() - choice.stats.keys()):
                raise AdapterError(f"{name} pins {strange[0]}, but its files are {', '.join(choice.stats)}")
            if not pinned and (found := self._unchanged(name, origin, choice)):
                return found
            key = hashlib.sha256(str(origin.source).encode()).hexdigest()[:12]
            working = self.root / PARTS / name / key
            job = Job(name, origin, {**choice.sha256, **pinned}, working, anew=anew)
            return self._keep(name, job, fetch_files(job, choice.stats, told=told, free=self._free_bytes))

    def versions(self, name: str) -> tuple[Version, ...]:
        """Return the versions of an adapter that are on disk whole, the newest first."""
        folders = [path for path in (self.root / _checked(name)).glob("[!.]*") if path.is_dir()]
        folders.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return tuple(version for folder in folders if (version := _read(name, folder)[0]))

    def latest(self, name: str, source: Source) -> Version | None:
        """Return what was fetched from a source last, whatever it held then; asks no network.

        Of a revision only its own commit is: what a branch was when it was fetched is not known any more.
        """
        return next(self.fetched_from(name, source), None)

    def fetched_from(self, name: str, source: Source) -> Iterator[Version]:
        """Yield what was fetched from a source, the newest first, as ``latest``."""
        place = source.kind, source.root, source.path
        for version in self.versions(name):
            then = parse(version.source, Path())
            is_there = (then.kind, then.root, then.path) == place
            if is_there and source.revision in (None, then.revision):
                yield version

    def ranked(self, name: str) -> tuple[Path, ...]:
        """Return every folder that says something of an adapter's rank, downloads under way among them."""
        begun = self.root.glob(f"{PARTS}/{_checked(name)}/*/{DONE}/{CONFIG_FILE}")
        return (*(version.folder for version in self.versions(name)), *(file.parent for file in begun))

    def collect(self, stale: Collection[Path]) -> tuple[Path, ...]:
        """Remove these version folders, and old parts; return what was removed.

        An adapter that is being fetched is left alone.
        """
        removed: list[Path] = []
        for folder in sorted(stale):
            if folder.is_dir():
                with contextlib.suppress(TimeoutError), self._locked(folder.parent.name, wait=False):
                    self._discard(folder)
                    removed.append(folder)
        for part in sorted(self.root.glob(f"{PARTS}/*/*")):
            if part.is_dir() and time.time() - _last_change(part) > OLD_PART_S:
                with contextlib.suppress(TimeoutError), self._locked(part.parent.name, wait=False):
                    shutil.rmtree(part)
                    removed.append(part)
        return tuple(removed)

    def _unchanged(self, name: str, origin: Origin, choice: Choice) -> Version | None:
        """Return the version that was fetched from there when its files were as they are now."""
        stats = choice.stats
        if not all(stat.is_known for stat in stats.values()):
            return None
        for version in self.versions(name):
            _, then = _read(name, version.folder)
            is_same = then.keys() == stats.keys() and all(stats[file].is_of(then[file]) for file in stats)
            if version.source == str(origin.source) and is_same:
                return version
        return None

    def _keep(self, name: str, job: Job, fetched: Mapping[str, Fetched]) -> Version:
        """Make a version of files that lie in the working folder; the lock is held."""
        files = job.working / DONE
        digest = digest_of({file: one.sha256 for file, one in fetched.items()})
        final = self.root / name / digest[:12]
        final.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "source": str(job.origin.source),
            "files": {
                file: {
                    "sha256": one.sha256,
                    "size": one.stat.size,
                    "etag": one.stat.etag,
                    "modified": one.stat.modified,
                }
                for file, one in fetched.items()
            },
        }
        _write_about(files, about)
        there = _read(name, final)[0]
        if there is not None and there.digest != digest:
            raise AdapterError(f"{name}: {final} holds another version with the same name: remove it")
        if there is not None:
            # The same content from elsewhere, or put there again: where it is from is all that is new.
            (files / ABOUT).replace(final / ABOUT)
        else:
            for file in fetched:
                (files / file).chmod(0o444)
            disk.sync_folder(files)
            self._discard(final)
            files.rename(final)
        disk.sync_folder(final.parent)
        shutil.rmtree(job.working)
        version, _ = _read(name, final)
        if version is None:
            raise AdapterError(f"{final} is not what was just written there: is another program changing it?")
        return version

    def _discard(self, folder: Path) -> None:
        """Remove a folder; under its own name it is never seen in part."""
        if not folder.exists():
            return
        trash = self.root / PARTS / folder.parent.name / f"{folder.name}.trash"
        shutil.rmtree(trash, ignore_errors=True)
        trash.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(trash)
        shutil.rmtree(trash)

    @contextlib.contextmanager
    def _locked(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Be the only process that changes an adapter's versions.

        Raises:
            TimeoutError: another is, and is not to be waited for.
        """
        from filelock import FileLock

        (self.root / PARTS).mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / PARTS / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except TimeoutError:
            if not wait:
                raise
            log.info("%s is being fetched by another process, waiting for it", name)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def digest_of(sha256: Mapping[str, str]) -> str:
    """Return the digest of a version: the SHA-256 over what ``sha256sum`` prints for its files, sorted."""
    lines = sorted(f"{digest}  {file}\n" for file, digest in sha256.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read(name: str, folder: Path) -> tuple[Version | None, dict[str, Stat]]:
    """Return what a folder says of itself; None when it is no version, or not whole."""
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text("utf-8"))
        sha256 = {str(file): str(one["sha256"]) for file, one in about["files"].items()}
        stats = {
            file: Stat(int(one["size"]), one["etag"], one["modified"]) for file, one in about["files"].items()
        }
        is_whole = all((folder / file).stat().st_size == stat.size for file, stat in stats.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, {}
    digest = digest_of(sha256)
    if not is_whole or digest[:12] != folder.name:
        log.warning("%s is damaged and not used", folder)
        return None, {}
    return Version(name, digest, folder, sha256, str(about.get("source", ""))), stats


def _write_about(folder: Path, about: dict[str, Any]) -> None:
    with (folder / ABOUT).open("w", encoding="utf-8") as file:
        json.dump(about, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _last_change(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise AdapterError(f"{name!r} is no name of an adapter: letters, digits, '.', '_' and '-'")
    return name
