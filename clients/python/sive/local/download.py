"""A GPT-2 fetched from a Hugging Face hub into the hub's own cache, where a broken download is resumed."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sive.errors import LocalModelError
from sive.local import source

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TIMEOUT_S = 5.0
"""How long the hub may take to answer what is asked before the download."""

Told = Callable[[int, int], None]


class UnreachableError(LocalModelError):
    """The hub cannot be reached."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A repository on disk, at one commit."""

    folder: Path
    commit: str
    context_tokens: int


def download(repo: str, *, endpoint: str | None = None, told: Told = lambda done, total: None) -> Fetched:
    """Fetch what a conversion reads.

    The token is huggingface_hub's own: HF_TOKEN or ``hf auth login``.

    Raises:
        UnreachableError: no network.
        LocalModelError: no such repository, no access, not a GPT-2, or damaged on the way.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as exc:
        raise LocalModelError(f"preparing a model needs {exc.name}: pip install 'sive[local]'") from exc
    hub = HfApi(endpoint=endpoint)
    with _plain_errors(repo, hub.endpoint):
        return _fetch(hub, repo, told)


def _fetch(hub: "HfApi", repo: str, told: Told) -> Fetched:
    about = hub.model_info(repo, timeout=TIMEOUT_S)
    files = [file.rfilename for file in about.siblings or ()]
    if "model.safetensors" not in files:
        raise LocalModelError(f"{repo!r} has no model.safetensors: pytorch_model.bin and shards are not read")
    commit = str(about.sha)
    config = Path(hub.hf_hub_download(repo, "config.json", revision=commit, etag_timeout=TIMEOUT_S))
    # Another architecture is refused before its weights are fetched.
    context = source.context_tokens(config.parent)
    folder = hub.snapshot_download(
        repo,
        revision=commit,
        allow_patterns=list(source.FILES),
        etag_timeout=TIMEOUT_S,
        tqdm_class=_bytes_told_to(told),
    )
    # A download is only checked for its size otherwise.
    if damaged := hub.verify_repo_checksums(repo, revision=commit).mismatches:
        spoiled = damaged[0]["path"]
        Path(folder, spoiled).resolve().unlink()
        raise LocalModelError(f"{repo!r}: {spoiled} was damaged on the way: prepare it again")
    return Fetched(Path(folder), commit, context)


def _unreachable() -> tuple[type[Exception], ...]:
    from httpx2 import TransportError
    from huggingface_hub.errors import LocalEntryNotFoundError

    return (TransportError, LocalEntryNotFoundError)


@contextlib.contextmanager
def _plain_errors(repo: str, endpoint: str) -> Iterator[None]:
    """Turn the hub's errors into one line that names what was asked."""
    from httpx2 import HTTPError
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as exc:
        raise UnreachableError(f"{repo!r} cannot be fetched: HF_HUB_OFFLINE is set") from exc
    except errors.GatedRepoError as exc:
        raise LocalModelError(
            f"{repo!r} is gated: accept its terms at {endpoint}/{repo} and set HF_TOKEN"
        ) from exc
    except errors.RepositoryNotFoundError as exc:
        raise LocalModelError(
            f"{endpoint} has no model {repo!r} for us: check its name, and HF_TOKEN if it is private"
        ) from exc
    except errors.HFValidationError as exc:
        raise LocalModelError(
            f"{repo!r} is neither a folder nor a model's name such as openai-community/gpt2"
        ) from exc
    except errors.HfHubHTTPError as exc:
        raise LocalModelError(f"{repo!r}: {endpoint} answered {exc.response.status_code}") from exc
    except _unreachable() as exc:
        raise UnreachableError(
            f"{repo!r} cannot be fetched: {endpoint} is not reachable ({_first_line(exc)})"
        ) from exc
    except (HTTPError, OSError) as exc:
        raise LocalModelError(f"{repo!r} cannot be fetched from {endpoint}: {_first_line(exc)}") from exc


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]


def _bytes_told_to(told: Told) -> Any:
    """Return a tqdm that draws nothing and reports the bytes; huggingface_hub also counts files with it."""
    from tqdm.std import tqdm  # type: ignore[import-untyped]  # huggingface_hub's, without stubs

    class Reporter(tqdm):  # type: ignore[misc]  # it is untyped
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            called = str(kwargs.get("desc", ""))
            self._is_bytes = kwargs.get("unit") == "B" and called.startswith("Downloading")
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "gui": False, "disable": False, "file": _Nowhere()})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self._is_bytes and self.total:
                told(int(self.n), int(self.total))
            return None

        def refresh(self, *args: Any, **kwargs: Any) -> bool:
            return True

        def display(self, *args: Any, **kwargs: Any) -> bool:
            return True

    return Reporter


class _Nowhere:
    def write(self, text: str) -> None:
        """Draw nothing."""

    def flush(self) -> None:
        """Draw nothing."""
