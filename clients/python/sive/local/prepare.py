"""Models made ready for the CPU: fetched, converted in a child process, stored whole or not at all."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from sive.errors import LocalModelError
from sive.local import download, store
from sive.local.store import LocalModelInfo

Progress = Callable[[Literal["download", "convert"], int, int], None]
"""Called with the stage, what is done and what there is: bytes of the download, steps of the conversion."""

PACKAGE_ROOT = Path(__file__).parents[2]


def silent(stage: Literal["download", "convert"], done: int, total: int) -> None:
    """Show nothing."""


def prepare(
    model: str, directory: Path, *, endpoint: str | None = None, told: Progress = silent
) -> LocalModelInfo:
    """Prepare a Hugging Face repository, or a folder, into ``directory``; what is there already stays.

    A prepared repository also does without a network. ``endpoint``: another hub than huggingface.co.

    Raises:
        LocalModelError: it is not there, not a GPT-2, or cannot be downloaded, converted or stored.
    """
    if (folder := Path(model).expanduser()).is_dir():
        return converted(store.find_folder(folder.absolute(), directory), directory, told=told)
    try:
        fetched = download.download(
            model, endpoint=endpoint, told=lambda done, total: told("download", done, total)
        )
    except download.UnreachableError:
        there = [info for info in store.prepared(directory, store.CONFIGURED) if info.name == model]
        if not there:
            raise
        return there[0]
    weights = f"{model}@{fetched.commit[:12]}-int8"
    info = LocalModelInfo(model, weights, fetched.context_tokens, fetched.folder, store.CONFIGURED)
    return converted(info, directory, told=told)


def converted(info: LocalModelInfo, directory: Path, *, told: Progress = silent) -> LocalModelInfo:
    """Return the prepared form of a model; a plain folder is converted into ``directory`` once.

    Raises:
        LocalModelError: it cannot be converted or stored.
    """
    if info.is_prepared:
        return info
    version = info.weights.rpartition("@")[2].removesuffix("-int8")
    final = directory / store.folder_name(info.name, version)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        from filelock import FileLock

        with FileLock(directory / ".lock"):
            if not (final / "sive.json").is_file():
                _store(info, final, lambda done, total: told("convert", done, total))
    except OSError as exc:
        raise LocalModelError(
            f"{info.name!r} cannot be stored in {directory}: {exc.strerror or exc}"
        ) from exc
    return store.read_info(final, info.why)


def _store(info: LocalModelInfo, final: Path, told: Callable[[int, int], None]) -> None:
    """Convert next to where the model will lie, then rename; the lock is held."""
    for left_behind in final.parent.glob(".tmp-*"):  # by a conversion that was killed
        shutil.rmtree(left_behind, ignore_errors=True)
    working = final.parent / f".tmp-{final.name}"
    working.mkdir()
    try:
        _convert(info, working, told)
        for file in working.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        working.rename(final)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _convert(info: LocalModelInfo, working: Path, told: Callable[[int, int], None]) -> None:
    """Run the conversion in a child, whose memory goes with it."""
    command = [sys.executable, "-m", "sive.local.convert", str(info.path), str(working)]
    command += ["--name", info.name, "--weights", info.weights]
    with subprocess.Popen(  # noqa: S603 - our own module
        command, cwd=PACKAGE_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        out, err = child.stdout, child.stderr
        try:
            for line in out or ():
                done, _, total = line.strip().partition("/")
                told(int(done), int(total))
            said = err.read().strip() if err else ""
        except BaseException:
            child.kill()
            raise
    if child.returncode < 0:
        raise LocalModelError(
            f"converting {info.name!r} was killed by signal {-child.returncode}: out of memory?"
        )
    if child.returncode:
        raise LocalModelError(
            f"{info.name!r} cannot be converted: {said.splitlines()[-1] if said else 'no reason'}"
        )
