"""Reads a Dockerfile as Docker does, and takes its steps in a folder, for machines without Docker.

The images it is built from are stood in for by this machine, and paths of the image by the same paths below
the folder. A stage is moved away before the next begins, so that what was not copied out of it is missing.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Step:
    """An instruction: its word, flags such as ``--from``, and what follows them."""

    word: str
    flags: dict[str, str]
    rest: str

    @property
    def arguments(self) -> list[str]:
        """The rest as a list: JSON, or the words of a shell."""
        return list(json.loads(self.rest)) if self.rest.startswith("[") else shlex.split(self.rest)


@dataclass
class Stage:
    """From a ``FROM`` to the next."""

    name: str
    base: str
    steps: list[Step] = field(default_factory=list)

    def all(self, word: str) -> list[Step]:
        """Return its instructions of a kind, in order."""
        return [step for step in self.steps if step.word == word]

    def last(self, word: str) -> Step:
        """Return the instruction of a kind that counts."""
        return self.all(word)[-1]

    @property
    def environment(self) -> dict[str, str]:
        """What its ENV instructions set."""
        pairs = (pair.split("=", 1) for step in self.all("ENV") for pair in step.arguments)
        return dict(pairs)


def read(path: Path) -> list[Stage]:
    """Read the stages of a Dockerfile; what it uses of the language is what is understood."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    stages: list[Stage] = []
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        word, rest = line.split(None, 1)
        flags: dict[str, str] = {}
        while found := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
            flags[found[1]] = found[2]
            rest = rest[found.end() :]
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(name.strip(), base.strip()))
        else:
            stages[-1].steps.append(Step(word, flags, rest.strip()))
    return stages


class Ignored:
    """A ``.dockerignore``: the last pattern that matches a path, or a folder above it, decides."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        self._patterns = [
            (line.startswith("!"), _pattern(line.lstrip("!").strip("/")))
            for line in lines
            if line and not line.startswith("#")
        ]

    def __contains__(self, path: object) -> bool:
        """Is a path, relative to the context, kept from the builder?"""
        assert isinstance(path, Path)
        candidates = [path.as_posix(), *(parent.as_posix() for parent in path.parents[:-1])]
        is_out = False
        for keeps, pattern in self._patterns:
            if any(pattern.fullmatch(candidate) for candidate in candidates):
                is_out = not keeps
        return is_out


def _pattern(text: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/?|\*|\?)", text)
    as_regex = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(as_regex.get(part, re.escape(part)) for part in parts))


def sent(context: Path) -> list[Path]:
    """Return the files a builder gets, relative to the context."""
    ignored = Ignored((context / ".dockerignore").read_text("utf-8"))
    found = []
    for folder, folders, files in os.walk(context):
        here = Path(folder).relative_to(context)
        if here == Path():  # virtual environments and git's own: large, and ignored by the first pattern
            folders[:] = [name for name in folders if not name.startswith(".")]
        found += [here / name for name in files if here / name not in ignored]
    return sorted(found)


class Build:
    """A Dockerfile's stages, taken one after the other in ``root``, with nothing in the environment."""

    def __init__(
        self, context: Path, root: Path, *, path: str, arguments: dict[str, str] | None = None
    ) -> None:
        self.context = context
        self.root = root
        self.stages = {stage.name: stage for stage in read(context / "Dockerfile")}
        self.log: list[str] = []
        self.current = ""
        self._path = path
        self._arguments = arguments or {}
        self._files = sent(context)
        self._done: dict[str, Path] = {}

    def here(self, path: str) -> str:
        """Return where a path of the image lies on this machine; anything else as it is."""
        return f"{self.root}{path}" if path.startswith("/") else path

    def target(self, name: str) -> Stage:
        """Take the steps of a stage and of those it copies from; only its own files are left."""
        stage = self.stages[name]
        for needed in [step.flags["from"] for step in stage.all("COPY") if "from" in step.flags]:
            if needed not in self._done:
                self.target(needed)
                self._done[needed] = self.root.rename(self.root.with_name(f"stage-{needed}"))
        self.root.mkdir()
        self.current = name
        self._take(stage)
        return stage

    def forget_stages(self) -> None:
        """Remove what only stages had: the image is complete without it."""
        for folder in self._done.values():
            shutil.rmtree(folder)
        self._done.clear()

    def _take(self, stage: Stage) -> None:
        variables: dict[str, str] = {}
        for step in stage.steps:
            if step.word == "ARG":
                name, _, default = step.rest.partition("=")
                variables[name] = self._arguments.get(name, default.strip('"'))
            elif step.word == "WORKDIR":
                Path(self.here(step.rest)).mkdir(parents=True, exist_ok=True)
            elif step.word == "COPY":
                self._copy(step)
            elif step.word == "RUN":
                self._run(step, variables)

    def _copy(self, step: Step) -> None:
        *sources, target = step.arguments
        to = Path(self.here(target))
        for source in sources:
            if "from" in step.flags:
                shutil.copytree(
                    self._done[step.flags["from"]] / source.lstrip("/"), to, symlinks=True, dirs_exist_ok=True
                )
                continue
            files = [file for file in self._files if file == Path(source) or Path(source) in file.parents]
            assert files, f"COPY {source}: nothing of it is sent to the builder"
            for file in files:
                inside = file.name if file == Path(source) else file.relative_to(source)
                place = to / inside if file != Path(source) or target.endswith("/") else to
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.context / file, place)

    def _run(self, step: Step, variables: dict[str, str]) -> None:
        """Take a step by its Makefile target, which is the same script."""
        text = re.sub(r"\$(\w+)", lambda found: variables[found[1]], step.rest)
        script, *arguments = shlex.split(text)
        copied = Path(self.here(script))
        assert os.access(copied, os.X_OK), f"{script} is not executable in the image"
        said = " ".join(shlex.quote(self.here(argument)) for argument in arguments)
        ran = subprocess.run(
            ["make", "--no-print-directory", f"image-{copied.stem}", f"ARGS={said}"],
            cwd=self.context,
            env={"PATH": self._path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"{step.rest}\n{ran.stdout}{ran.stderr}"
        self.log.append(ran.stdout + ran.stderr)
