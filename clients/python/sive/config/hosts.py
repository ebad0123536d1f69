"""Keys of a ``[[backend]]`` that only some kinds of hosts have; see docs/backends.md."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal[
    "openai",
    "hf",
    "hf-endpoint",
    "together",
    "openrouter",
    "runpod-serverless",
    "runpod-lb",
    "runpod-queue",
    "replicate",
    "gradio",
]

OWNER_AND_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$"

KINDS_OF: dict[str, tuple[Kind, ...]] = {
    "endpoint_id": ("runpod-serverless", "runpod-lb", "runpod-queue"),
    **dict.fromkeys(("space", "prefix", "function", "arguments", "history", "hub_url"), ("gradio",)),
    **dict.fromkeys(("deployment", "version", "input", "template"), ("replicate",)),
}


SAY_ALL_ANEW: tuple[Kind, ...] = ("gradio", "replicate")
"""Kinds that take a message and its history, not an answer that was begun; a raw prompt can hold one."""


class HostSettings(BaseModel):
    """What a host needs beside what all have.

    ``endpoint_id``: RunPod's. ``space``: ``owner/name`` on the Hub. ``prefix``: where a Gradio app's API
    lies. ``function``, ``arguments``, ``history``: what is called there and what it is given; asked of the
    app when left out. ``hub_url``: who knows how the Space does. ``deployment``, ``version``: Replicate's,
    else the rung's model. ``input``: constants for that model. ``template``: how it is given a conversation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "openai"
    endpoint_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    space: Annotated[str, Field(pattern=OWNER_AND_NAME)] | None = None
    prefix: str = "/gradio_api"
    function: str | None = None
    arguments: tuple[str | dict[str, Any], ...] | None = None
    history: Literal["messages", "parts", "tuples"] | None = None
    hub_url: str = "https://huggingface.co"
    deployment: Annotated[str, Field(pattern=OWNER_AND_NAME)] | None = None
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,128}$")] | None = None
    input: dict[str, Any] = Field(default_factory=dict)
    template: Literal["inputs", "chatml", "messages"] = "inputs"

    def has(self, key: str) -> bool:
        """Does a key mean something for this kind?"""
        return self.kind in KINDS_OF.get(key, (self.kind,))

    @model_validator(mode="after")
    def _keys_are_its_kinds(self) -> "HostSettings":
        for key, kinds in KINDS_OF.items():
            if key in self.model_fields_set and not self.has(key):
                raise ValueError(f"{key!r} is for kind {' or '.join(map(repr, kinds))}, not {self.kind!r}")
        goes_on = getattr(self, "resume", None) in ("text", "tokens")
        if goes_on and self.kind in SAY_ALL_ANEW and self.template != "chatml":
            raise ValueError(f"a {self.kind!r} backend cannot go on with an answer: leave resume out")
        for argument in self.arguments or ():
            if isinstance(argument, dict) and argument.keys() != {"value"}:
                raise ValueError("an argument is a name, or a constant: { value = ... }")
        return self
