"""Listed adapters that lie in local folders, which is what the engine can be started with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sive.errors import AdapterError

from sive_adapters import registry, sources
from sive_adapters.lora_config import lora_rank

# As PEFT saves them; vLLM takes the first that is there.
WEIGHTS_FILES = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Adapter:
    """A LoRA in a local folder.

    ``base_model`` is a hub id, or the absolute path of a folder; ``rank`` the largest its layers have.
    """

    name: str
    path: Path
    base_model: str
    rank: int

    @property
    def weights_file(self) -> Path:
        """The file its tensors are in."""
        return weights_file(self.path)


def read_adapters(path: Path) -> tuple[Adapter, ...]:
    """Read ``adapters.toml`` and look into every folder it names.

    Raises:
        AdapterError: the file or an adapter in it is wrong; one line names what, and the way out.
    """
    return local_adapters(registry.read_adapters(path), path.parent)


def local_adapters(listed: Sequence[registry.Adapter], folder: Path) -> tuple[Adapter, ...]:
    """Return listed adapters with what their folders say; ``file:`` sources are relative to ``folder``.

    Raises:
        AdapterError: one is elsewhere, or its folder is not that of a LoRA.
    """
    return tuple(_local(adapter, folder) for adapter in listed)


def weights_file(folder: Path) -> Path:
    """Return the file that holds an adapter's tensors.

    Raises:
        AdapterError: there is none.
    """
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise AdapterError(f"adapter folder {folder} has no weights: expected {' or '.join(WEIGHTS_FILES)}")


def _local(adapter: registry.Adapter, folder: Path) -> Adapter:
    where = f"adapter {adapter.name!r}"
    source = sources.parse(adapter.release.source, folder)
    if source.kind != "file":
        raise AdapterError(
            f"{where} has the source {adapter.release.source!r}, which cannot be served yet: "
            "download it and write file:FOLDER"
        )
    path = Path(source.path)
    if not path.is_dir():
        raise AdapterError(f"{where}: there is no folder {path}: correct its source, or train it first")
    rank = lora_rank(path)
    weights_file(path)
    return Adapter(adapter.name, path, adapter.base_model, rank)
