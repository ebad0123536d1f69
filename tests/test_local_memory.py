"""How much memory may still be taken, read from real folder trees as the kernel lays them out."""

from pathlib import Path

from sive.local.memory import UNKNOWN, headroom_bytes

MEMINFO = "MemTotal:       24684000 kB\nMemFree:          100000 kB\nMemAvailable:    2000000 kB\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write files and return where they lie."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_machine_without_limits_has_what_is_available(tmp_path: Path) -> None:
    """MemAvailable, not MemFree: page cache can be dropped."""
    root = tree(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n"})
    assert headroom_bytes(root) == 2_000_000 * 1024


def test_a_v2_limit_counts_with_its_page_cache_as_free(tmp_path: Path) -> None:
    """A container's own files do not count against it."""
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "536870912\n",
        "sys/fs/cgroup/memory.current": "300000000\n",
        "sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 50000000\n",
    }
    assert headroom_bytes(tree(tmp_path, files)) == 536870912 - 300000000 + 50000000


def test_a_parents_limit_holds_for_its_children(tmp_path: Path) -> None:
    """The tightest cgroup on the way up decides; "max" is no limit."""
    files = {
        "proc/self/cgroup": "0::/user/sive\n",
        "sys/fs/cgroup/user/sive/memory.max": "max\n",
        "sys/fs/cgroup/user/sive/memory.current": "100\n",
        "sys/fs/cgroup/user/memory.max": "1000\n",
        "sys/fs/cgroup/user/memory.current": "400\n",
    }
    assert headroom_bytes(tree(tmp_path, files)) == 600


def test_a_v1_limit_is_found_inside_a_container(tmp_path: Path) -> None:
    """Its path names a folder that exists only on the host; the mount itself is the container's."""
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "500000000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "290000000\n",
        "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 40000000\n",
    }
    assert headroom_bytes(tree(tmp_path, files)) == 250_000_000


def test_a_machine_that_tells_nothing_has_room(tmp_path: Path) -> None:
    """No /proc: macOS and Windows are not refused their model."""
    assert headroom_bytes(tmp_path) == UNKNOWN


def test_this_machine_has_a_believable_headroom() -> None:
    """The real files are read without an error."""
    assert 0 < headroom_bytes() < UNKNOWN
