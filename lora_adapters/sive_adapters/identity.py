"""Whether an engine really speaks as an adapter: how it reads a text, against its base and against before.

An engine may answer 200 for an adapter and compute the base model, or garbage. So each adapter that was
loaded reads one fixed text, and what it makes of every token of it is compared: with the base model's
reading, which must be another, and with its own when it was first accepted, which must be the same.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sive.errors import AdapterError

from sive_adapters.tolerance import Tolerance

PROBE_TEXT = (
    "Question: Qu'est-ce que la liberté, et pouvons-nous l'atteindre par la raison ?\n"
    "Answer: Freedom is not the absence of causes. A thing is free when it acts"
)
"""French and English, because adapters are trained on either; some 40 tokens, which take one prefill."""

TOP_LOGPROBS = 5

Position = Mapping[str, float]
"""Token id to log probability: the token that stands there, and the likeliest in its place."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a model makes of the probe's tokens, from the second on."""

    positions: tuple[Position, ...]

    def to_json(self) -> list[dict[str, float]]:
        """As it is stored."""
        return [dict(position) for position in self.positions]


def read_fingerprint(positions: Any) -> Fingerprint:
    """Return a stored fingerprint.

    Raises:
        AdapterError: it is none.
    """
    try:
        read = tuple({str(token): float(value) for token, value in one.items()} for one in positions)
    except (AttributeError, TypeError, ValueError) as exc:
        raise AdapterError(f"a stored fingerprint cannot be read ({exc}): remove it") from exc
    return _checked(read)


def of_prompt_logprobs(prompt_logprobs: Any) -> Fingerprint:
    """Return the fingerprint in vLLM's ``prompt_logprobs``: null for the first token, then one object each.

    Raises:
        AdapterError: the engine gave something else, or numbers that are none (what NaN weights do).
    """
    if not isinstance(prompt_logprobs, list) or len(prompt_logprobs) < 2:
        raise AdapterError("the engine gave no log probabilities for the probe")
    try:
        read = tuple(
            {str(token): float(said["logprob"]) for token, said in one.items()} for one in prompt_logprobs[1:]
        )
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise AdapterError(f"the engine's log probabilities for the probe cannot be read: {exc!r}") from exc
    return _checked(read)


def difference(one: Fingerprint, other: Fingerprint) -> float:
    """Return how far two readings are apart, in nats, at the token where they differ most.

    Infinite when they are not readings of the same tokens.
    """
    if len(one.positions) != len(other.positions):
        return math.inf
    worst = 0.0
    for mine, theirs in zip(one.positions, other.positions, strict=True):
        both = mine.keys() & theirs.keys()
        if not both:
            return math.inf
        worst = max(worst, *(abs(mine[token] - theirs[token]) for token in both))
    return worst


def misidentified(
    name: str, read: Fingerprint, *, base: Fingerprint, stored: Fingerprint | None, allows: Tolerance
) -> str:
    """Return why this reading is not the adapter's own; empty when it is."""
    from_base = difference(read, base)
    if from_base < allows.min_difference:
        return (
            f"adapter {name!r} reads like its base model (they differ by {from_base:.3g}, at least "
            f"{allows.min_difference:.3g} is expected): the engine does not apply it, or it was never trained"
        )
    if stored is None:
        return ""
    drift = difference(read, stored)
    allowed = min(allows.max_drift, difference(stored, base) / 2)
    if drift > allowed:
        return (
            f"adapter {name!r} does not read as when it was accepted (they differ by {drift:.3g}, at most "
            f"{allowed:.3g} is allowed): the engine computes something else"
        )
    return ""


@dataclass(frozen=True, slots=True)
class EngineKind:
    """Engines of one kind give equal readings: what a fingerprint is valid for.

    ``settings``: whatever else changes what an engine computes, as text.
    """

    base: str
    version: str
    dtype: str
    quantization: str
    device: str
    settings: str = ""

    def __str__(self) -> str:
        parts = (self.base, self.version, self.dtype, self.quantization or "none", self.device, self.settings)
        return " ".join(parts).strip()


def dumps(fingerprints: Mapping[str, Fingerprint]) -> str:
    """Return stored fingerprints, by kind of engine, as JSON."""
    return json.dumps({kind: one.to_json() for kind, one in sorted(fingerprints.items())})


def loads(text: str) -> dict[str, Fingerprint]:
    """Return stored fingerprints by kind of engine.

    Raises:
        AdapterError: the text is something else.
    """
    try:
        stored = json.loads(text)
    except ValueError as exc:
        raise AdapterError(f"stored fingerprints are not JSON ({exc}): remove them") from exc
    if not isinstance(stored, dict):
        raise AdapterError("stored fingerprints are no JSON object: remove them")
    return {kind: read_fingerprint(positions) for kind, positions in stored.items()}


def _checked(positions: Sequence[Position]) -> Fingerprint:
    if not positions or not all(positions):
        raise AdapterError("a reading of the probe has no tokens")
    if not all(math.isfinite(value) for one in positions for value in one.values()):
        raise AdapterError("log probabilities that are no numbers: the adapter's weights may hold NaN")
    return Fingerprint(tuple(positions))


def fingerprints(beside: Path) -> dict[str, Fingerprint]:
    """Return what was stored beside a version's folder, by kind of engine; nothing when nothing was.

    Raises:
        AdapterError: what is there is something else.
    """
    try:
        return loads(file_of(beside).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise AdapterError(f"cannot read {file_of(beside)}: {exc.strerror}") from exc


def store_fingerprints(beside: Path, stored: Mapping[str, Fingerprint]) -> None:
    """Store them beside a version's folder, which itself never changes.

    Raises:
        AdapterError: they cannot be written.
    """
    file = file_of(beside)
    new = file.with_suffix(f".{os.getpid()}.new")
    try:
        new.write_text(dumps(stored), "utf-8")
        new.replace(file)
    except OSError as exc:
        raise AdapterError(f"cannot write {file}: {exc.strerror}") from exc


def file_of(folder: Path) -> Path:
    """Return where the fingerprints of a version's folder lie."""
    return folder.with_name(f"{folder.name}.fingerprints.json")
