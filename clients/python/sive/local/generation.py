"""One answer being generated: its text as it comes, why it ended, how long it was."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from sive.errors import LocalModelError
from sive.local.model import LocalModel, Sampling
from sive.protocol import FinishReason
from sive.stops import StopFinder

WATCH_S = 1.0
"""How often a generation is asked whether it died without a last token."""


class Generation:
    """Runs in a thread of CTranslate2's; all but the step callback lives on the event loop.

    ``ended`` is called once, when the thread is free again.
    """

    def __init__(
        self,
        model: LocalModel,
        tokens: list[str],
        sampling: Sampling,
        *,
        stop: Iterable[str] = (),
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.prompt_tokens = len(tokens)
        self.completion_tokens = 0
        self.finish_reason: FinishReason = "length"
        self.finished = asyncio.Event()
        self._texts: asyncio.Queue[str | LocalModelError | None] = asyncio.Queue()
        self._model = model
        self._end_token = model.end_token
        self._decoder = model.decoder()
        self._stops = StopFinder(stop)
        self._ended = ended
        self._complete = False  # the answer is all there, or nobody wants more of it
        self._loop = asyncio.get_running_loop()
        self._result = model.generate(tokens, sampling, self._step)
        self._watch_timer = self._loop.call_later(WATCH_S, self._watch)

    async def texts(self) -> AsyncIterator[str]:
        """Yield the text as it comes.

        Raises:
            LocalModelError: CTranslate2 failed in the middle.
        """
        while (text := await self._texts.get()) is not None:
            if isinstance(text, LocalModelError):
                raise text
            yield text

    def cancel(self) -> None:
        """Stop within a token."""
        self._complete = True
        self._texts.put_nowait(None)

    def _step(self, step: Any) -> bool:
        """Hand a token to the event loop; called in CTranslate2's thread."""
        stopping = self._complete or self._model.is_closing
        try:
            self._loop.call_soon_threadsafe(self._got, step.token, stopping or step.is_last)
        except RuntimeError:  # the loop is closed: nobody listens any more
            return True
        return stopping

    def _got(self, token: str, is_last: bool) -> None:
        if not self._complete:
            self._say(token, is_last)
        if is_last:
            self._free()

    def _say(self, token: str, is_last: bool) -> None:
        self.completion_tokens += 1
        is_end = token == self._end_token
        text = "" if is_end else self._stops.feed(self._decoder.feed(token))
        if self._stops.found is not None or is_end:
            self.finish_reason = "stop"
        self._complete = is_last or self._stops.found is not None
        if self._complete:
            text += self._stops.flush()
        if text:
            self._texts.put_nowait(text)
        if self._complete:
            self._texts.put_nowait(None)

    def _free(self) -> None:
        if self.finished.is_set():
            return
        self._watch_timer.cancel()
        self.finished.set()
        self._ended()

    def _watch(self) -> None:
        if self._result.done():
            # A last token that came is already waiting in the loop: let it go first.
            self._loop.call_soon(self._died)
        else:
            self._watch_timer = self._loop.call_later(WATCH_S, self._watch)

    def _died(self) -> None:
        if self.finished.is_set():
            return
        try:
            self._result.result()
            problem = "it ended without a last token"
        except Exception as exc:  # whatever C++ threw
            problem = str(exc)
        self._texts.put_nowait(LocalModelError(f"the local CPU model failed: {problem}"))
        self._free()
