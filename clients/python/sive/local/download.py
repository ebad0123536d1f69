"""A GPT-2 fetched from a Hugging Face hub into the hub's own cache, where a broken download is resumed."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sive.errors import LocalModelError
from sive.hub import BytesTold, bytes_told_to, plain_errors
from sive.local import source

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TIMEOUT_S = 5.0
"""How long the hub may take to answer what is asked before the download."""


class UnreachableError(LocalModelError):
    """The hub cannot be reached."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A repository on disk, at one commit."""

    folder: Path
    commit: str
    context_tokens: int


def download(
    repo: str, *, endpoint: str | None = None, told: BytesTold = lambda done, total: None
) -> Fetched:
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
    with plain_errors(repo, hub.endpoint, error=LocalModelError, unreachable=UnreachableError):
        return _fetch(hub, repo, told)


def _fetch(hub: "HfApi", repo: str, told: BytesTold) -> Fetched:
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
        tqdm_class=bytes_told_to(told),
    )
    # A download is only checked for its size otherwise.
    if damaged := hub.verify_repo_checksums(repo, revision=commit).mismatches:
        spoiled = damaged[0]["path"]
        Path(folder, spoiled).resolve().unlink()
        raise LocalModelError(f"{repo!r}: {spoiled} was damaged on the way: prepare it again")
    return Fetched(Path(folder), commit, context)
