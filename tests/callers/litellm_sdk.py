"""litellm's SDK against a gateway: prints what it got as one JSON object."""

import asyncio
import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

URL, KEY = sys.argv[1:3]
HI = [{"role": "user", "content": "hi"}]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


def ask(model: str, key: str = KEY, messages: list[Any] = HI, **options: Any) -> Any:
    """A completion."""
    return litellm.completion(
        model=f"openai/{model}", messages=messages, api_base=URL, api_key=key, num_retries=0, **options
    )


def texts(stream: Any) -> list[str]:
    """The text of a stream."""
    return [one.choices[0].delta.content for one in stream if one.choices and one.choices[0].delta.content]


def errors() -> dict[str, str]:
    """Which exception each failure becomes."""
    found = {}
    for name, model, key in (
        ("wrong_key", "chat", "wrong"),
        ("unknown_model", "nobody", KEY),
        ("callers_own", "refuses", KEY),
        ("nobody", "down", KEY),
    ):
        try:
            ask(model, key)
        except Exception as exc:
            found[name] = type(exc).__name__
    try:
        texts(ask("cut", stream=True))
    except Exception as exc:
        found["cut"] = type(exc).__name__
    return found


async def cancels() -> None:
    """Leave a stream that does not end."""
    stream = await litellm.acompletion(
        model="openai/endless", messages=HI, api_base=URL, api_key=KEY, stream=True
    )
    async for _ in stream:
        await stream.aclose()
        return


whole = ask("chat")
called = ask("tools", tools=[TOOL]).choices[0]
call = called.message.tool_calls[0]
result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
streamed = litellm.stream_chunk_builder(list(ask("tools", tools=[TOOL], stream=True))).choices[0]
part = streamed.message.tool_calls[0].function
got = {
    "whole": whole.choices[0].message.content,
    "usage": whole.usage.total_tokens,
    "model": whole.model,
    "stream": texts(ask("chat", stream=True)),
    "embedding": litellm.embedding(model="openai/embeddings", input=["four"], api_base=URL, api_key=KEY).data[
        0
    ]["embedding"][2],
    "response": litellm.responses(model="openai/chat", input="hi", api_base=URL, api_key=KEY)
    .output[0]
    .content[0]
    .text,
    "tool": [call.function.name, call.function.arguments, called.finish_reason],
    "tool_result": ask("tools", messages=[*HI, called.message.model_dump(), result], tools=[TOOL])
    .choices[0]
    .message.content,
    "tool_stream": [part.name, part.arguments, streamed.finish_reason],
    "errors": errors(),
}
asyncio.run(cancels())
print(json.dumps(got))
