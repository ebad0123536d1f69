"""Several files that belong together, from one origin into one folder: all of one state, or none."""

import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sive.errors import AdapterError

from sive_adapters.disk import FreeBytes, check_room
from sive_adapters.origin import Origin
from sive_adapters.part import DONE, Stat
from sive_adapters.progress import Told
from sive_adapters.refused import OtherFileError, check_not_refused, remember

CHANGES = 3
"""So often files may change between the first and the last of them."""

_SHA256 = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that lies whole in the working folder."""

    sha256: str
    stat: Stat


@dataclass(frozen=True, slots=True)
class Job:
    """What is wanted, and where it is put together: ``working/files`` holds it at the end.

    ``title``: what people call it. ``pinned``: file name to the SHA-256 it must have. ``anew``: somebody asks
    for it, so that what came wrong before is fetched once more.
    """

    title: str
    origin: Origin
    pinned: Mapping[str, str]
    working: Path
    anew: bool = False


def fetch_files(job: Job, stats: Mapping[str, Stat], *, told: Told, free: FreeBytes) -> dict[str, Fetched]:
    """Fetch these files; when one of them changed meanwhile, it is fetched again.

    One that came twice with the same wrong hash, and is still the same, is refused without being fetched.

    Raises:
        AdapterError: one cannot be had, is not the pinned one, or they keep changing.
        OSError: they cannot be written.
    """
    if not job.anew:
        check_not_refused(job.working, stats, job.pinned)
    try:
        return _fetch_until_one_state(job, stats, told=told, free=free)
    except OtherFileError as exc:
        remember(job.working, exc, job.pinned)
        raise


def _fetch_until_one_state(
    job: Job, stats: Mapping[str, Stat], *, told: Told, free: FreeBytes
) -> dict[str, Fetched]:
    files = job.working / DONE
    files.mkdir(parents=True, exist_ok=True)
    _remove_others(files, stats)
    for _ in range(CHANGES):
        check_room(sum(stat.size for stat in stats.values()) - _bytes_in(job.working), files, free)
        fetched = {name: _fetch(job, name, stat, told) for name, stat in stats.items()}
        now = job.origin.look(stats)
        if all(name in now and now[name].is_of(fetched[name].stat) for name in stats):
            return fetched
        log.warning("%s: files changed while they were fetched, looking again", job.title)
        if gone := [name for name in stats if name not in now]:
            raise AdapterError(f"{job.origin.source}/{gone[0]} was removed while it was fetched")
        stats = now
    raise AdapterError(f"{job.origin.source} keeps changing: wait until its upload is done")


def checked_pins(title: str, sha256: Mapping[str, str]) -> dict[str, str]:
    """Return what is pinned.

    Raises:
        AdapterError: a value is no SHA-256.
    """
    for file, digest in sha256.items():
        if not _SHA256.fullmatch(digest):
            raise AdapterError(
                f"{title}: the sha256 of {file} is {digest!r}, expected 64 lowercase hex digits"
            )
    return dict(sha256)


def _fetch(job: Job, name: str, stat: Stat, told: Told) -> Fetched:
    pinned = job.pinned.get(name)
    if pinned and stat.sha256 and stat.sha256 != pinned:
        raise AdapterError(_other_file(job, name, stat.sha256))
    digest, stat = job.origin.fetch(name, stat, job.working, what=f"{job.title}: {name}", told=told)
    if pinned and digest != pinned:
        (job.working / DONE / name).unlink()
        raise OtherFileError(_other_file(job, name, digest), name=name, stat=stat, digest=digest)
    return Fetched(digest, stat)


def _other_file(job: Job, name: str, digest: str) -> str:
    return (
        f"{job.title}: {name} from {job.origin.source} has the SHA-256 {digest}, but {job.pinned[name]} is "
        "pinned: it was changed or damaged; pin it again only if the change is wanted"
    )


def _remove_others(files: Path, wanted: Iterable[str]) -> None:
    for path in files.iterdir():
        if path.name not in wanted:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _bytes_in(folder: Path) -> int:
    """Return how much of the disk a folder takes; a file with holes takes less than its size."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
