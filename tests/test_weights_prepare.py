"""``sive weights``: models from a hub over a real socket, folders, and what goes wrong."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sive.local import store
from sive.local.prepare import PACKAGE_ROOT

from tests.lab.hub import COMMIT, Faults, Hub
from tests.test_local_convert import write_gpt2

ROOT = Path(__file__).parent.parent
NAME = "openai-community/gpt2"
RIGHT = "hf_right"
COMMAND = "from sive_serve.cli.weights import app; app(prog_name='sive weights')"
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A GPT-2 of a few megabytes as it lies on a hub, with a file nobody needs."""
    folder = write_gpt2(tmp_path / "hf", width=128, layers=4)
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    return folder


def weights(
    tmp_path: Path, *arguments: str, program: str = COMMAND, hub: str = NOWHERE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``sive weights`` as a person does."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SIVE_"))}
    paths = [str(PACKAGE_ROOT), str(ROOT / "serve"), env.get("PYTHONPATH", "")]
    env |= {"PYTHONPATH": os.pathsep.join(paths), "HF_HOME": str(tmp_path / "hf-home"), "HF_ENDPOINT": hub}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1"} | environment
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def prepare(
    tmp_path: Path, model: str = NAME, hub: str = NOWHERE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``sive weights prepare`` into a folder of this test's own."""
    return weights(
        tmp_path, "prepare", model, "--weights-dir", str(tmp_path / "weights"), hub=hub, **environment
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a command that failed."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_model_is_downloaded_converted_and_listed(tmp_path: Path, folder: Path) -> None:
    """What a conversion needs is fetched and nothing else; the version is the hub's commit."""
    with Hub({NAME: folder}) as hub:
        done = prepare(tmp_path, hub=hub.url)
        fetched = {
            line.rpartition("/")[2] for line in hub.seen if line.startswith("GET") and "/resolve/" in line
        }
    assert done.returncode == 0, done.stderr
    assert fetched == {"config.json", "model.safetensors", "tokenizer.json"}
    (info,) = store.prepared(tmp_path / "weights")
    assert (info.name, info.weights) == (NAME, f"{NAME}@{COMMIT[:12]}-int8")
    where = ("--weights-dir", str(tmp_path / "weights"))
    assert weights(tmp_path, "list", *where).stdout.split("\t")[0] == NAME
    assert weights(tmp_path, "path", NAME, *where).stdout.strip() == str(info.path)


def test_a_second_time_nothing_is_done_also_without_a_network(tmp_path: Path, folder: Path) -> None:
    """What is prepared stays: a start script may prepare on every start."""
    with Hub({NAME: folder}) as hub:
        assert prepare(tmp_path, hub=hub.url).returncode == 0
        made = [file.stat() for file in sorted((tmp_path / "weights").glob("*/*"))]
        assert prepare(tmp_path, hub=hub.url).returncode == 0
    offline = prepare(tmp_path)
    assert offline.returncode == 0, offline.stderr
    assert [file.stat().st_mtime_ns for file in sorted((tmp_path / "weights").glob("*/*"))] == [
        stat.st_mtime_ns for stat in made
    ]


def test_progress_is_told_in_bytes_and_then_in_steps(tmp_path: Path, folder: Path) -> None:
    """A person sees how far the download is, up to its last byte, then the conversion."""
    program = (
        "import sys; from pathlib import Path; from sive.local.prepare import prepare\n"
        "prepare(sys.argv[1], Path(sys.argv[2]), told=lambda *told: print(*told))"
    )
    size = sum((folder / name).stat().st_size for name in ("model.safetensors", "tokenizer.json"))
    with Hub({NAME: folder}) as hub:
        done = weights(tmp_path, NAME, str(tmp_path / "weights"), program=program, hub=hub.url)
    told = done.stdout.splitlines()
    assert f"download {size} {size}" in told, done.stderr
    assert told[-1] == "convert 5 5"


def test_a_download_that_is_cut_goes_on(tmp_path: Path, folder: Path) -> None:
    """A connection lost in the middle costs a second try, not the model."""
    with Hub({NAME: folder}, Faults(cut_after=200_000, cuts=1)) as hub:
        done = prepare(tmp_path, hub=hub.url)
        assert hub.faults.cuts == 0
    assert done.returncode == 0, done.stderr
    assert len(store.prepared(tmp_path / "weights")) == 1


def test_weights_damaged_on_the_way_are_refused_and_fetched_again(tmp_path: Path, folder: Path) -> None:
    """The hub's SHA-256 is checked, and what was spoilt is not kept in the cache."""
    with Hub({NAME: folder}, Faults(spoil=True)) as hub:
        assert "damaged on the way" in one_line(prepare(tmp_path, hub=hub.url))
        assert store.prepared(tmp_path / "weights") == []
        hub.faults.spoil = False
        assert prepare(tmp_path, hub=hub.url).returncode == 0


def test_without_a_network_it_says_so_at_once(tmp_path: Path) -> None:
    """One line that names the model and the hub, within seconds."""
    began = time.monotonic()
    line = one_line(prepare(tmp_path))
    assert time.monotonic() - began < 8
    assert NAME in line
    assert f"{NOWHERE} is not reachable" in line


@pytest.mark.parametrize(
    ("faults", "name", "says"),
    [
        (Faults(), "nobody/nothing", "has no model 'nobody/nothing' for us"),
        (Faults(token=RIGHT), NAME, "HF_TOKEN"),
        (Faults(gated=True), NAME, "is gated: accept its terms"),
        (Faults(), "no/model/name", "neither a folder nor a model's name"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    tmp_path: Path, folder: Path, faults: Faults, name: str, says: str
) -> None:
    """An unknown, private, gated or impossible name is named, with the way out."""
    with Hub({NAME: folder}, faults) as hub:
        assert says in one_line(prepare(tmp_path, name, hub=hub.url))


def test_a_token_opens_a_private_model(tmp_path: Path, folder: Path) -> None:
    """HF_TOKEN is sent, as everywhere else."""
    with Hub({NAME: folder}, Faults(token=RIGHT)) as hub:
        done = prepare(tmp_path, hub=hub.url, HF_TOKEN=RIGHT)
    assert done.returncode == 0, done.stderr


def test_another_architecture_is_refused_before_its_weights_are_fetched(tmp_path: Path, folder: Path) -> None:
    """Gigabytes are not downloaded only to be turned away."""
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    with Hub({NAME: folder}) as hub:
        assert "model_type is 'qwen2'" in one_line(prepare(tmp_path, hub=hub.url))
        assert not [line for line in hub.seen if line.endswith("model.safetensors")]


def test_a_model_without_safetensors_is_refused(tmp_path: Path, folder: Path) -> None:
    """Pickled weights are not read."""
    (folder / "model.safetensors").unlink()
    with Hub({NAME: folder}) as hub:
        assert "has no model.safetensors" in one_line(prepare(tmp_path, hub=hub.url))


def test_a_folder_is_prepared_without_a_hub(tmp_path: Path, folder: Path) -> None:
    """A path instead of a name asks nobody."""
    assert prepare(tmp_path, str(folder)).returncode == 0
    assert [info.name for info in store.prepared(tmp_path / "weights")] == ["hf"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, folder: Path) -> None:
    """The error names the model and where it should have gone."""
    (tmp_path / "weights").write_text("a file")
    line = one_line(prepare(tmp_path, str(folder)))
    assert f"'hf' cannot be stored in {tmp_path / 'weights'}" in line


def test_help_shows_an_example(tmp_path: Path) -> None:
    """A person copies a line rather than reading a grammar."""
    assert "sive weights prepare openai-community/gpt2" in weights(tmp_path, "prepare", "--help").stdout
