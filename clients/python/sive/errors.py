"""Every error sive raises, as one tree.

SiveError
├── ConfigError       a file, key, value or environment variable is wrong
├── RequestError      the caller's request is wrong; carries the OpenAI error to answer with
├── LostError         a backend was lost before or during its answer
├── UnavailableError  a backend cannot answer, and says why
├── LocalModelError   the CPU model cannot be loaded, converted or run
├── AdapterError      an adapter or the list of adapters is wrong
├── EngineError       the engine cannot be started
└── PodError          a pod's template is wrong, or it cannot be rented
"""

from typing import Literal

Why = Literal["refused", "reset", "reset_reused", "eof", "tls", "dns", "timeout", "malformed", "too_large"]


LOST_IN_WORDS: dict[Why, str] = {
    "refused": "refused the connection",
    "dns": "its name was not found",
    "tls": "its certificate or TLS failed",
    "timeout": "did not answer in time",
    "reset": "reset the connection",
    "reset_reused": "reset the connection",
    "eof": "closed the connection in the middle",
    "malformed": "sent what is not HTTP or not an event stream",
    "too_large": "sent more than is accepted",
}


class SiveError(Exception):
    """Base of all errors of this project; its text is fit to show to a person."""


class ConfigError(SiveError):
    """A file, key, value or environment variable is wrong; the text names it and the way out."""


class RequestError(SiveError):
    """The caller's request is wrong: ``status``, ``type``, ``param`` and ``code`` as OpenAI spells them."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",  # noqa: A002 - the field's own name
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.param = param
        self.code = code


class LostError(SiveError):
    """A backend was lost: ``why`` is one word for policy and metrics, the text is for people."""

    def __init__(self, why: Why, detail: str = "") -> None:
        super().__init__(f"{why}: {detail}" if detail else why)
        self.why: Why = why


class UnavailableError(SiveError):
    """A backend cannot answer: ``reason`` is one word for metrics, the text is fit for callers.

    ``rest_s``: it will not be back sooner. ``needs_owner``: nothing but a person's hand brings it back.
    ``is_well``: it could answer others. Without any it may be a failure of the moment. ``of_model``: all that
    is true of one model there, and others may be well.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        rest_s: float | None = None,
        needs_owner: bool = False,
        is_well: bool = False,
        of_model: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.rest_s = rest_s
        self.needs_owner = needs_owner
        self.is_well = is_well
        self.of_model = of_model


class LocalModelError(SiveError):
    """The CPU model cannot be loaded, converted or run."""


class AdapterError(SiveError):
    """An adapter, or the list of adapters, is wrong."""


class EngineError(SiveError):
    """The engine cannot be started."""


class PodError(SiveError):
    """A pod's template is wrong, or it cannot be rented."""
