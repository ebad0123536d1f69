"""langchain-openai against a gateway: prints what it got as one JSON object."""

import asyncio
import json
import sys
from typing import Any

import openai
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

URL, KEY = sys.argv[1:3]


@tool
def weather(city: str) -> str:
    """Say how the weather is."""
    return "rain"


def chat(model: str, key: str = KEY, **options: Any) -> ChatOpenAI:
    """A model of the gateway."""
    return ChatOpenAI(model=model, base_url=URL, api_key=key, max_retries=0, stream_usage=True, **options)


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
            chat(model, key).invoke("hi")
        except openai.OpenAIError as exc:
            found[name] = type(exc).__name__
    try:
        list(chat("cut").stream("hi"))
    except openai.OpenAIError as exc:
        found["cut"] = type(exc).__name__
    return found


async def cancels() -> None:
    """Leave a stream that does not end."""
    stream = chat("endless").astream("hi")
    async for _ in stream:
        await stream.aclose()
        return


whole = chat("chat").invoke("hi")
chunks = list(chat("chat").stream("hi"))
bound = chat("tools").bind_tools([weather])
called = bound.invoke("hi")
after = bound.invoke(
    [HumanMessage("hi"), called, ToolMessage("rain", tool_call_id=called.tool_calls[0]["id"])]
)
streamed = AIMessageChunk(content="")
for one in bound.stream("hi"):
    streamed += one
embeddings = OpenAIEmbeddings(model="embeddings", base_url=URL, api_key=KEY, check_embedding_ctx_length=False)
got = {
    "whole": whole.content,
    "usage": whole.usage_metadata["total_tokens"],
    "model": whole.response_metadata["model_name"],
    "stream": [one.content for one in chunks if one.content],
    "stream_usage": max(one.usage_metadata["total_tokens"] for one in chunks if one.usage_metadata),
    "embedding": embeddings.embed_query("four")[2],
    "response": chat("chat", use_responses_api=True).invoke("hi").text,
    "response_stream": [one.text for one in chat("chat", use_responses_api=True).stream("hi") if one.text],
    "tool": [
        called.tool_calls[0]["name"],
        called.tool_calls[0]["args"],
        called.response_metadata["finish_reason"],
    ],
    "tool_result": after.content,
    "tool_stream": [
        streamed.tool_calls[0]["name"],
        streamed.tool_calls[0]["args"],
        streamed.response_metadata["finish_reason"],
    ],
    "errors": errors(),
}
asyncio.run(cancels())
print(json.dumps(got))
