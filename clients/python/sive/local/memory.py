"""How much memory this process may still take: the cgroup's limit (v1 and v2) and the machine's."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

UNKNOWN = sys.maxsize
"""What ``headroom_bytes`` returns where nothing tells (macOS, Windows): everything fits."""


def headroom_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that can be allocated before the machine, or any cgroup we are in, is full.

    Page cache that can be dropped counts as free.
    """
    return min([*_machine(root), *_cgroups(root)], default=UNKNOWN)


def _machine(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _cgroups(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/self/cgroup"):
        hierarchy, controllers, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup"
        if hierarchy == "0":
            yield from _nested(mount, path, limit="memory.max", used="memory.current", cache="inactive_file")
        elif "memory" in controllers.split(","):
            files = {"limit": "memory.limit_in_bytes", "used": "memory.usage_in_bytes"}
            yield from _nested(mount / "memory", path, **files, cache="total_inactive_file")


def _nested(mount: Path, path: str, *, limit: str, used: str, cache: str) -> Iterator[int]:
    """Yield what is free in each cgroup from ours up; inside a container ``path`` may only exist outside."""
    folder = mount / path.lstrip("/")
    for level in [folder, *folder.parents]:
        allowed, taken = _number(level / limit), _number(level / used)
        if allowed is not None and taken is not None:
            yield max(0, allowed - taken + _stat(level / "memory.stat", cache))
        if level == mount:
            return


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None  # v2 says "max" for no limit


def _stat(path: Path, key: str) -> int:
    for line in _lines(path):
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def give_back() -> None:
    """Hand memory that was freed back to the machine; glibc keeps it (80 MB after loading gpt2)."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
