"""The store of adapters: versions that never change, wherever they are fetched from."""

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sive.errors import AdapterError
from sive_adapters import store as store_module
from sive_adapters.progress import Progress
from sive_adapters.sources import Source, parse
from sive_adapters.store import Store, Version, digest_of

from tests.conftest import until
from tests.lab.buckets import CONFIG, MIB, QUICK, VARIABLES, WEIGHTS, environment, write_adapter
from tests.lab.gcs import Faults, ObjectStore
from tests.lab.hub import Hub

S3 = parse("s3://adapters/spinoza", Path())
NEVER = "f" * 64


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away whatever leads to a real store."""
    for name in list(os.environ):
        if name.startswith(VARIABLES):
            monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter as it lies in a bucket."""
    return write_adapter(tmp_path / "objects" / "adapters" / "spinoza")


@pytest.fixture
def lab(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """An object store with that adapter, which the environment leads to."""
    with ObjectStore(tmp_path / "objects") as lab:
        for name, value in environment(lab).items():
            monkeypatch.setenv(name, value)
        yield lab


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store of adapters."""
    return Store(tmp_path / "store", patience=QUICK)


def sha256_of(folder: Path) -> dict[str, str]:
    """What is to be pinned for an adapter."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (CONFIG, WEIGHTS)}


def refusal(store: Store, source: Source, sha256: dict[str, str] | None = None) -> str:
    """The one line that says why an adapter cannot be had."""
    with pytest.raises(AdapterError) as caught:
        store.fetch("spinoza", source, sha256)
    assert "\n" not in str(caught.value)
    assert "very-secret" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(params=["s3", "gs", "az", "https", "file", "hf"])
def source(
    request: pytest.FixtureRequest, lab: ObjectStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Source]:
    """The same adapter over each protocol."""
    with contextlib.ExitStack() as stack:
        if request.param == "hf":
            hub = stack.enter_context(Hub({"org/repo": folder.parent}))
            monkeypatch.setenv("HF_ENDPOINT", hub.url)
        texts = {
            "https": f"{lab.url}/adapters/spinoza",
            "file": f"file:{folder}",
            "hf": "hf://org/repo/spinoza",
        }
        yield parse(texts.get(request.param, f"{request.param}://adapters/spinoza"), Path())


def test_every_protocol_brings_the_same_version(store: Store, source: Source, folder: Path) -> None:
    """A version is named by its content: only the two files of an adapter, and read-only."""
    version = store.fetch("spinoza", source)
    assert version.sha256 == sha256_of(folder)
    assert version.folder == store.root / "spinoza" / version.short
    assert {path.name for path in version.folder.iterdir()} == {CONFIG, WEIGHTS, "sive.json"}
    for name in (CONFIG, WEIGHTS):
        assert (version.folder / name).read_bytes() == (folder / name).read_bytes()
        assert (version.folder / name).stat().st_mode & 0o777 == 0o444
    assert store.versions("spinoza") == (version,)
    assert not list((store.root / ".parts").glob("spinoza/*"))


def test_a_version_says_where_it_is_from(store: Store, source: Source) -> None:
    """A branch is resolved to its commit, so that the text means these very files."""
    version = store.fetch("spinoza", source)
    assert parse(version.source, Path()).kind == source.kind
    assert ("@0123456789abcdef0123456789abcdef01234567/" in version.source) == (source.kind == "hf")


def test_what_is_there_is_not_fetched_again(store: Store, source: Source, lab: ObjectStore) -> None:
    """Without a pin the source is looked at, and nothing is brought."""
    version = store.fetch("spinoza", source)
    told: list[Progress] = []
    lab.seen.clear()
    assert store.fetch("spinoza", source, told=told.append) == version
    assert told == []
    assert lab.gets() == []


def test_the_pinned_file_is_checked_over_every_protocol(store: Store, source: Source, folder: Path) -> None:
    """Another file is refused, and the right one then comes."""
    right = sha256_of(folder)
    line = refusal(store, source, right | {WEIGHTS: NEVER})
    assert right[WEIGHTS] in line
    assert NEVER in line
    assert store.versions("spinoza") == ()
    assert store.fetch("spinoza", source, right).sha256 == right


def test_one_damaged_transfer_refuses_nothing(store: Store, lab: ObjectStore, folder: Path) -> None:
    """What came wrong once is fetched again; the same wrong hash twice is what is there, unless asked for."""
    sha256 = sha256_of(folder)
    lab.faults.spoil = True
    assert "it was changed or damaged" in refusal(store, S3, sha256)
    lab.faults.spoil = False
    assert store.fetch("spinoza", S3, sha256).sha256 == sha256

    wrong = {WEIGHTS: NEVER}
    fetched = lab.sent[f"adapters/spinoza/{WEIGHTS}"]
    size = (folder / WEIGHTS).stat().st_size
    for times, is_damaged in ((1, True), (2, False), (3, False), (3, False)):
        lab.faults.spoil = is_damaged
        said = refusal(store, S3, wrong)
        assert lab.sent[f"adapters/spinoza/{WEIGHTS}"] == fetched + times * size
    assert "came so 2 times" in said
    assert str(next(store.root.glob(".parts/spinoza/*/refused.json"))) in said
    with pytest.raises(AdapterError, match="is pinned"):
        store.fetch("spinoza", S3, wrong, anew=True)
    assert lab.sent[f"adapters/spinoza/{WEIGHTS}"] == fetched + 4 * size


def test_the_digest_is_what_sha256sum_prints() -> None:
    """Anybody can compute a version's name with a shell."""
    sha256 = {"b": "1" * 64, "a": "2" * 64}
    text = f"{'1' * 64}  b\n{'2' * 64}  a\n"
    assert digest_of(sha256) == hashlib.sha256(text.encode()).hexdigest()


def test_what_is_pinned_and_there_asks_no_network(store: Store, lab: ObjectStore, folder: Path) -> None:
    """A pod that starts without its store serves what it has."""
    pinned = sha256_of(folder)
    version = store.fetch("spinoza", S3, pinned)
    lab.seen.clear()
    assert store.find("spinoza", pinned) == version
    assert store.fetch("spinoza", S3, pinned) == version
    assert lab.seen == []


def test_what_is_not_pinned_is_not_found(store: Store, lab: ObjectStore) -> None:
    """Nobody can know that a version on disk is the one that is wanted."""
    store.fetch("spinoza", S3)
    assert store.find("spinoza", {}) is None
    assert store.find("spinoza", {WEIGHTS: NEVER}) is None
    assert store.find("kant", {WEIGHTS: NEVER}) is None


def test_one_pinned_file_is_enough_to_find_a_version(store: Store, lab: ObjectStore, folder: Path) -> None:
    """The configuration need not be pinned for the weights to be known."""
    version = store.fetch("spinoza", S3)
    assert store.find("spinoza", {WEIGHTS: sha256_of(folder)[WEIGHTS]}) == version


def test_a_new_upload_is_a_new_version_beside_the_old(store: Store, lab: ObjectStore, folder: Path) -> None:
    """A folder that an engine may read never changes."""
    old = store.fetch("spinoza", S3)
    before = (old.folder / WEIGHTS).read_bytes()
    write_adapter(folder, seed=1)
    new = store.fetch("spinoza", S3)
    assert new.folder != old.folder
    assert (old.folder / WEIGHTS).read_bytes() == before
    assert store.versions("spinoza") == (new, old)


def test_the_same_content_from_elsewhere_is_the_same_version(
    store: Store, lab: ObjectStore, folder: Path
) -> None:
    """It is not stored twice, and where it was last found is remembered."""
    old = store.fetch("spinoza", S3)
    inode = (old.folder / WEIGHTS).stat().st_ino
    new = store.fetch("spinoza", parse(f"file:{folder}", Path()))
    assert new.folder == old.folder
    assert (new.folder / WEIGHTS).stat().st_ino == inode
    assert store.versions("spinoza")[0].source == f"file:{folder}"


def test_a_version_that_was_cut_short_is_not_used_and_comes_again(
    store: Store, lab: ObjectStore, folder: Path
) -> None:
    """The sizes are looked at, so that a disk's accident does not reach an engine."""
    version = store.fetch("spinoza", S3)
    (version.folder / WEIGHTS).chmod(0o644)
    (version.folder / WEIGHTS).write_bytes(b"")
    assert store.find("spinoza", sha256_of(folder)) is None
    assert store.fetch("spinoza", S3) == version
    assert (version.folder / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("gone", [CONFIG, WEIGHTS])
def test_an_adapter_without_one_of_its_files_is_refused(
    store: Store, source: Source, folder: Path, gone: str
) -> None:
    """The line names the file and where it was looked for."""
    (folder / gone).unlink()
    line = refusal(store, source)
    assert gone in line
    assert source.root in line


def test_pickled_weights_are_named_and_not_fetched(store: Store, lab: ObjectStore, folder: Path) -> None:
    """They could run anything."""
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    assert "pickle" in refusal(store, S3)
    assert lab.gets() == []


@pytest.mark.parametrize("name", ["../x", ".hidden", "a/b", ""])
def test_a_name_never_leaves_the_store(store: Store, lab: ObjectStore, name: str) -> None:
    """Names come from requests, too."""
    with pytest.raises(AdapterError, match="no name of an adapter"):
        store.fetch(name, S3)


@pytest.mark.parametrize(
    ("pins", "says"),
    [({WEIGHTS: "abc"}, "64 lowercase hex"), ({"other.bin": NEVER}, "pins other.bin, but its files are")],
)
def test_a_pin_that_cannot_be_right_is_refused(
    store: Store, lab: ObjectStore, pins: dict[str, str], says: str
) -> None:
    """A file that is pinned and never fetched would look checked."""
    assert says in refusal(store, S3, pins)


def test_a_folder_that_is_not_there_is_named(store: Store, tmp_path: Path) -> None:
    """The way out is in the line."""
    assert f"there is no folder {tmp_path / 'none'}" in refusal(store, parse("file:none", tmp_path))


def test_a_folder_that_changes_while_it_is_copied_is_copied_again(store: Store, folder: Path) -> None:
    """Training may still be writing."""
    write_adapter(folder, size=4 * MIB)

    def write(progress: Progress) -> None:
        if progress.what.endswith(WEIGHTS) and progress.done_bytes == 0 and not done:
            done.append(progress)
            with (folder / WEIGHTS).open("ab") as file:
                file.write(b"more")

    done: list[Progress] = []
    version = store.fetch("spinoza", parse(f"file:{folder}", Path()), told=write)
    assert version.sha256 == sha256_of(folder)


def test_a_folder_that_never_stays_the_same_is_given_up(store: Store, folder: Path) -> None:
    """The line says what to wait for."""

    def write(progress: Progress) -> None:
        with (folder / WEIGHTS).open("ab") as file:
            file.write(b"more")

    with pytest.raises(AdapterError, match="changes while it is copied: wait until it is written"):
        store.fetch("spinoza", parse(f"file:{folder}", Path()), told=write)


def test_files_of_two_uploads_are_not_mixed(store: Store, lab: ObjectStore, folder: Path) -> None:
    """An upload between the configuration and the weights is noticed, and both are of one state."""

    def upload(sent: int) -> None:
        lab.faults.on_bytes = None
        (folder / CONFIG).write_text('{"peft_type": "LORA", "r": 99}')

    lab.faults.on_bytes = lambda sent: upload(sent) if sent else None
    version = store.fetch("spinoza", S3)
    assert version.sha256 == sha256_of(folder)


def test_two_processes_that_want_the_same_fetch_it_once(store: Store, lab: ObjectStore, folder: Path) -> None:
    """The second waits for the first, and finds its work done."""
    write_adapter(folder, size=4 * MIB)
    lab.faults.bytes_per_s = 8 * MIB
    program = (
        "import sys; from pathlib import Path; from sive_adapters.store import Store; "
        "from sive_adapters.sources import parse; "
        "print(Store(Path(sys.argv[1])).fetch('spinoza', parse('s3://adapters/spinoza', Path())).folder)"
    )
    command = [sys.executable, "-c", program, str(store.root)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=60)[0] for process in both]
    assert told[0] == told[1]
    assert [process.returncode for process in both] == [0, 0]
    assert lab.sent[f"adapters/spinoza/{WEIGHTS}"] == 4 * MIB


def test_versions_that_nobody_needs_are_collected(store: Store, lab: ObjectStore, folder: Path) -> None:
    """What is not named stays."""
    old = store.fetch("spinoza", S3)
    write_adapter(folder, seed=1)
    new = store.fetch("spinoza", S3)
    kant = store.fetch("kant", S3)
    assert store.collect([old.folder, kant.folder]) == (kant.folder, old.folder)
    assert store.versions("spinoza") == (new,)
    assert store.versions("kant") == ()
    assert not list((store.root / ".parts").glob("*/*"))


def test_what_was_fetched_last_is_found_without_its_source(store: Store, source: Source) -> None:
    """But another revision is another version, however the hub does."""
    version = store.fetch("spinoza", source)
    assert store.latest("spinoza", source) == version
    assert store.latest("kant", source) is None
    assert store.latest("spinoza", replace(source, path="elsewhere")) is None
    if source.kind == "hf":
        assert store.latest("spinoza", parse(version.source, Path())) == version
        assert store.latest("spinoza", replace(source, revision="v2")) is None


def test_a_download_that_is_under_way_is_not_collected(
    store: Store, lab: ObjectStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a fresh part; one that nobody took up for a week is."""
    lab.faults = Faults(status=403, refusals=99)
    refusal(store, S3)
    part = store.root / ".parts" / "spinoza" / "abc"
    part.mkdir(parents=True)
    (part / "file.part").write_bytes(b"half")
    assert store.collect([]) == ()
    monkeypatch.setattr(store_module, "OLD_PART_S", 0.0)
    until(lambda: time.time() > part.stat().st_mtime + 0.001)
    assert store.collect([]) == (part,)


def test_a_version_is_a_value() -> None:
    """Two with the same content compare equal, and the short name is the folder's."""
    version = Version("a", "0123456789abcdef" * 4, Path("/x"), {})
    assert version.short == "0123456789ab"
