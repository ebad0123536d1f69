"""The first process of a pod: prepares the volume, runs ``sive serve``, passes signals on, reaps orphans.

It runs as ``python3 -I pod.py [ARGUMENTS OF sive serve]`` with the standard library alone. As process 1 it
inherits every process whose parent died, the engine's among them, and nobody else would collect those.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA_DIR = "/workspace"  # where RunPod and Vast mount a volume
CACHES = {
    "HF_HOME": "huggingface",
    "XDG_CACHE_HOME": "cache",  # vLLM's compiled graphs, sive's CPU models
    "TORCHINDUCTOR_CACHE_DIR": "cache/torchinductor",
    "TRITON_CACHE_DIR": "cache/triton",
    "SIVE_ADAPTERS_DIR": "adapters",
}
"""Variable to folder on the volume; one that is set already stays."""

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    """Serve until told to stop, and return the exit status of sive."""
    data = Path(os.environ.get("SIVE_DATA_DIR") or DATA_DIR)
    try:
        environ = prepare(data, os.environ)
    except OSError as exc:
        print(
            f"sive: {data} cannot be used ({exc.strerror}): mount a volume there, or set SIVE_DATA_DIR",
            file=sys.stderr,
        )
        return 1
    command = [str(HERE.parent / "bin" / "sive"), "serve", "--host", "0.0.0.0"]  # noqa: S104 - a container
    return supervise([*command, *configuration(data, environ), *arguments], environ)


def prepare(data: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Make the folders of the volume, the list of adapters among them, and return sive's environment.

    The list is copied at the first start only: from then on it is the pod's own, and commands change it.
    """
    data.mkdir(parents=True, exist_ok=True)
    os.chdir(data)
    wanted = {name: str(data / folder) for name, folder in CACHES.items()} | dict(environ)
    for name in CACHES:
        Path(wanted[name]).mkdir(parents=True, exist_ok=True)
    (data / "logs").mkdir(exist_ok=True)
    listed = data / "adapters.toml"
    if not listed.exists():
        fresh = data / f".adapters.toml.{os.getpid()}"
        shutil.copyfile(HERE / "adapters.toml", fresh)
        fresh.replace(listed)  # whole or not at all: a pod may be ended at any moment
    return wanted | {"SIVE_DATA_DIR": str(data)}


def configuration(data: Path, environ: Mapping[str, str]) -> list[str]:
    """Return what tells sive its configuration: SIVE_CONFIG, the volume's sive.toml, else the image's."""
    if environ.get("SIVE_CONFIG"):
        return []
    own = data / "sive.toml"
    chosen = own if own.is_file() else HERE / "engine.toml"
    print(f"sive: configured by {chosen}", flush=True)
    return ["--config", str(chosen)]


def supervise(command: list[str], environ: Mapping[str, str]) -> int:
    """Run a command, pass signals on to it, reap whatever else ends, and return its exit status."""
    become_subreaper()
    child = 0
    # Blocked until it is known who is to get them.
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: _send(child, number))
    # A group of its own: Ctrl-C in a terminal reaches it once, through here, and not twice.
    child = os.posix_spawn(command[0], command, environ, setpgroup=0, setsigmask=(), setsigdef=PASSED_ON)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    for pid, status in ended():
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
    return 1


def ended() -> Iterator[tuple[int, int]]:
    """Wait for every process below this one, whoever started it: pid and status, as they end."""
    with contextlib.suppress(ChildProcessError):
        while True:
            yield os.waitpid(-1, 0)


def become_subreaper() -> None:
    """Inherit the orphaned below this process even where it is not process 1 (docker run --init)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
