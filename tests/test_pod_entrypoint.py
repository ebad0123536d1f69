"""``serve/image/pod.py``, the first process of a pod: the volume, signals, orphans, exit statuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, until

IMAGE = ROOT / "serve" / "image"

# A sive that says what it was started with, does as its last argument says, and goes with 7 at SIGTERM.
SIVE = """#!{python}
import json, os, signal, sys, time
from pathlib import Path

def leave(number, _):
    os.write(1, b"got " + signal.Signals(number).name.encode() + b"\\n")  # it may come within a print
    os._exit(7)

signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGINT, leave)
told = {{"arguments": sys.argv[1:], "environ": dict(os.environ), "folder": os.getcwd()}}
told["group"] = os.getpgid(0)
if sys.argv[-1] == "orphan":
    if os.fork() == 0:
        if (orphan := os.fork()) == 0:
            os.read(os.open("fifo", os.O_RDONLY), 1)  # until the test opens the other end
            os._exit(0)
        Path("orphan").write_text(str(orphan))
        os._exit(0)
    os.wait()
print(json.dumps(told), flush=True)
if sys.argv[-1] == "leave":
    sys.exit(3)
while True:
    signal.pause()
"""


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An installed image: pod.py with what lies beside it, and a stand-in for the command it runs."""
    folder = tmp_path / "sive"
    (folder / "bin").mkdir(parents=True)
    shutil.copytree(IMAGE, folder / "image")
    (folder / "image" / "adapters.toml").write_text("# the image's\n")
    program = folder / "bin" / "sive"
    program.write_text(SIVE.format(python=sys.executable))
    program.chmod(0o755)
    return folder


Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def run(prefix: Path, tmp_path: Path) -> Iterator[Run]:
    """Start pod.py with arguments and variables; the volume is ``tmp_path / "volume"``."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environ: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-I", prefix / "image" / "pod.py", *arguments],
            env={"PATH": "/usr/bin:/bin", "SIVE_DATA_DIR": str(tmp_path / "volume")} | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for member in below:
            member.kill()
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()  # not read to its end: an orphan may still hold the other


def told(process: "subprocess.Popen[str]") -> dict[str, object]:
    """Return what the stand-in says it was started with."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            return dict(json.loads(line))
    raise AssertionError(process.stderr.read() if process.stderr else "")


def test_everything_that_lasts_is_on_the_volume(run: Run, tmp_path: Path) -> None:
    """Caches, adapters and logs have folders there; a variable that is set already stays."""
    said = told(run("leave", TRITON_CACHE_DIR=str(tmp_path / "elsewhere")))
    volume = tmp_path / "volume"
    environ = said["environ"]
    assert isinstance(environ, dict)
    assert environ["HF_HOME"] == str(volume / "huggingface")
    assert environ["XDG_CACHE_HOME"] == str(volume / "cache")
    assert environ["SIVE_ADAPTERS_DIR"] == str(volume / "adapters")
    assert environ["TRITON_CACHE_DIR"] == str(tmp_path / "elsewhere")
    assert said["folder"] == str(volume)
    assert {path.name for path in volume.iterdir()} >= {"huggingface", "cache", "adapters", "logs"}


def test_it_listens_beyond_the_container_and_passes_arguments_on(run: Run, prefix: Path) -> None:
    """`docker run IMAGE --engine MODEL` is `sive serve --engine MODEL`."""
    said = told(run("--engine", "m", "leave"))
    config = str(prefix / "image" / "engine.toml")
    assert said["arguments"] == [
        *("serve", "--host", "0.0.0.0", "--config", config),
        *("--engine", "m", "leave"),
    ]


def test_the_volume_s_configuration_comes_before_the_image_s(run: Run, tmp_path: Path) -> None:
    """A sive.toml there is used, and SIVE_CONFIG before both."""
    own = tmp_path / "volume" / "sive.toml"
    own.parent.mkdir()
    own.write_text("")
    assert str(own) in str(told(run("leave"))["arguments"])
    assert "--config" not in str(told(run("leave", SIVE_CONFIG="/etc/sive.toml"))["arguments"])


def test_the_list_of_adapters_is_copied_once(run: Run, tmp_path: Path) -> None:
    """The image's at the first start; from then on it is the pod's own."""
    listed = tmp_path / "volume" / "adapters.toml"
    assert run("leave").wait(20) == 3
    assert listed.read_text() == "# the image's\n"
    listed.write_text("# mine\n")
    assert run("leave").wait(20) == 3
    assert listed.read_text() == "# mine\n"
    assert not list(listed.parent.glob(".adapters*"))


def test_a_volume_that_cannot_be_used_is_one_line(run: Run) -> None:
    """It says which, why, and what to do."""
    process = run("leave", SIVE_DATA_DIR="/dev/null/volume")
    assert process.wait(20) == 1
    assert process.stderr is not None
    said = process.stderr.read()
    way_out = "mount a volume there, or set SIVE_DATA_DIR"
    assert said == f"sive: /dev/null/volume cannot be used (Not a directory): {way_out}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_sive(run: Run, number: signal.Signals) -> None:
    """Each is passed on once, and sive's exit status is the container's."""
    process = run()
    told(process)
    process.send_signal(number)
    assert process.wait(20) == 7
    assert process.stdout is not None
    assert process.stdout.read() == f"got {number.name}\n"


def test_a_terminal_s_ctrl_c_is_not_sent_twice(run: Run) -> None:
    """It is in a process group of its own: a terminal interrupts only the first process."""
    process = run()
    assert told(process)["group"] != os.getpgid(process.pid)


def test_a_sive_that_is_killed_ends_the_container(run: Run) -> None:
    """With the exit status that a shell would give it."""
    process = run()
    told(process)
    psutil.Process(process.pid).children()[0].kill()
    assert process.wait(20) == 128 + signal.SIGKILL


def test_orphans_are_reaped(run: Run, tmp_path: Path) -> None:
    """A process whose parent died is not left as a zombie when it ends."""
    fifo = tmp_path / "volume" / "fifo"
    fifo.parent.mkdir()
    os.mkfifo(fifo)
    process = run("orphan")
    told(process)
    orphan = int((tmp_path / "volume" / "orphan").read_text())
    parent = psutil.Process(orphan).ppid()
    with fifo.open("w"):
        pass
    assert parent == process.pid
    until(lambda: not psutil.pid_exists(orphan), 10, "the orphan reaped")
    assert process.poll() is None
