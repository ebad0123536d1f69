"""A whole model for the engine, from the first place that has it: this disk, an object store, a hub.

Where none has it, what is left is said: the Hugging Face rung, or the CPU's own model.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sive.config import EnvironmentSettings
from sive.errors import AdapterError

from sive_adapters.folder import Folder
from sive_adapters.object_store import Patience
from sive_adapters.origin import Origin
from sive_adapters.part import DONE, Stat
from sive_adapters.progress import Told, nobody
from sive_adapters.sources import Source, parse
from sive_adapters.store import Choice, Store

WEIGHTS_URL = "SIVE_WEIGHTS_URL"
"""Names the folder of an object store that holds the model, for instance ``s3://bucket/qwen``."""

SUMS = "SHA256SUMS"
"""What ``sha256sum *`` printed, uploaded beside the weights: every file in it is checked."""

SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
TRUE = ("1", "true", "yes", "on")

Place = Literal["local", "bucket", "hub", "api", "gpt2"]

_FILE = re.compile(r"[A-Za-z0-9_][\w.+-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Step:
    """A place that was looked at. ``reason``: why it was taken, or why not."""

    place: Place
    is_taken: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where the weights are, None when only another rung is left; and every step on the way."""

    folder: Path | None
    steps: tuple[Step, ...]


class Wanted:
    """What is asked for: a model by name, or what the environment of this deployment names.

    A named model is taken from where its name says and from nowhere else: an environment that names another
    one would bring the wrong weights.
    """

    def __init__(self, model: str | None, environ: Mapping[str, str]) -> None:
        self.model = model
        self._environ = environ
        self.token_env = next((name for name in ("HF_TOKEN", "HF_API_TOKEN") if self._value(name)), None)

    @property
    def is_offline(self) -> bool:
        """Is the network out of bounds?"""
        return self._value("SIVE_OFFLINE").lower() in TRUE

    @property
    def hub_model(self) -> str:
        """The model's name on a hub."""
        default = str(EnvironmentSettings.model_fields["ia_model"].default)
        return self.model or self._value("IA_MODEL") or default

    def places(self) -> Iterator[tuple[Place, str, str]]:
        """Return each place in turn, what is to be found there, and the variable that says so."""
        if self.model is not None:
            is_bucket = self.model.startswith(("s3://", "gs://", "az://"))
            is_folder = self.model.startswith("file:") or Path(self.model).expanduser().is_dir()
            place: Place = "bucket" if is_bucket else "local" if is_folder else "hub"
            yield place, self.model, ""
            return
        yield "local", self._value("HF_LOCAL_MODEL_PATH"), "HF_LOCAL_MODEL_PATH"
        yield "bucket", self._value(WEIGHTS_URL), WEIGHTS_URL
        yield "hub", self.hub_model, "IA_MODEL"

    def _value(self, name: str) -> str:
        return self._environ.get(name, "").strip()


def fetch_model(
    wanted: Wanted,
    to: Path,
    *,
    told: Told = nobody,
    said: Callable[[Step], None] = lambda step: None,
    patience: Patience | None = None,
) -> Outcome:
    """Bring a model onto the disk, below ``to``; every step is told to ``said`` as it is decided."""
    steps: list[Step] = []

    def decide(place: Place, is_taken: bool, reason: str) -> None:
        steps.append(Step(place, is_taken, reason))
        said(steps[-1])

    for place, where, variable in wanted.places():
        try:
            if not where:
                raise AdapterError(f"{variable} is not set")
            folder, reason = _from(
                place, where, wanted, Store(to, choose=model_files, patience=patience), told
            )
        except AdapterError as exc:
            decide(place, False, str(exc))
            continue
        decide(place, True, reason)
        return Outcome(folder, tuple(steps))
    for rung, is_taken, reason in _rungs(wanted):
        decide(rung, is_taken, reason)
        if is_taken:
            break
    return Outcome(None, tuple(steps))


def model_files(title: str, origin: Origin) -> Choice:
    """Choose what vLLM reads of a model: safetensors, configuration, tokenizer; no pickles.

    Raises:
        AdapterError: it is no model, or part of it is missing.
    """
    listed = {name: stat for name, stat in origin.list().items() if _FILE.fullmatch(name)}
    if "config.json" not in listed:
        raise AdapterError(f"{origin.source} holds no model: it has no config.json")
    weights = [name for name in listed if name.endswith(".safetensors")]
    # Mistral's repositories hold everything twice, once as consolidated.safetensors.
    weights = [name for name in weights if name.startswith("model")] or weights
    if not weights:
        raise AdapterError(f"{origin.source} has no safetensors: pickled weights are not read")
    _check_shards(origin.source, weights)
    wanted = [name for name in listed if name in weights or name.endswith(SUFFIXES)]
    return Choice({name: listed[name] for name in sorted(wanted)}, _sums(origin, listed))


def _from(place: Place, where: str, wanted: Wanted, store: Store, told: Told) -> tuple[Path, str]:
    """Return the folder of a model and why it is this one.

    Raises:
        AdapterError: it is not to be had there.
    """
    if place == "local":
        source = parse(where if where.startswith("file:") else f"file:{where}", Path.cwd())
        model_files(where, Folder(source))
        return Path(source.path), f"{source.path} is on this disk"
    if place == "bucket":
        source = parse(where, Path.cwd())
        if source.kind not in ("s3", "gs", "az"):
            raise AdapterError(f"{source} is no object store: write s3://, gs:// or az://")
    else:
        source = parse(where if where.startswith("hf://") else f"hf://{where}", Path.cwd())
        if source.kind == "hf" and (folder := _in_hub_cache(source)):
            return folder, f"{source.root} is in the hub's cache"
    name = (source.path or source.root).rpartition("/")[2]
    if wanted.is_offline:
        return _fetched_before(store, name, source, AdapterError("SIVE_OFFLINE is set"))
    try:
        version = store.fetch(name, source, told=told)
    except AdapterError as exc:
        return _fetched_before(store, name, source, exc)
    return version.folder, f"{version.source} is in {version.folder}"


def _fetched_before(store: Store, name: str, source: Source, problem: AdapterError) -> tuple[Path, str]:
    """Return what an earlier run brought from there: better than another voice."""
    version = store.latest(name, source)
    if version is None:
        raise problem
    return version.folder, f"{problem}; {version.folder} was fetched from there before"


def _in_hub_cache(source: Source) -> Path | None:
    """Return the model's folder in the hub's own cache when all of it is there."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        return None
    wanted = [f"*{suffix}" for suffix in (".safetensors", *SUFFIXES)]
    try:
        snapshot = snapshot_download(
            source.root, revision=source.revision, local_files_only=True, allow_patterns=wanted
        )
        folder = Path(snapshot, source.path)
        model_files(source.root, Folder(Source("file", "", str(folder))))
    except (LocalEntryNotFoundError, HFValidationError, AdapterError, OSError):
        return None
    return folder


def _rungs(wanted: Wanted) -> Iterator[tuple[Place, bool, str]]:
    """Return what can answer without weights here."""
    model = wanted.hub_model
    if wanted.is_offline or wanted.token_env is None:
        why = "SIVE_OFFLINE is set" if wanted.is_offline else "HF_TOKEN is not set"
        yield "api", False, f"Hugging Face's API is not asked: {why}"
    else:
        yield "api", True, f"{wanted.token_env} is set: Hugging Face's API can answer with {model}"
    yield "gpt2", True, "the CPU's own model answers, which is another voice"


def _check_shards(source: Source, weights: list[str]) -> None:
    """Refuse a model of which a part was not uploaded.

    Raises:
        AdapterError: a shard is missing.
    """
    for name in weights:
        if match := re.fullmatch(r"(.+)-(\d+)-of-(\d+)\.safetensors", name):
            stem, digits, count = match[1], len(match[2]), match[3]
            for number in range(1, int(count) + 1):
                shard = f"{stem}-{number:0{digits}}-of-{count}.safetensors"
                if shard not in weights:
                    raise AdapterError(f"{source} lacks {shard}: its upload is not complete")


def _sums(origin: Origin, listed: Mapping[str, Stat]) -> dict[str, str]:
    """Return what ``SHA256SUMS`` says, where it lies beside the weights."""
    if SUMS not in listed:
        return {}
    with tempfile.TemporaryDirectory(prefix="sive-") as scratch:
        (Path(scratch) / DONE).mkdir()
        origin.fetch(SUMS, listed[SUMS], Path(scratch), what=SUMS, told=nobody)
        text = (Path(scratch) / DONE / SUMS).read_text("utf-8", errors="replace")
    lines = (re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(\S+)", line.strip()) for line in text.splitlines())
    return {line[2]: line[1].lower() for line in lines if line and line[2] in listed}
