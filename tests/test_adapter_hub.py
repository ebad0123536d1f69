"""Adapters from a Hugging Face hub, over a real socket and with the hub's own client."""

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sive.errors import AdapterError
from sive_adapters import hub as hub_module
from sive_adapters.progress import Progress
from sive_adapters.sources import parse
from sive_adapters.store import Store

from tests.conftest import until
from tests.lab.buckets import CONFIG, MIB, VARIABLES, WEIGHTS, write_adapter
from tests.lab.hub import COMMIT, Faults, Hub

NAME = "FJDaz/qwen-spinoza"
OLD = "fedcba9876543210fedcba9876543210fedcba98"
NEVER = "f" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with an adapter, and the same in a folder below."""
    write_adapter(tmp_path / "repo" / "Spinoza_Secours")
    return write_adapter(tmp_path / "repo", size=3 * MIB)


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with that repository, which the environment leads to."""
    for name in list(os.environ):
        if name.startswith(VARIABLES):
            monkeypatch.delenv(name)
    with Hub({NAME: folder}, revisions={"main": COMMIT, "v1": OLD, "refs/pr/1": OLD}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store of adapters."""
    return Store(tmp_path / "store")


def refusal(store: Store, text: str = f"hf://{NAME}", sha256: dict[str, str] | None = None) -> str:
    """The one line that says why an adapter cannot be had."""
    with pytest.raises(AdapterError) as caught:
        store.fetch("spinoza", parse(text, Path()), sha256)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def asked_for(hub: Hub) -> set[str]:
    """The files that were fetched."""
    return {
        line.partition("/resolve/")[2] for line in hub.seen if line.startswith("GET") and "/resolve/" in line
    }


@pytest.mark.parametrize(
    ("text", "commit", "below"),
    [
        (f"hf://{NAME}", COMMIT, ""),
        (f"hf://{NAME}@v1", OLD, ""),
        (f"hf://{NAME}@refs%2Fpr%2F1", OLD, ""),
        (f"hf://{NAME}@{OLD}/Spinoza_Secours", OLD, "Spinoza_Secours/"),
    ],
)
def test_a_branch_a_tag_and_a_folder_are_one_commit(
    store: Store, hub: Hub, folder: Path, text: str, commit: str, below: str
) -> None:
    """The commit is looked up once and recorded; only the adapter's own two files come."""
    version = store.fetch("spinoza", parse(text, Path()))
    assert version.source == f"hf://{NAME}@{commit}" + (f"/{below[:-1]}" if below else "")
    assert asked_for(hub) == {f"{commit}/{below}{CONFIG}", f"{commit}/{below}{WEIGHTS}"}
    assert (version.folder / WEIGHTS).read_bytes() == (folder / below / WEIGHTS).read_bytes()


def test_another_file_than_the_pinned_one_is_refused_before_it_is_fetched(
    store: Store, hub: Hub, folder: Path
) -> None:
    """The hub says what its large files are."""
    there = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    line = refusal(store, sha256={WEIGHTS: NEVER})
    assert there in line
    assert NEVER in line
    assert not [name for name in asked_for(hub) if name.endswith(WEIGHTS)]


def test_what_was_damaged_on_the_way_is_refused_and_comes_again(store: Store, hub: Hub) -> None:
    """The hub's own client looks at the size alone."""
    hub.faults.spoil = True
    assert "damaged on the way" in refusal(store)
    hub.faults.spoil = False
    assert store.fetch("spinoza", parse(f"hf://{NAME}", Path()))


def test_small_files_are_checked_by_what_git_calls_them(
    store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration has no SHA-256 on the hub."""
    monkeypatch.setattr(hub_module, "_git_blob", lambda file: "0" * 40)
    assert f"{CONFIG} was damaged" in refusal(store)


def test_a_download_that_is_cut_goes_on(store: Store, hub: Hub) -> None:
    """As the hub's client does it."""
    hub.faults.cut_after, hub.faults.cuts = MIB, 1
    assert store.fetch("spinoza", parse(f"hf://{NAME}", Path()))
    assert hub.faults.cuts == 0


def test_what_a_killed_download_left_is_cleared_away(store: Store, hub: Hub) -> None:
    """The hub's client begins such a file anew, under another name."""
    program = (
        "import sys; from pathlib import Path; from sive_adapters.store import Store; "
        "from sive_adapters.sources import parse; "
        f"Store(Path(sys.argv[1])).fetch('spinoza', parse('hf://{NAME}', Path()))"
    )
    hub.faults.stall_after = MIB
    left: set[Path] = set()

    def under_way() -> set[Path]:
        with contextlib.suppress(FileNotFoundError):  # a folder that goes while it is looked into
            return set(store.root.rglob("*.incomplete")) - left
        return set()

    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", program, str(store.root)])
        until(under_way, 60, "a download under way")
        process.kill()
        process.wait()
        left = set(store.root.rglob("*.incomplete"))
        assert len(left) == 1
    hub.faults.stall_after = 0
    version = store.fetch("spinoza", parse(f"hf://{NAME}", Path()))
    assert not list(store.root.rglob("*.incomplete"))
    assert {path.name for path in version.folder.iterdir()} == {CONFIG, WEIGHTS, "sive.json"}


def test_progress_is_told_in_bytes(store: Store, hub: Hub) -> None:
    """From nothing up to the last byte."""
    told: list[Progress] = []
    store.fetch("spinoza", parse(f"hf://{NAME}", Path()), told=told.append)
    weights = [one for one in told if one.what == f"spinoza: {WEIGHTS}"]
    assert weights[0].done_bytes == 0
    assert (weights[-1].done_bytes, weights[-1].total_bytes) == (3 * MIB, 3 * MIB)


@pytest.mark.parametrize(
    ("text", "faults", "says"),
    [
        ("hf://nobody/nothing", Faults(), "has no model 'nobody/nothing' for us"),
        (f"hf://{NAME}@v9", Faults(), "but not this revision of it"),
        (f"hf://{NAME}/nowhere", Faults(), "correct the folder after the repository"),
        (f"hf://{NAME}", Faults(token="hf_right"), "HF_TOKEN"),  # noqa: S106 - not a real one
        (f"hf://{NAME}", Faults(gated=True), "is gated: accept its terms"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    store: Store, hub: Hub, text: str, faults: Faults, says: str
) -> None:
    """An unknown, private or gated repository, revision or folder is named, with the way out."""
    hub.faults = faults
    assert says in refusal(store, text)


def test_a_token_opens_a_private_repository(store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_TOKEN is sent, as everywhere else."""
    hub.faults.token = "hf_right"  # noqa: S105 - not a real one
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert store.fetch("spinoza", parse(f"hf://{NAME}", Path()))


def test_without_a_network_the_hub_is_named(store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it does not take long."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 is not reachable" in refusal(store)
