"""Finds ``sive.toml``, lays environment and command line over it, and says where each value is from."""

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from sive.config.sections import Settings
from sive.errors import ConfigError

BUILT_IN_BACKENDS = ("local", "hf")
"""Backend names that a route may use without a ``[[backend]]``; ``engine`` joins them where one runs."""

UNION_PARTS = ("tuple[RungSettings, ...]", "literal['default']")
"""What pydantic adds to the path of a key that may have one of two types."""

LISTS = (("SIVE_ADMIN_KEYS", "gateway.admin_keys"), ("SIVE_TOKEN_SECRETS", "gateway.token_secrets"))
"""Secrets that stand in one variable, separated by commas."""

TRUE = {"1", "true", "yes", "on"}

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, the file they came from, and the source of each value that is not a default.

    ``sources``: dotted key to where it was said, for instance ``gateway.port`` to ``PORT``.
    """

    settings: Settings
    path: Path | None
    sources: dict[str, str] = field(default_factory=dict)


def load(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    asks_backends: bool = True,
) -> Loaded:
    """Read the configuration.

    ``path``: as given by ``--config``; else ``SIVE_CONFIG``, ``./sive.toml``, ``~/.config/sive/sive.toml``,
    else the packaged defaults. ``overrides``: dotted key to value, from the command line. ``asks_backends``:
    false for whoever only looks: then a backend's key may be missing.

    Raises:
        ConfigError: names the file, the key and the way out.
    """
    environ = os.environ if environ is None else environ
    found = _find(path, environ)
    tree = _read(found) if found is not None else {}
    where = str(found) if found is not None else "the defaults"
    if "environment" in tree:
        raise ConfigError(
            f"{where}: [environment] is no section: these values come from the environment alone"
        )
    sources = dict.fromkeys(_leaves(tree), where)
    _lay_over(tree, sources, _from_environment(tree, environ))
    _lay_over(tree, sources, {key: (value, "command line") for key, value in (overrides or {}).items()})
    if not tree.get("model"):
        tree["model"] = _packaged_models()
    settings = _validate(tree, where, sources)
    settings = _with_secrets(settings, sources, environ, must_be_there=asks_backends)
    _check_routes(settings, where)
    return Loaded(settings, found, sources)


def process_environment() -> Mapping[str, str]:
    """This process's environment, for a child that is to inherit some of it."""
    return dict(os.environ)


def keys_in_environment(environ: Mapping[str, str] | None = None) -> tuple[SecretStr, ...]:
    """The keys that ``SIVE_API_KEYS`` holds."""
    environ = os.environ if environ is None else environ
    return tuple(map(SecretStr, _several(environ, "SIVE_API_KEYS")))


def sdk_names_a_host(environ: Mapping[str, str] | None = None) -> bool:
    """Would the OpenAI SDK know a host by itself?"""
    environ = os.environ if environ is None else environ
    return any(environ.get(name) for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"))


def _find(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    if path is None and (named := environ.get("SIVE_CONFIG")):
        path = Path(named)
    if path is not None:
        if not path.is_file():
            named = " (from SIVE_CONFIG)" if environ.get("SIVE_CONFIG") == str(path) else ""
            raise ConfigError(f"there is no configuration file {str(path)!r}{named}")
        return path
    home = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".config")
    candidates = (Path("sive.toml"), home / "sive" / "sive.toml")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _read(path: Path) -> Tree:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from exc
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc


def _packaged_models() -> Tree:
    text = resources.files("sive.config").joinpath("default.toml").read_text(encoding="utf-8")
    models: Tree = tomllib.loads(text)["model"]
    return models


def _from_environment(tree: Tree, environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    names = {
        "PORT": "gateway.port",
        "SIVE_ADAPTERS_DIR": "environment.adapters_dir",
        "HF_LOCAL_MODEL_PATH": "local.model",
        "SNB_BACKEND_URL": "environment.snb_backend_url",
        "SNB_API_PREFIX": "environment.snb_api_prefix",
        "HF_API_TOKEN": "environment.hf_token",
        "HF_TOKEN": "environment.hf_token",
        "IA_MODEL": "environment.ia_model",
    }
    said: dict[str, tuple[Any, str]] = {
        key: (environ[name].strip(), name) for name, key in names.items() if environ.get(name, "").strip()
    }
    if environ.get("SIVE_OFFLINE", "").lower() in TRUE:
        said["environment.offline"] = (True, "SIVE_OFFLINE")
    gateway = tree.get("gateway")
    named = gateway.get("api_keys_env") if isinstance(gateway, dict) else None
    keys_env = named if isinstance(named, str) else "SIVE_API_KEYS"
    for name, key in ((keys_env, "gateway.api_keys"), *LISTS):
        if listed := _several(environ, name):
            said[key] = (listed, name)
    if cache := environ.get("XDG_CACHE_HOME"):
        said.setdefault("local.weights_dir", (Path(cache) / "sive" / "weights", "XDG_CACHE_HOME"))
        said.setdefault("environment.adapters_dir", (Path(cache) / "sive" / "adapters", "XDG_CACHE_HOME"))
    return {key: value for key, value in said.items() if key != "local.weights_dir" or not _has(tree, key)}


def _several(environ: Mapping[str, str], name: str) -> list[str]:
    """What a variable holds between its commas."""
    return [one.strip() for one in environ.get(name, "").split(",") if one.strip()]


def _lay_over(tree: Tree, sources: dict[str, str], said: Mapping[str, tuple[Any, str]]) -> None:
    for key, (value, source) in said.items():
        *sections, name = key.split(".")
        target = tree
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigError(f"[{section}] must be a table")
        target[name] = value
        sources[key] = source


def _has(tree: Tree, key: str) -> bool:
    section, _, name = key.partition(".")
    found = tree.get(section)
    return isinstance(found, dict) and name in found


def _leaves(tree: Tree, prefix: str = "") -> list[str]:
    leaves: list[str] = []
    for name, value in tree.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(number): one for number, one in enumerate(value)}
        leaves += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return leaves


def _validate(tree: Tree, where: str, sources: Mapping[str, str]) -> Settings:
    try:
        return Settings.model_validate(tree)
    except ValidationError as exc:
        lines = [
            f"{sources.get(_key(error), where)}: {_told(error)}" for error in exc.errors() if _is_meant(error)
        ]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _told(error: ErrorDetails) -> str:
    key = _key(error)
    location = key.split(".")
    if key == "engine.model" and error["type"] == "missing":
        return "[engine] needs a model: write model = ... there, or start with --engine MODEL"
    if error["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(location[-1], _known_keys(error["loc"]), n=1, cutoff=0.5)
        hint = (
            f"did you mean {nearest[0]!r}?"
            if nearest
            else f"known are {', '.join(_known_keys(error['loc']))}"
        )
        return f"unknown key {key!r}: {hint}"
    if error["type"] == "missing":
        return f"{key!r} is missing"
    if key == "backend" and error["type"] == "tuple_type":
        return "[backend] is one of several: write [[backend]], twice the brackets"
    if error["type"] == "tuple_type":
        return f"{key} is a list: write it in brackets, [...]"
    if error["type"] in ("url_parsing", "url_scheme"):
        given = (
            "" if "@" in str(error["input"]) else f" (it is {error['input']!r})"
        )  # there may be a password
        return f"{key}: no address of a server{given}: write http://HOST/v1 or https://HOST/v1"
    if error["type"] == "too_short":
        return f"{key} is empty: name at least one rung, or leave it out"
    message = error["msg"].removeprefix("Value error, ")
    is_secret = any("key" in part or "token" in part for part in location)
    is_plain = isinstance(error["input"], str | int | float)  # what holds others may hold a key
    shown = f" (it is {error['input']!r})" if is_plain and not is_secret else ""
    return f"{key}: {message}{shown}" if key else message


def _is_meant(error: ErrorDetails) -> bool:
    """Of a key with two types pydantic reports both; only the one that was tried to write matters."""
    route, default = UNION_PARTS
    is_text = isinstance(error["input"], str)
    return not (default in error["loc"] and not is_text) and not (route == error["loc"][-1] and is_text)


def _key(error: ErrorDetails) -> str:
    return ".".join(str(part) for part in error["loc"] if part not in UNION_PARTS)


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section that an unknown key stands in."""
    section: type[BaseModel] = Settings
    for part in location[:-1]:
        field_info = section.model_fields.get(str(part))
        if field_info is not None:
            section = _section_in(field_info.annotation) or section
    return sorted(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _section_in(arg))), None)


def _with_secrets(
    settings: Settings, sources: dict[str, str], environ: Mapping[str, str], *, must_be_there: bool
) -> Settings:
    """Fill each backend's keys from the variables it names."""
    backends = []
    for number, backend in enumerate(settings.backend):
        named = {"api_key": backend.api_key_env, "admin_key": backend.admin_key_env}
        found = {}
        for key, name in named.items():
            if name is None:
                continue
            value = environ.get(name, "").strip()
            sources[f"backend.{number}.{key}"] = name if value else f"{name}, not set"
            if value:
                found[key] = SecretStr(value)
            elif must_be_there:
                raise ConfigError(
                    f"backend {backend.name!r}: its key is to come from {name}, which is not set: "
                    f"export it, or remove {key}_env"
                )
        backends.append(backend.model_copy(update=found) if found else backend)
    return settings.model_copy(update={"backend": tuple(backends)})


def _check_routes(settings: Settings, where: str) -> None:
    known = [*BUILT_IN_BACKENDS, *(backend.name for backend in settings.backend)]
    if settings.engine is not None:
        known.append("engine")
    for name, model in settings.model.items():
        for rung in model.route if model.route != "default" else ():
            if rung.backend in known:
                continue
            nearest = difflib.get_close_matches(rung.backend, known, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
            raise ConfigError(
                f"{where}: [model.{name}] names a backend {rung.backend!r} that is not there: {hint}"
            )
