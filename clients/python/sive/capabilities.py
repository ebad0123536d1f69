"""What a backend can do, as it is shown: declared by its kind or the configuration, or learned from it."""

from dataclasses import dataclass

from sive.backends import Backend, Resume


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What decides which requests a backend gets, and what becomes of them there.

    ``context_tokens``: what it reads; None while unknown. ``tools``: requests with tools go to such ones
    first; others leave the tools out and say so. ``adapters``: it serves LoRA adapters by name. ``resume``:
    how it carries on an answer that broke off elsewhere; None while that is unknown. ``quota``: it runs out
    of credit or of GPU minutes, so it is never asked as a hedge. ``streaming``: its answers come piece by
    piece.
    """

    context_tokens: int | None
    tools: bool
    adapters: bool
    resume: Resume | None
    quota: bool
    streaming: bool


def capabilities(backend: Backend, *, gives_token_ids: bool | None = None) -> Capabilities:
    """What a backend can do. ``gives_token_ids``: what its answers showed, None while they showed nothing."""
    learned: Resume | None = None
    if gives_token_ids is not None:
        learned = "tokens" if gives_token_ids else "none"
    return Capabilities(
        context_tokens=backend.context_tokens,
        tools=backend.tools,
        adapters=backend.adapters,
        resume=backend.resume or learned,
        quota=backend.quota,
        streaming=backend.streams,
    )


def in_words(can: Capabilities) -> str:
    """One line of a table."""
    said = [f"{can.context_tokens} tokens"] if can.context_tokens else []
    said += [name for name in ("tools", "adapters", "quota") if getattr(can, name)]
    said += [f"resume by {can.resume}"] if can.resume not in (None, "none") else []
    return ", ".join([*said, *([] if can.streaming else ["whole answers"])]) or "text"
