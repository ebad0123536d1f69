"""What may stand in an ``[[adapter]]`` of ``adapters.toml``: keys, types, bounds, how mistakes are told."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from sive_adapters.store import FILES

MAX_PREVIOUS = 5
RESERVED_NAMES = ("local",)
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*")
HEX = re.compile(r"[0-9a-f]{64}")
INT64 = 2**63

Text = Annotated[str, Field(min_length=1)]


class _Table(BaseModel):
    # No inf, no nan, no "0.7" for 0.7: what is written reaches engines as it is.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class SamplingEntry(_Table):
    """``sampling``: what a request gets that does not say it itself; bounds are vLLM's and OpenAI's."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=INT64)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=INT64)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    stop: Any = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: Any) -> Any:
        texts = [stop] if isinstance(stop, str) else stop
        is_texts = isinstance(texts, list) and all(isinstance(text, str) and text for text in texts)
        if not is_texts or not 1 <= len(texts) <= 4:
            raise ValueError("write a text, or a list of one to four, none of them empty")
        return stop


class ReleaseEntry(_Table):
    """``source`` and ``sha256``: one version of an adapter."""

    source: Text
    sha256: dict[str, str] = Field(default_factory=dict)

    @field_validator("sha256")
    @classmethod
    def _check_sha256(cls, sha256: dict[str, str]) -> dict[str, str]:
        if sha256 and set(sha256) != set(FILES):
            raise ValueError(f"name exactly {' and '.join(FILES)}, as `sive adapters pin` does")
        for file, digest in sha256.items():
            if not HEX.fullmatch(digest):
                raise ValueError(f"{file} needs 64 lowercase hex digits, as sha256sum prints them")
        return sha256


class AdapterEntry(ReleaseEntry):
    """One ``[[adapter]]``."""

    name: str
    base_model: Text
    system_prompt: Text | None = None
    languages: list[str] = Field(default_factory=list)
    sampling: SamplingEntry = SamplingEntry()
    previous: Annotated[list[ReleaseEntry], Field(max_length=MAX_PREVIOUS)] = Field(default_factory=list)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(
                "1 to 64 letters, digits, '.', '_' and '-', a letter or digit first and last, make a name"
            )
        if name.lower() in RESERVED_NAMES:
            raise ValueError("that is the name of the model on this CPU: choose another")
        return name

    @field_validator("languages")
    @classmethod
    def _check_languages(cls, languages: list[str]) -> list[str]:
        for language in languages:
            if not LANGUAGE.fullmatch(language):
                raise ValueError(f'{language!r} is no language tag: write "fr", "en" or "pt-BR"')
        return languages


class ListEntry(_Table):
    """The whole of ``adapters.toml``."""

    adapter: list[AdapterEntry] = Field(default_factory=list)


KNOWN: Mapping[str, type[BaseModel]] = {
    "adapter": AdapterEntry,
    "previous": ReleaseEntry,
    "sampling": SamplingEntry,
}
"""The key a table stands under: what it may hold."""


def first_mistake(
    tree: Mapping[str, Any], invalid: ValidationError, *, at: tuple[str | int, ...] = ()
) -> str:
    """Say in one line which key of which adapter is wrong, what it is, and what it should be.

    ``at``: where in ``tree`` stands what was validated.
    """
    # An unknown key is told first: a misspelt one is also a missing one.
    errors = sorted(invalid.errors(), key=lambda error: error["type"] != "extra_forbidden")
    for each in errors:
        each["loc"] = (*at, *each["loc"])
    error = errors[0]
    *_, key = error["loc"] or ("",)
    if error["loc"] == ("adapter",) or (len(error["loc"]) == 2 and error["type"] == "model_type"):
        return "write each adapter under [[adapter]], with two brackets"
    where = _where(tree, error)
    if error["type"] == "extra_forbidden":
        known = sorted(_section(error).model_fields)
        return f"{where}has an unknown key {key!r}: did you mean {_nearest(str(key), known)!r}?"
    if error["type"] == "missing":
        return f'{where}has no {key}: add {key} = "..."'
    path = ".".join(str(part) for part in error["loc"][2:])
    value = "" if isinstance(error["input"], dict) else f" is {_shown(error['input'])}"
    return f"{where}{path}{value}: {error['msg'].removeprefix('Value error, ')}"


def _where(tree: Mapping[str, Any], error: ErrorDetails) -> str:
    if len(error["loc"]) < 2:
        return ""
    name = tree["adapter"][error["loc"][1]].get("name", "")
    return (
        f"adapter {_shown(name)}: "
        if error["type"] not in ("missing", "extra_forbidden")
        else (f"adapter {_shown(name)} ")
    )


def _section(error: ErrorDetails) -> type[BaseModel]:
    """The table an unknown key stands in: the innermost named one above it."""
    names = [part for part in error["loc"][:-1] if isinstance(part, str)]
    return KNOWN[names[-1]] if names else ListEntry


def _nearest(key: str, known: list[str]) -> str:
    return get_close_matches(key, known, n=1, cutoff=0)[0]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
