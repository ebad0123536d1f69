"""``sive weights fetch``: a whole model, from the first place that has it."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import clean_environment, until
from tests.lab.buckets import MIB, VARIABLES, environment, hears_ctrl_c
from tests.lab.gcs import ObjectStore
from tests.lab.hub import COMMIT, Hub

MODEL = "org/qwen-tiny"
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens
FILES = {
    "config.json": b"{}",
    "generation_config.json": b"{ }",
    "tokenizer.json": b"{  }",
    "merges.txt": b"a b",
    "model-00001-of-00002.safetensors": b"weights one",
    "model-00002-of-00002.safetensors": b"weights two",
}
OTHERS = {
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"twice",
    "README.md": b"#",
    ".gitattributes": b"",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as it lies on a hub and in a bucket, with what nobody needs."""
    folder = tmp_path / "objects" / "models" / "qwen-tiny"
    folder.mkdir(parents=True)
    for name, content in (FILES | OTHERS).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    """A hub with that model."""
    with Hub({MODEL: folder}) as hub:
        yield hub


@pytest.fixture
def lab(tmp_path: Path, folder: Path) -> Iterator[ObjectStore]:
    """An object store with that model."""
    with ObjectStore(tmp_path / "objects") as lab:
        yield lab


def command(tmp_path: Path, *arguments: str) -> list[str]:
    """The command, into a folder of this test's own."""
    return [
        sys.executable,
        "-m",
        "sive_serve.cli",
        "weights",
        "fetch",
        *arguments,
        "--to",
        str(tmp_path / "to"),
    ]


def said_to(tmp_path: Path, **variables: str) -> dict[str, str]:
    """An environment that leads nowhere but where it is said."""
    env = {name: value for name, value in clean_environment().items() if not name.startswith(VARIABLES)}
    del env["SIVE_OFFLINE"]
    return env | {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": NOWHERE} | variables


def fetch(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``sive weights fetch`` as a start script does."""
    return subprocess.run(
        command(tmp_path, *arguments),
        env=said_to(tmp_path, **variables),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def content(done: "subprocess.CompletedProcess[str]") -> dict[str, bytes]:
    """What is in the folder that was printed."""
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return {path.name: path.read_bytes() for path in Path(line).iterdir() if path.name != "sive.json"}


def steps(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """The first two words of each line: the place, and whether it was taken."""
    return [" ".join(line.split(": ")[:2]) for line in done.stderr.splitlines()]


def test_a_model_comes_from_the_hub(tmp_path: Path, hub: Hub) -> None:
    """What vLLM reads and nothing else; the printed folder is all that is on stdout."""
    done = fetch(tmp_path, MODEL, HF_ENDPOINT=hub.url)
    assert content(done) == FILES
    assert steps(done) == ["hub taken"]
    assert f"hf://{MODEL}@{COMMIT} is in" in done.stderr


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_a_model_comes_from_a_bucket(tmp_path: Path, lab: ObjectStore, scheme: str) -> None:
    """By its address, with the environment's credentials; each file once."""
    done = fetch(tmp_path, f"{scheme}://models/qwen-tiny", **environment(lab))
    assert content(done) == FILES
    assert steps(done) == ["bucket taken"]
    assert sorted(lab.gets()) == sorted(["models", *(f"models/qwen-tiny/{name}" for name in FILES)])


def test_a_folder_is_taken_as_it_is(tmp_path: Path, folder: Path) -> None:
    """Nothing is copied."""
    done = fetch(tmp_path, str(folder))
    assert done.stdout.strip() == str(folder)
    assert not (tmp_path / "to").exists()


def test_the_environment_of_a_deployment_is_gone_through_in_order(
    tmp_path: Path, lab: ObjectStore, hub: Hub, folder: Path
) -> None:
    """This disk, then the bucket, then the hub; each step says why."""
    everything = environment(lab) | {
        "HF_LOCAL_MODEL_PATH": str(folder),
        "SIVE_WEIGHTS_URL": "gs://models/qwen-tiny",
        "IA_MODEL": MODEL,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_x",
    }
    order = ["local", "bucket", "hub"]
    for number, gone in enumerate([None, "HF_LOCAL_MODEL_PATH", "SIVE_WEIGHTS_URL"]):
        if gone is not None:
            del everything[gone]
        done = fetch(tmp_path, **everything)
        assert done.returncode == 0, done.stderr
        assert steps(done) == [f"{place} no" for place in order[:number]] + [f"{order[number]} taken"]
    assert "HF_LOCAL_MODEL_PATH is not set" in done.stderr


def test_a_named_model_is_never_another_one(tmp_path: Path, lab: ObjectStore, hub: Hub, folder: Path) -> None:
    """What the environment names is not taken for what was asked for."""
    other = folder.parent / "other"
    other.mkdir()
    variables = {"HF_LOCAL_MODEL_PATH": str(folder), "SIVE_WEIGHTS_URL": "s3://models/qwen-tiny"}
    done = fetch(tmp_path, "org/another", HF_ENDPOINT=hub.url, **variables, **environment(lab))
    assert done.returncode == 3
    assert steps(done) == ["hub no", "api no", "gpt2 taken"]


def test_without_weights_the_api_is_left(tmp_path: Path) -> None:
    """Its exit status is one of its own, and nothing stands on stdout."""
    done = fetch(tmp_path, IA_MODEL="org/model", HF_TOKEN="hf_very_secret")  # noqa: S106 - not a real one
    assert (done.returncode, done.stdout) == (3, "")
    assert steps(done) == ["local no", "bucket no", "hub no", "api taken"]
    assert "can answer with org/model" in done.stderr
    assert "hf_very_secret" not in done.stderr


def test_without_a_token_the_cpu_is_left(tmp_path: Path) -> None:
    """The last line says that it is another voice."""
    done = fetch(tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert steps(done) == ["local no", "bucket no", "hub no", "api no", "gpt2 taken"]
    assert "another voice" in done.stderr.splitlines()[-1]


def test_a_folder_without_weights_is_passed_over(tmp_path: Path, hub: Hub) -> None:
    """The reason is said, and the next place is asked."""
    (tmp_path / "empty").mkdir()
    done = fetch(tmp_path, HF_LOCAL_MODEL_PATH=str(tmp_path / "empty"), IA_MODEL=MODEL, HF_ENDPOINT=hub.url)
    assert steps(done) == ["local no", "bucket no", "hub taken"]
    assert "has no config.json" in done.stderr


def test_what_was_fetched_before_is_used_without_a_network(
    tmp_path: Path, hub: Hub, lab: ObjectStore
) -> None:
    """A pod starts again when the hub is down, and says why it did not look."""
    first = fetch(tmp_path, MODEL, HF_ENDPOINT=hub.url)
    hub.seen.clear()
    again = fetch(tmp_path, MODEL, HF_ENDPOINT=hub.url)
    assert again.stdout == first.stdout
    assert not [line for line in hub.seen if "/resolve/" in line]
    offline = fetch(tmp_path, MODEL)
    assert offline.stdout == first.stdout
    assert "is not reachable" in offline.stderr
    forbidden = fetch(tmp_path, MODEL, SIVE_OFFLINE="1", HF_ENDPOINT=hub.url)
    assert forbidden.stdout == first.stdout
    assert "SIVE_OFFLINE is set" in forbidden.stderr


def test_a_model_in_the_hubs_own_cache_is_not_fetched_again(tmp_path: Path, hub: Hub) -> None:
    """Whoever has it from elsewhere keeps one copy."""
    program = (
        "from huggingface_hub import snapshot_download; "
        f"print(snapshot_download({MODEL!r}, endpoint={hub.url!r}, ignore_patterns='*.bin'))"
    )
    cached = subprocess.run(
        [sys.executable, "-c", program],
        env=said_to(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    done = fetch(tmp_path, MODEL)
    assert done.stdout == cached.stdout
    assert "is in the hub's cache" in done.stderr
    next(Path(done.stdout.strip()).glob("model-00002*")).unlink()
    assert fetch(tmp_path, MODEL).returncode == 3


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("config.json", "has no config.json"),
        ("model-00001-of-00002.safetensors", "lacks model-00001-of-00002.safetensors"),
    ],
)
def test_a_model_that_lacks_a_part_is_refused(
    tmp_path: Path, lab: ObjectStore, folder: Path, gone: str, says: str
) -> None:
    """Before anything of it is fetched."""
    (folder / gone).unlink()
    done = fetch(tmp_path, "az://models/qwen-tiny", **environment(lab))
    assert done.returncode == 3
    assert says in done.stderr
    assert lab.sent.total() == 0


def test_sums_beside_the_weights_are_checked(tmp_path: Path, lab: ObjectStore, folder: Path) -> None:
    """What ``sha256sum *`` printed when they were uploaded."""
    lines = [f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in FILES.items()]
    (folder / "SHA256SUMS").write_text("".join(lines))
    assert content(fetch(tmp_path, "s3://models/qwen-tiny", **environment(lab))) == FILES
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"weights TWO")
    damaged = fetch(tmp_path, "s3://models/qwen-tiny", **environment(lab))
    assert "model-00002-of-00002.safetensors from s3://models/qwen-tiny has the SHA-256" in damaged.stderr
    # The one that was right before is still there.
    assert content(damaged) == FILES


def test_ctrl_c_is_one_line_and_keeps_what_is_there(tmp_path: Path, lab: ObjectStore, folder: Path) -> None:
    """The next run goes on."""
    (folder / "model-00001-of-00002.safetensors").write_bytes(os.urandom(8 * MIB))
    lab.faults.bytes_per_s = 2 * MIB
    process = subprocess.Popen(
        command(tmp_path, "s3://models/qwen-tiny"),
        env=said_to(tmp_path, **environment(lab)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )
    until(lambda: lab.sent.total() > 3 * MIB, 60, "some of the weights")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines() == ["sive: stopped; what was fetched is kept, so ask again"]
    lab.faults.bytes_per_s = None
    until(lambda: lab.running == 0, 30, "the end of all answers")
    lab.sent.clear()
    content(fetch(tmp_path, "s3://models/qwen-tiny", **environment(lab)))
    assert 0 < lab.sent["models/qwen-tiny/model-00001-of-00002.safetensors"] < 8 * MIB


def test_help_shows_an_example(tmp_path: Path) -> None:
    """A person copies a line rather than reading a grammar."""
    assert "sive serve --engine $(sive weights fetch" in fetch(tmp_path, "--help").stdout
