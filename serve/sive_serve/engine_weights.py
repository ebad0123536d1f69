"""The base model's weights, on this disk before vLLM starts, so that somebody sees how far they are."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sive.errors import AdapterError, EngineError
from sive_adapters.store import Progress
from sive_adapters.streaming import streamed, streamer_modules
from sive_adapters.weights import Step, Wanted, fetch_model

from sive_serve.daemon_thread import in_thread

BUCKETS = ("s3://", "gs://", "az://")

log = logging.getLogger(__name__)


class EngineWeights:
    """The weights of ``model``: a folder, an object store's prefix, or a hub id (with a ``revision``).

    ``folder``: where what is fetched is kept. ``python``: the engine's own, which may be able to stream.
    ``progress``: of each file that is being fetched, by its name.
    """

    def __init__(
        self, model: str, revision: str | None, folder: Path, *, python: Path, environ: Mapping[str, str]
    ) -> None:
        self.progress: dict[str, Progress] = {}
        self._model = model
        self._revision = revision
        self._folder = folder
        self._python = python
        self._environ = environ
        self._is_closed = False

    async def fetch(self) -> dict[str, Any]:
        """Return what vLLM is told: a folder, or how it reads the weights itself.

        Raises:
            EngineError: they cannot be had; the text says why.
        """
        if Path(self._model).is_absolute():
            return {"model": self._model}
        if self._model.startswith(BUCKETS):
            modules = await in_thread(lambda: streamer_modules(self._python))
            if config := streamed(self._model, modules):
                log.info("engine: vLLM streams %s", self._model)
                return dict(config)
        return await in_thread(self._fetched)

    def close(self) -> None:
        """Stop what is under way; it goes on from where it was the next time."""
        self._is_closed = True

    def _fetched(self) -> dict[str, Any]:
        is_bucket = self._model.startswith(BUCKETS)
        named = self._model
        if self._revision is not None and not is_bucket:
            named = f"hf://{self._model}@{self._revision}"
        steps: list[Step] = []
        try:
            outcome = fetch_model(
                Wanted(named, self._environ), self._folder, told=self._told, said=steps.append
            )
        finally:
            self.progress = {}
        if outcome.folder is not None:
            log.info("engine: %s", steps[-1].reason)
            return {"model": str(outcome.folder)}
        reason = next((step.reason for step in steps if not step.is_taken), "nobody has it")
        if is_bucket:
            raise EngineError(f"the model cannot be had: {reason}")
        # A form of weights that is not fetched here, or a place that only vLLM knows: it explains itself.
        log.warning("engine: vLLM is left to find %s itself: %s", self._model, reason)
        return {"model": self._model}

    def _told(self, progress: Progress) -> None:
        if self._is_closed:
            raise AdapterError("sive is stopping")
        self.progress[progress.what] = progress
