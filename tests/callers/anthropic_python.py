"""anthropic-python against a gateway: prints what it got as one JSON object."""

import asyncio
import json
import sys
from typing import Any

import anthropic

URL, KEY = sys.argv[1:3]
ASKED: dict[str, Any] = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


def errors(sdk: anthropic.Anthropic) -> dict[str, str]:
    """Which exception each failure becomes."""
    found = {}
    for name, client, model in (
        ("wrong_key", sdk.with_options(api_key="wrong"), "messages"),
        ("unknown_model", sdk, "nobody"),
        ("callers_own", sdk, "refuses"),
        ("nobody", sdk, "down"),
        ("lacking", sdk, "chat"),
    ):
        try:
            client.messages.create(model=model, **ASKED)
        except anthropic.AnthropicError as exc:
            found[name] = type(exc).__name__
    try:
        list(sdk.messages.create(model="cut", stream=True, **ASKED))
    except anthropic.AnthropicError as exc:
        found["cut"] = type(exc).__name__
    return found


async def cancels() -> None:
    """Leave a stream that does not end."""
    async with anthropic.AsyncAnthropic(base_url=URL.removesuffix("/v1"), api_key=KEY) as sdk:
        stream = await sdk.messages.create(model="endless", stream=True, **ASKED)
        async for _ in stream:
            await stream.close()
            return


with anthropic.Anthropic(base_url=URL.removesuffix("/v1"), api_key=KEY) as client:
    whole = client.messages.create(model="messages", **ASKED)
    with client.messages.stream(model="messages", **ASKED) as stream:
        streamed = list(stream.text_stream)
        final = stream.get_final_message()
    got = {
        "whole": whole.content[0].text,
        "model": whole.model,
        "stream": streamed,
        "stream_usage": final.usage.input_tokens + final.usage.output_tokens,
        "errors": errors(client),
    }
asyncio.run(cancels())
print(json.dumps(got))
