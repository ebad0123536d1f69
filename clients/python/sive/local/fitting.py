"""A request made to fit a model's context: its tokens, and how many may follow."""

from dataclasses import dataclass, replace

from sive.errors import RequestError
from sive.local.model import LocalModel, Sampling
from sive.local.request import LocalRequest
from sive.local.template import Chat, fit, fit_text

BYTES_PER_TOKEN = 16
"""More bytes than this for every token of the context cannot fit: refused without tokenising them."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What is handed to the model. ``truncated``: something of the request was dropped."""

    tokens: list[str]
    sampling: Sampling
    truncated: bool


def fitted(asked: LocalRequest, model: LocalModel, default_max_tokens: int, *, truncate: bool) -> Fitted:
    """Return the request's tokens and how its answer is drawn.

    With ``truncate`` what is oldest is dropped, so that half the context at most is kept for the answer.

    Raises:
        RequestError: it does not fit and may not be truncated.
    """
    context = model.info.context_tokens
    max_tokens = asked.max_tokens or default_max_tokens
    wanted = _within_reach(asked.prompt, model.personas)
    prompt = _truncated(wanted, model, max_tokens) if truncate else wanted
    text = _text(prompt)
    if len(text.encode()) > context * BYTES_PER_TOKEN:
        raise _too_long(asked, context, f"more than {context}")
    tokens = model.encode(text)
    room = context - len(tokens)
    if room < 1:
        raise _too_long(asked, context, str(len(tokens)))
    temperature = model.temperature if asked.temperature is None else asked.temperature
    sampling = Sampling(min(max_tokens, room), temperature, asked.top_p)
    return Fitted(tokens, sampling, truncated=prompt != wanted)


def _within_reach(prompt: Chat | str, personas: tuple[str, ...]) -> Chat | str:
    """Without a system text that makes it somebody whom it does not know: it would be one of its own."""
    if isinstance(prompt, str) or not personas or any(name in prompt.system for name in personas):
        return prompt
    return replace(prompt, system="")


def _truncated(prompt: Chat | str, model: LocalModel, max_tokens: int) -> Chat | str:
    context = model.info.context_tokens
    budget = context - min(max_tokens, context // 2)
    if isinstance(prompt, str):
        return fit_text(prompt, budget, model.count, bytes_per_token=BYTES_PER_TOKEN)
    return fit(prompt, budget, model.count, bytes_per_token=BYTES_PER_TOKEN)


def _text(prompt: Chat | str) -> str:
    return prompt if isinstance(prompt, str) else prompt.prompt()


def _too_long(asked: LocalRequest, context: int, tokens: str) -> RequestError:
    chat = asked.endpoint == "chat/completions"
    said = "your messages resulted in" if chat else "your prompt has"
    return RequestError(
        f"This model's maximum context length is {context} tokens. However, {said} {tokens} tokens. "
        f"Please reduce the length of the {'messages' if chat else 'prompt'}.",
        param="messages" if chat else "prompt",
        code="context_length_exceeded",
    )
