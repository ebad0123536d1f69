"""Downloads over real sockets: what happens to them on the way, and what a person is told."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sive.errors import AdapterError
from sive_adapters import disk, download, part
from sive_adapters.download import Bucket
from sive_adapters.hashing import Follower
from sive_adapters.meter import EVERY_S
from sive_adapters.object_store import Patience
from sive_adapters.part import (
    CONNECTIONS,
    FIRST_PIECE_BYTES,
    LAST_PIECE_BYTES,
    PIECE_BYTES,
    Part,
    Stat,
    merged,
    missing,
)
from sive_adapters.progress import Progress, Told, nobody
from sive_adapters.sources import parse
from sive_adapters.store import Store, Version

from tests.conftest import until
from tests.lab.buckets import MIB, QUICK, VARIABLES, WEIGHTS, environment, hears_ctrl_c, write_adapter
from tests.lab.gcs import Faults, ObjectStore

KEY = f"adapters/spinoza/{WEIGHTS}"
SIZE = 24 * MIB
S3 = parse("s3://adapters/spinoza", Path())

FETCH = (
    "import sys; from pathlib import Path; from sive_adapters.store import Store; "
    "from sive_adapters.sources import parse; "
    "print(Store(Path(sys.argv[1])).fetch('spinoza', parse('s3://adapters/spinoza', Path())).folder)"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter of several pieces, as it lies in a bucket."""
    return write_adapter(tmp_path / "objects" / "adapters" / "spinoza", size=SIZE)


@pytest.fixture
def lab(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """An object store with that adapter, which the environment leads to."""
    for name in list(os.environ):
        if name.startswith(VARIABLES):
            monkeypatch.delenv(name)
    with ObjectStore(tmp_path / "objects") as lab:
        for name, value in environment(lab).items():
            monkeypatch.setenv(name, value)
        yield lab


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the store of adapters is."""
    return tmp_path / "store"


def fetch(root: Path, source: str = "s3://adapters/spinoza", told: Told = nobody) -> Version:
    """Fetch the adapter, with little patience."""
    return Store(root, patience=QUICK).fetch("spinoza", parse(source, Path()), told=told)


def refusal(root: Path, source: str = "s3://adapters/spinoza", patience: Patience = QUICK) -> str:
    """The one line that says why it cannot be fetched."""
    with pytest.raises(AdapterError) as caught:
        Store(root, patience=patience).fetch("spinoza", parse(source, Path()))
    assert "\n" not in str(caught.value)
    assert "very-secret" not in str(caught.value)
    return str(caught.value)


def is_whole(version: Version, folder: Path) -> bool:
    """Is it byte for byte what the store has, with the hash it says?"""
    content = (version.folder / WEIGHTS).read_bytes()
    is_hashed = version.sha256[WEIGHTS] == hashlib.sha256(content).hexdigest()
    return is_hashed and content == (folder / WEIGHTS).read_bytes()


def upload_soon(lab: ObjectStore, folder: Path) -> None:
    """Once some of large weights were sent, others are put in their place; most pieces are still to come."""

    def upload(sent: int) -> None:
        if sent > 4 * MIB:
            lab.faults.on_bytes = None
            other.replace(folder / WEIGHTS)

    other = write_adapter(folder.with_name("other"), size=64 * MIB) / WEIGHTS
    write_adapter(folder, size=64 * MIB)
    lab.faults.on_bytes, lab.faults.bytes_per_s = upload, 200 * MIB


def break_down_half_way(lab: ObjectStore) -> None:
    """From half of the weights on, every connection is cut before it brings a byte."""

    def cut(sent: int) -> None:
        if sent > SIZE / 2:
            lab.faults.on_bytes, lab.faults.cut_after, lab.faults.cuts = None, 0, 10**6

    lab.faults = Faults(on_bytes=cut)


def forget_what_was_sent(lab: ObjectStore) -> None:
    """Begin to count anew, once nothing is on its way to a client that is gone."""
    lab.faults.bytes_per_s = None
    until(lambda: lab.running == 0, 30, "the end of all answers")
    lab.sent.clear()


def start(root: Path) -> "subprocess.Popen[str]":
    """Fetch in a process of its own."""
    command = [sys.executable, "-c", FETCH, str(root)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )


# --- on the way ---


def test_a_large_file_comes_in_pieces_at_once(root: Path, lab: ObjectStore, folder: Path) -> None:
    """Every byte once, over several connections."""
    assert is_whole(fetch(root), folder)
    assert lab.sent[KEY] == SIZE
    assert len(lab.gets()) > CONNECTIONS / 2


@pytest.mark.parametrize("cuts", [1, 5])
def test_a_connection_that_is_cut_goes_on_where_it_was(
    root: Path, lab: ObjectStore, folder: Path, cuts: int
) -> None:
    """What had come is not fetched again, but for the last chunk."""
    lab.faults = Faults(cut_after=MIB, cuts=cuts)
    assert is_whole(fetch(root), folder)
    assert lab.faults.cuts == 0
    assert lab.sent[KEY] < SIZE + cuts * 4 * MIB


def test_a_line_that_is_cut_all_the_time_still_gets_there(root: Path, lab: ObjectStore, folder: Path) -> None:
    """Smaller chunks are taken from a connection that does not last."""
    (folder / WEIGHTS).write_bytes(os.urandom(3 * MIB))
    lab.faults = Faults(cut_after=600_000, cuts=10**6)
    assert is_whole(fetch(root), folder)


def test_a_connection_that_brings_nothing_is_given_up(root: Path, lab: ObjectStore, folder: Path) -> None:
    """Another takes over from there."""
    lab.faults = Faults(cut_after=2 * MIB, stalls=2)
    assert is_whole(fetch(root), folder)
    assert lab.faults.stalls == 0


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_what_may_pass_is_tried_again(root: Path, lab: ObjectStore, folder: Path, status: int) -> None:
    """A store that is busy for a moment costs a moment."""
    lab.faults = Faults(status=status, refusals=3)
    assert is_whole(fetch(root), folder)


def test_an_object_that_changes_is_begun_again(root: Path, lab: ObjectStore, folder: Path) -> None:
    """The store refuses to give the tail of the next upload to the head of the last."""
    upload_soon(lab, folder)
    assert is_whole(fetch(root), folder)
    assert lab.statuses[412] > 0


def test_an_object_that_never_stays_the_same_is_given_up(root: Path, lab: ObjectStore, folder: Path) -> None:
    """After a few times the person is told to wait."""
    (folder / WEIGHTS).write_bytes(os.urandom(SIZE))
    changes = iter(range(10**9))

    def upload(sent: int) -> None:
        os.utime(folder / WEIGHTS, ns=(0, 10**18 + next(changes) * 10**9))

    lab.faults.on_bytes = upload
    assert "changed 4 times while it was fetched" in refusal(root)


def test_a_server_that_ignores_if_match_is_seen_through(
    tmp_path: Path, lab: ObjectStore, folder: Path
) -> None:
    """The ETag of every answer is compared as well."""
    upload_soon(lab, folder)
    lab.faults.obeys_if_match = False
    bucket = Bucket(S3, QUICK)
    (tmp_path / "files").mkdir()
    digest, _ = bucket.fetch(WEIGHTS, bucket.look([WEIGHTS])[WEIGHTS], tmp_path, what="", told=nobody)
    assert digest == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert digest == hashlib.sha256((tmp_path / "files" / WEIGHTS).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "faults",
    [
        Faults(weak_etags=True),
        Faults(etags=False),
        Faults(ranges=False),
        Faults(ranges=False, etags=False),
        Faults(ranges=False, cut_after=5 * MIB, cuts=2),
    ],
    ids=["weak etags", "no etags", "no ranges", "neither", "no ranges and cut"],
)
def test_a_web_server_that_can_little_is_enough(
    root: Path, lab: ObjectStore, folder: Path, faults: Faults
) -> None:
    """Ranges and ETags are used where they are."""
    lab.faults = faults
    assert is_whole(fetch(root, f"{lab.url}/adapters/spinoza"), folder)


def test_an_empty_file_is_a_file(root: Path, lab: ObjectStore, folder: Path) -> None:
    """Nothing is asked for where there is nothing."""
    (folder / WEIGHTS).write_bytes(b"")
    assert is_whole(fetch(root), folder)


# --- what a person is told ---


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        (Faults(status=403, refusals=99), "refuses access: set AWS_ACCESS_KEY_ID"),
        (Faults(status=401, refusals=99), "refuses access: set AWS_ACCESS_KEY_ID"),
        (Faults(status=301, refusals=99), "set AWS_REGION"),
        (Faults(status=400, refusals=99), "the store answered 400"),
        (Faults(status=503, refusals=99), "the store answered 503, 4 times"),
        (Faults(cut_after=0, cuts=10**6), "the connection was cut, 4 times in a row"),
        (Faults(cut_after=0, stalls=10**6), "it did not answer in time, 4 times in a row"),
    ],
    ids=["403", "401", "301", "400", "503", "cut", "stall"],
)
def test_what_stays_wrong_is_one_line(root: Path, lab: ObjectStore, faults: Faults, says: str) -> None:
    """It names the object and the way out, never a key or a signed address."""
    lab.faults = faults
    line = refusal(root, patience=Patience(connect_s=1, stall_s=0.3, tries=4, pause_s=0.01))
    assert says in line
    assert "s3://adapters/spinoza" in line


def test_a_store_that_is_not_there_is_named(
    root: Path, lab: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, unknown, or not speaking TLS: which it was."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "it refused the connection" in refusal(root)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://nosuch.invalid")
    assert "its name was not found" in refusal(root)
    monkeypatch.setenv("AWS_ENDPOINT_URL", lab.url.replace("http:", "https:"))
    assert "its certificate or TLS failed" in refusal(root)


def test_without_tls_only_where_it_was_said(
    root: Path, lab: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys do not go over a wire in the open because an address was mistyped."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("GOOGLE_BASE_URL", "https://127.0.0.1:9")
    assert "it refused the connection" in refusal(root, "gs://adapters/spinoza")


def test_credentials_that_cannot_be_used_are_named_and_not_shown(
    root: Path, lab: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says which variables to set."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", "very-secret")
    assert "set GOOGLE_APPLICATION_CREDENTIALS" in refusal(root, "gs://adapters/spinoza")


def test_progress_is_told_up_to_the_last_byte_and_not_too_often(
    root: Path, lab: ObjectStore, folder: Path
) -> None:
    """A bar can be drawn from it, and a heartbeat."""
    lab.faults.bytes_per_s = 2 * SIZE
    told: list[tuple[float, Progress]] = []
    fetch(root, told=lambda progress: told.append((time.monotonic(), progress)))
    weights = [(at, progress) for at, progress in told if progress.what == f"spinoza: {WEIGHTS}"]
    done = [progress.done_bytes for _, progress in weights]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, SIZE)
    assert {progress.total_bytes for _, progress in weights} == {SIZE}
    gaps = [after - before for (before, _), (after, _) in pairwise(weights[:-1])]
    assert min(gaps) > EVERY_S * 0.9


# --- killed, stopped, resumed ---


def test_after_a_kill_only_what_was_not_finished_is_fetched_again(
    root: Path, lab: ObjectStore, folder: Path
) -> None:
    """SIGKILL in the middle; every piece that was whole is kept."""
    (folder / WEIGHTS).write_bytes(os.urandom(MIB) * 96)
    size = 96 * MIB
    lab.faults.bytes_per_s = 64 * MIB
    process = start(root)
    until(lambda: lab.sent[KEY] > size * 0.6, 60, "more than half of the file")
    process.kill()
    process.communicate()
    (sidecar,) = root.glob(f".parts/spinoza/*/{WEIGHTS}.part.json")
    onto = Part(sidecar.with_suffix(""), stat_of(lab, folder))
    with onto:
        kept = sum(end - start for start, end in onto.written)
    assert kept > 0
    forget_what_was_sent(lab)
    assert is_whole(fetch(root), folder)
    assert lab.sent[KEY] == size - kept


def test_killed_at_any_moment_the_file_is_right_in_the_end(
    root: Path, lab: ObjectStore, folder: Path
) -> None:
    """Ten kills, wherever they fall, and then it is left alone."""
    lab.faults.bytes_per_s = 40 * MIB
    for number in range(10):
        before = lab.sent.total()
        process = start(root)
        until(
            lambda: lab.sent.total() > before + number * 500_000 or process.poll() is not None,  # noqa: B023
            60,
            "some bytes",
        )
        process.kill()
        process.communicate()
        assert not [path for path in root.glob("spinoza/*") if not (path / "sive.json").is_file()]
    assert is_whole(fetch(root), folder)


def test_ctrl_c_keeps_what_is_there(root: Path, lab: ObjectStore, folder: Path) -> None:
    """The process ends at once, and the next one goes on."""
    lab.faults.bytes_per_s = 8 * MIB
    process = start(root)
    until(lambda: lab.sent[KEY] > SIZE * 0.75, 60, "most of the file")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=5)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in said
    forget_what_was_sent(lab)
    assert is_whole(fetch(root), folder)
    assert lab.sent[KEY] < SIZE


def test_a_part_of_another_upload_is_not_taken_up(root: Path, lab: ObjectStore, folder: Path) -> None:
    """What was fetched before the change is thrown away."""
    break_down_half_way(lab)
    assert "the connection was cut" in refusal(root)
    assert list(root.glob(f".parts/spinoza/*/{WEIGHTS}.part"))
    write_adapter(folder, size=SIZE)
    lab.faults = Faults()
    assert is_whole(fetch(root), folder)


def stat_of(lab: ObjectStore, folder: Path) -> Stat:
    """What the lab says of the weights."""
    return Bucket(S3, QUICK).look([WEIGHTS])[WEIGHTS]


STAT = Stat(10 * MIB, '"etag"')


def test_after_a_crash_of_the_machine_only_what_was_synced_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest may never have reached the disk, though the file is as long as if it had."""
    with Part(tmp_path / "x", STAT) as onto:
        onto.add((0, 4 * MIB))
        onto.sync()
        onto.add((4 * MIB, 8 * MIB))
    with Part(tmp_path / "x", STAT) as onto:
        assert onto.written == [(0, 8 * MIB)]
    monkeypatch.setattr(part, "_boot", lambda: "another")
    with Part(tmp_path / "x", STAT) as onto:
        assert onto.written == [(0, 4 * MIB)]


@pytest.mark.parametrize(
    "said",
    ["", "{", "[]", "{}", '{"of": [10485760, "\\"etag\\"", null], "boot": "", "written": [[0, 1]]}'],
)
def test_a_sidecar_that_makes_no_sense_is_as_good_as_none(tmp_path: Path, said: str) -> None:
    """A half written one, or one of another program."""
    with Part(tmp_path / "x", STAT) as onto:
        onto.add((0, 4 * MIB))
    (tmp_path / "x.json").write_text(said)
    with Part(tmp_path / "x", STAT) as onto:
        assert onto.written == []


def test_a_file_whose_changes_could_not_be_seen_is_not_resumed(tmp_path: Path) -> None:
    """Without an ETag or a time the rest could be of another upload."""
    unknown = Stat(10 * MIB)
    with Part(tmp_path / "x", unknown) as onto:
        onto.add((0, 4 * MIB))
    with Part(tmp_path / "x", unknown) as onto:
        assert onto.written == []


def test_a_program_that_is_done_at_once_ends_well(root: Path, lab: ObjectStore, folder: Path) -> None:
    """Nothing of obstore is left that would abort it: without care one in ten dies."""
    write_adapter(folder)
    fetch(root)
    for _ in range(8):
        programs = [start(root) for _ in range(4)]
        for program in programs:
            program.communicate(timeout=60)
        assert [program.returncode for program in programs] == [0, 0, 0, 0]


# --- the disk ---


def test_a_disk_without_room_is_found_out_before_the_download(root: Path, lab: ObjectStore) -> None:
    """The line says how much is needed and how much is free."""
    with pytest.raises(AdapterError) as caught:
        Store(root, patience=QUICK, free_bytes=lambda folder: 30_000_000).fetch("spinoza", S3)
    assert "has 30 MB free, 26 MB are to be fetched" in str(caught.value)
    assert lab.gets() == []


def test_room_is_only_asked_for_what_is_still_to_come(root: Path, lab: ObjectStore, folder: Path) -> None:
    """A download that was stopped near its end fits where it fitted before."""
    break_down_half_way(lab)
    assert "the connection was cut" in refusal(root)
    lab.faults = Faults()

    def free(folder: Path) -> int:
        return SIZE * 3 // 4 + disk.MARGIN_BYTES

    with pytest.raises(AdapterError, match="are to be fetched"):
        Store(root.with_name("empty"), patience=QUICK, free_bytes=free).fetch("spinoza", S3)
    assert is_whole(Store(root, patience=QUICK, free_bytes=free).fetch("spinoza", S3), folder)


def test_a_disk_that_fills_up_on_the_way_is_one_line(root: Path, lab: ObjectStore) -> None:
    """And what is there stays, for when there is room."""
    limit = SIZE // 2

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    program = FETCH.replace("print(", "import sive.errors\ntry: print(") + (
        "\nexcept sive.errors.AdapterError as exc: print(exc)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(root)],
        preexec_fn=small,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith("the disk is full: spinoza does not fit into"), done.stderr
    assert len(done.stdout.splitlines()) == 1


# --- the parts ---

RANGES = st.lists(
    st.tuples(st.integers(0, 300 * MIB), st.integers(1, 40 * MIB)).map(lambda pair: (pair[0], sum(pair))),
    max_size=8,
)


@given(size=st.integers(0, 300 * MIB), written=RANGES)
def test_the_pieces_cover_what_is_missing_and_nothing_twice(
    size: int, written: list[tuple[int, int]]
) -> None:
    """In order, none larger than a piece, whatever was there before."""
    inside = merged((min(start, size), min(end, size)) for start, end in written if start < size)
    pieces = missing(size, inside)
    assert merged([*pieces, *inside]) == ([(0, size)] if size else [])
    assert sum(end - start for start, end in [*pieces, *inside]) == size
    assert pieces == sorted(pieces)
    assert all(0 < end - start <= PIECE_BYTES for start, end in pieces)


def test_the_first_and_the_last_pieces_are_small() -> None:
    """So that the hash begins early, all connections end together, and it is not far behind."""
    lengths = [end - start for start, end in missing(550 * MIB, [])]
    assert all(length <= FIRST_PIECE_BYTES for length in lengths[:CONNECTIONS])
    assert max(lengths) == PIECE_BYTES
    assert all(length <= LAST_PIECE_BYTES for length in lengths[-CONNECTIONS:])


def test_only_what_is_there_without_a_gap_waits_to_be_hashed(tmp_path: Path) -> None:
    """What lies behind a gap holds no connection up that is to fill it."""
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * MIB))
    fd = os.open(path, os.O_RDWR)
    try:
        with Follower(fd, 3 * MIB, [(MIB, 3 * MIB)]) as follower:
            assert follower.backlog_bytes == 0
            follower.add((0, MIB))
            follower.hexdigest()
            assert follower.backlog_bytes == 0
    finally:
        os.close(fd)


def test_what_is_hashed_slowly_is_not_fetched_far_ahead(
    root: Path, lab: ObjectStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No piece is begun while much waits to be hashed; then it goes on, and the file is right."""
    monkeypatch.setattr(download, "BACKLOG_BYTES", MIB)
    follow, backlog, sent, looks = Follower._follow, Follower.backlog_bytes, list[int](), list[int]()

    def later(follower: Follower) -> None:
        if follower._size > MIB:
            until(lambda: len(looks) > 100 * CONNECTIONS, 30, "all connections wait")
            sent.append(lab.sent[KEY])
        follow(follower)

    def looked(follower: Follower) -> int:
        looks.append(backlog.__get__(follower))
        return looks[-1]

    monkeypatch.setattr(Follower, "_follow", later)
    monkeypatch.setattr(Follower, "backlog_bytes", property(looked))
    (folder / WEIGHTS).write_bytes(os.urandom(MIB) * 64)
    assert is_whole(fetch(root), folder)
    assert sent[0] <= 2 * CONNECTIONS * FIRST_PIECE_BYTES


@given(st.randoms(use_true_random=False), st.integers(0, 12))
def test_a_file_is_hashed_in_order_however_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, random: "object", count: int
) -> None:
    """The thread waits for a gap to be filled."""
    pieces = [os.urandom(1 + number * 1000) for number in range(count)]
    ends = [sum(map(len, pieces[: number + 1])) for number in range(count)]
    order = list(range(count))
    random.shuffle(order)  # type: ignore[attr-defined]
    path = tmp_path_factory.mktemp("hash") / "file"
    path.touch()
    fd = os.open(path, os.O_RDWR)
    try:
        with Follower(fd, sum(map(len, pieces)), []) as follower:
            for number in order:
                at = ends[number] - len(pieces[number])
                os.pwrite(fd, pieces[number], at)
                follower.add((at, ends[number]))
            assert follower.hexdigest() == hashlib.sha256(b"".join(pieces)).hexdigest()
    finally:
        os.close(fd)
