"""Which ``adapters.toml`` the commands are about, and the adapters in it by name."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sive.config import Settings, load
from sive.errors import AdapterError
from sive_adapters import sources
from sive_adapters.registry import Adapter, Release, read_adapters
from sive_adapters.store import Store

DESIRED_ADAPTERS = Path("lora_adapters/adapters.toml")
"""Read when nothing else is named."""


def list_file(named: Path | None, config: Path | None) -> Path:
    """The list that was named, else the one of [engine], else the one in this folder."""
    return named or engine_list(load(config, asks_backends=False).settings) or DESIRED_ADAPTERS


def engine_list(settings: Settings) -> Path | None:
    """The list that [engine] names."""
    return settings.engine.adapters if settings.engine is not None else None


def find(path: Path, names: list[str] | None = None) -> tuple[Adapter, ...]:
    """Return the listed adapters with these names, in their order; all when none is named.

    Raises:
        AdapterError: the list is wrong, or lacks one.
    """
    listed = {adapter.name: adapter for adapter in read_adapters(path)}
    for name in names or ():
        if name not in listed:
            nearest = get_close_matches(name, listed, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it lists {', '.join(listed) or 'none'}"
            raise AdapterError(f"{path} lists no adapter {name!r}: {hint}")
    return tuple(listed[name] for name in names or listed)


def store_of(settings: Settings) -> Store:
    """Where versions of adapters are kept on this machine."""
    engine = settings.engine.adapters_dir if settings.engine is not None else None
    return Store((engine or settings.environment.adapters_dir).expanduser())


def local_folder(adapter: Adapter, path: Path, store: Store) -> Path | None:
    """The folder with an adapter's files on this machine; None when they are elsewhere.

    Of what is not pinned, the version that was fetched from its source last.
    """
    source = sources.parse(adapter.release.source, path.parent)
    if source.kind == "file":
        return Path(source.path)
    pinned = adapter.release.sha256
    found = store.find(adapter.name, pinned) if pinned else store.latest(adapter.name, source)
    return found.folder if found is not None else None


def described(adapter: Adapter) -> dict[str, Any]:
    """An adapter for ``--json``."""
    return {
        "name": adapter.name,
        "base_model": adapter.base_model,
        **_release(adapter.release),
        "system_prompt": adapter.system_prompt,
        "languages": list(adapter.languages),
        "sampling": dict(adapter.sampling),
        "previous": [_release(release) for release in adapter.previous],
    }


def short_digest(release: Release) -> str:
    """The first 12 digits of a pinned release's digest, as in its folder's name."""
    return release.digest[:12] if release.digest else "unpinned"


def _release(release: Release) -> dict[str, Any]:
    return {"source": release.source, "digest": release.digest, "sha256": dict(release.sha256)}
