"""The wire to the CPU model in this process: OpenAI requests in, OpenAI answers out."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sive.config.sections import LocalSettings
from sive.errors import LocalModelError, LostError, RequestError
from sive.local import store
from sive.local.memory import give_back
from sive.local.request import LocalRequest, read
from sive.local.slots import QueueFullError, Slot, Slots
from sive.local.store import LocalModelInfo
from sive.local.template import Chat
from sive.protocol import (
    DONE,
    JSON_HEADERS,
    SSE_HEADERS,
    AnswerShape,
    FinishReason,
    Json,
    dumps,
    error,
    error_of,
    event,
)
from sive.wires import WireRequest, WireResponse
from sive.wires.pulled import PulledWire

if TYPE_CHECKING:  # the engines are imported at the first request
    from sive.local.choices import Choices
    from sive.local.generation import Generation
    from sive.local.model import LocalModel

log = logging.getLogger(__name__)

TRUNCATE = "x-sive-truncate"
TRUNCATED = "x-sive-truncated"


class LocalWire(PulledWire):
    """Answers with the CPU model; loads it at the first request and nothing before.

    ``embedded`` is the folder of the model that stands in when the configured one cannot answer.
    """

    def __init__(self, settings: LocalSettings, embedded: Path = store.EMBEDDED) -> None:
        self._settings = settings
        self._embedded = embedded
        self._slots = Slots(settings.slots, settings.queue)
        self._loading: asyncio.Task[LocalModel] | None = None
        self._answers: set[Choices] = set()

    def describe(self) -> LocalModelInfo:
        """Return the model that answers, or, before the first request, the one that would.

        Raises:
            LocalModelError: there is no model at all.
        """
        loading = self._loading
        if loading and loading.done() and not loading.cancelled() and not loading.exception():
            return loading.result().info
        return store.choose(self._settings, self._embedded)

    async def open(self, request: WireRequest) -> WireResponse:
        """Answer; what is wrong with the request, and a full queue, are replies too."""
        try:
            return await self._answer(request)
        except RequestError as problem:
            return _Reply(problem.status, error_of(problem))
        except QueueFullError as full:
            return _overloaded(full)
        except LocalModelError as exc:
            log.warning("the local CPU model cannot answer: %s", exc)
            return _Reply(503, error(str(exc), type="server_error", code="model_unavailable"))

    async def aclose(self) -> None:
        """Stop all generations and free the model."""
        answers = list(self._answers)
        for choices in answers:
            choices.cancel()
        for choices in answers:
            await choices.finished.wait()
        loading, self._loading = self._loading, None
        if loading is not None:
            await asyncio.wait([loading])
            if not loading.cancelled() and loading.exception() is None:
                loading.result().close()

    async def _answer(self, request: WireRequest) -> WireResponse:
        asked = read(request.url, request.body)
        headers = {name.lower(): value for name, value in request.headers.items()}
        slot = await self._slots.acquire()
        try:
            return await self._generate(asked, slot, truncate=headers.get(TRUNCATE) == "1")
        except BaseException:  # also when the caller left while the model was loading
            slot.release()
            raise

    async def _generate(self, asked: LocalRequest, slot: Slot, *, truncate: bool) -> WireResponse:
        from sive.local.choices import Choices
        from sive.local.fitting import fitted
        from sive.local.generation import Generation

        model = await self._model()
        fit = await asyncio.to_thread(fitted, asked, model, self._settings.max_tokens, truncate=truncate)

        def begin(freed: Callable[[], None]) -> Generation:
            return Generation(model, fit.tokens, fit.sampling, stop=asked.stop, ended=freed)

        def ended() -> None:
            self._answers.discard(choices)
            slot.release()

        choices = Choices(begin, asked.choices, ended=ended)
        self._answers.add(choices)
        return _Answer(asked, model.info.name, choices, truncated=fit.truncated)

    async def _model(self) -> "LocalModel":
        if self._loading is None:
            self._loading = asyncio.create_task(asyncio.to_thread(_load, self._settings, self._embedded))
        loading = self._loading
        try:
            return await asyncio.shield(loading)  # one caller who leaves does not stop it for the others
        except LocalModelError:
            if self._loading is loading:
                self._loading = None  # the next request tries again
            raise


def _load(settings: LocalSettings, embedded: Path) -> "LocalModel":
    from sive.local.model import LocalModel
    from sive.local.prepare import converted

    info = store.choose(settings, embedded)
    try:
        model = LocalModel(converted(info, store.weights_dir(settings)), settings.slots)
    except LocalModelError as problem:
        if info.path == embedded:
            raise
        info = store.instead(embedded, problem)
        model = LocalModel(info, settings.slots)
    if info.path == embedded and info.why not in (store.EMBEDDED_DEFAULT, store.CONFIGURED):
        log.warning("the embedded model answers: %s", info.why)
    give_back()
    return model


class _Reply:
    """A whole reply known from the start."""

    def __init__(self, status: int, payload: Json, headers: Mapping[str, str] = JSON_HEADERS) -> None:
        self.status = status
        self.headers = headers
        self._body = dumps(payload)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body

    async def aclose(self) -> None:
        """Nothing is held."""


def _overloaded(full: QueueFullError) -> _Reply:
    payload = error(f"the local CPU model is busy: {full}", type="server_error", code="overloaded")
    return _Reply(503, payload, {**JSON_HEADERS, "retry-after": str(full.retry_after_s)})


class _Answer:
    """The reply to a request that is being generated: server-sent events, or one JSON object."""

    status = 200

    def __init__(self, asked: LocalRequest, model: str, choices: "Choices", *, truncated: bool) -> None:
        self.headers: Mapping[str, str] = {
            **(SSE_HEADERS if asked.stream else JSON_HEADERS),
            **({TRUNCATED: "1"} if truncated else {}),
        }
        self._asked = asked
        self._shape = AnswerShape(asked.endpoint, model)
        self._choices = choices

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._events() if self._asked.stream else self._whole()

    async def aclose(self) -> None:
        """Stop generating within a token."""
        self._choices.cancel()

    async def _events(self) -> AsyncIterator[bytes]:
        prompt_tokens = completion_tokens = 0
        tail = b""
        async for index, said in self._choices:
            is_chat = self._asked.endpoint == "chat/completions"
            head = tail + (event(self._shape.role(index)) if is_chat else b"")
            async for text in self._texts(said):
                yield head + event(self._shape.text(text, index=index))
                head = b""
            tail = head + event(self._shape.text("", said.finish_reason, index))
            prompt_tokens, completion_tokens = said.prompt_tokens, completion_tokens + said.completion_tokens
        if self._asked.include_usage:
            tail += event(self._shape.usage(prompt_tokens, completion_tokens))
        yield tail + DONE

    async def _whole(self) -> AsyncIterator[bytes]:
        told: list[tuple[str, FinishReason]] = []
        prompt_tokens = completion_tokens = 0
        async for _, said in self._choices:
            told.append(("".join([text async for text in self._texts(said)]), said.finish_reason))
            prompt_tokens, completion_tokens = said.prompt_tokens, completion_tokens + said.completion_tokens
        yield dumps(self._shape.whole(told, prompt_tokens, completion_tokens))

    async def _texts(self, said: "Generation") -> AsyncIterator[str]:
        """Yield the answer's text; the space after "Assistant:" is the template's, not the answer's."""
        prompt = self._asked.prompt
        is_first = isinstance(prompt, Chat) and not prompt.goes_on
        try:
            async for text in said.texts():
                shown = text.removeprefix(" ") if is_first else text
                is_first = False
                if shown:
                    yield shown
        except LocalModelError as exc:
            raise LostError("eof", str(exc)) from exc
