"""Which versions of a store are in use, and by whom: nobody removes what another process needs."""

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from sive_adapters.disk import plain_errors

FOLDER = ".leases"
BOOT = Path("/proc/sys/kernel/random/boot_id")
PROCESS_IDS = Path("/proc/self/ns/pid")
RENEW_S = 600.0
STALE_S = 24 * 3600.0
"""A lease that nobody renewed for so long is nobody's: its machine is gone, or was asleep for a day. What it
keeps meanwhile costs room on a disk; taking it too early would end an engine that reads its adapter again."""


class Lease:
    """Folders below ``root`` that this process needs, as a file ``root/.leases/ID.json``.

    Processes may be on several machines that share the disk. One on this machine that has ended holds nothing
    any more; of others the file's age decides. ``root`` is created when something is held.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._folder = self._root / FOLDER
        self._file = self._folder / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.json"
        self._held: frozenset[Path] = frozenset()

    def hold(self, folder: Path) -> bool:
        """Need one more; False when it is not there any more.

        Raises:
            AdapterError: the store cannot be written.
        """
        with plain_errors(self._root, "a lease"), self.locked():
            self.only({*self._held, folder})
            return folder.is_dir()

    def only(self, folders: Collection[Path]) -> None:
        """Need these alone from now on; by who holds the lock.

        Raises:
            OSError: the store cannot be written.
        """
        self._held = frozenset(folders)
        self._write()

    def renew(self) -> None:
        """Say that what is held is still needed.

        Raises:
            AdapterError: the store cannot be written.
        """
        if self._held:
            with plain_errors(self._root, "a lease"), self.locked():
                self._write()

    def release(self) -> None:
        """Need nothing any more."""
        self._held = frozenset()
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)

    def others(self) -> set[Path]:
        """Return the folders that other processes need; leases of those that are gone are removed."""
        needed: set[Path] = set()
        for file in self._folder.glob("*.json"):
            if file != self._file:
                needed |= self._read(file)
        return needed

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that holds or removes folders.

        Raises:
            OSError: the store cannot be written.
        """
        from filelock import FileLock

        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / "lock"):
            yield

    def _write(self) -> None:
        held = sorted(str(folder.relative_to(self._root)) for folder in self._held)
        said = {"machine": _machine(), "pid": os.getpid(), "folders": held}
        beside = self._file.with_suffix(".new")
        beside.write_text(json.dumps(said), "utf-8")
        beside.replace(self._file)

    def _read(self, file: Path) -> set[Path]:
        try:
            age_s = time.time() - file.stat().st_mtime
            said = json.loads(file.read_text("utf-8"))
            machine, pid, folders = said["machine"], int(said["pid"]), list(said["folders"])
        except FileNotFoundError:
            return set()
        except (ValueError, KeyError, TypeError):
            machine, pid, folders, age_s = "", 0, [], STALE_S + 1  # written whole or not at all: not ours
        has_ended = machine == _machine() and not Path(f"/proc/{pid}").exists()
        if has_ended or age_s > STALE_S:
            file.unlink(missing_ok=True)
            return set()
        return {self._root / str(folder) for folder in folders}


def _machine() -> str:
    """What tells where a process id means something: the host, its boot, and the container's own numbers."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(BOOT.read_text("ascii").strip())
        parts.append(str(PROCESS_IDS.readlink()))
    return " ".join(parts)
