"""openai-python against a gateway: prints what it got as one JSON object."""

import asyncio
import json
import sys

import openai

URL, KEY = sys.argv[1:3]
HI = [{"role": "user", "content": "hi"}]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


def chats(sdk: openai.OpenAI) -> dict[str, object]:
    """Text in one piece and streamed, models and embeddings."""
    whole = sdk.chat.completions.create(model="chat", messages=HI)
    options = {"include_usage": True}
    chunks = list(sdk.chat.completions.create(model="chat", messages=HI, stream=True, stream_options=options))
    return {
        "whole": whole.choices[0].message.content,
        "usage": whole.usage.total_tokens,
        "model": whole.model,
        "backend": whole.model_extra["sive"]["backend"],
        "stream": [
            one.choices[0].delta.content for one in chunks if one.choices and one.choices[0].delta.content
        ],
        "stream_usage": chunks[-1].usage.total_tokens,
        "models": [one.id for one in sdk.models.list()],
        "embedding": sdk.embeddings.create(model="embeddings", input="four").data[0].embedding[2],
    }


def responds(sdk: openai.OpenAI) -> dict[str, object]:
    """Responses in one piece and streamed."""
    told = list(sdk.responses.create(model="chat", input="hi", stream=True))
    return {
        "response": sdk.responses.create(model="chat", input="hi").output_text,
        "response_stream": [one.delta for one in told if one.type == "response.output_text.delta"],
        "response_end": told[-1].type,
    }


def calls_tools(sdk: openai.OpenAI) -> dict[str, object]:
    """A tool call in one piece and streamed, and what follows its result."""
    whole = sdk.chat.completions.create(model="tools", messages=HI, tools=[TOOL]).choices[0]
    call = whole.message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    after = sdk.chat.completions.create(model="tools", messages=[*HI, whole.message, result], tools=[TOOL])
    with sdk.chat.completions.stream(model="tools", messages=HI, tools=[TOOL]) as stream:
        stream.until_done()
        streamed = stream.get_final_completion().choices[0]
    return {
        "tool": [call.function.name, call.function.arguments, whole.finish_reason],
        "tool_result": after.choices[0].message.content,
        "tool_stream": [
            streamed.message.tool_calls[0].function.name,
            streamed.message.tool_calls[0].function.arguments,
            streamed.finish_reason,
        ],
    }


def errors(sdk: openai.OpenAI) -> dict[str, str]:
    """Which exception each failure becomes."""
    found = {}
    for name, client, model in (
        ("wrong_key", sdk.with_options(api_key="wrong"), "chat"),
        ("unknown_model", sdk, "nobody"),
        ("callers_own", sdk, "refuses"),
        ("nobody", sdk, "down"),
    ):
        try:
            client.chat.completions.create(model=model, messages=HI)
        except openai.OpenAIError as exc:
            found[name] = type(exc).__name__
    try:
        list(sdk.chat.completions.create(model="cut", messages=HI, stream=True))
    except openai.OpenAIError as exc:
        found["cut"] = type(exc).__name__
    return found


async def cancels() -> None:
    """Leave a stream that does not end."""
    async with openai.AsyncOpenAI(base_url=URL, api_key=KEY) as sdk:
        stream = await sdk.chat.completions.create(model="endless", messages=HI, stream=True)
        async for _ in stream:
            await stream.close()
            return


with openai.OpenAI(base_url=URL, api_key=KEY) as client:
    got = chats(client) | responds(client) | calls_tools(client) | {"errors": errors(client)}
asyncio.run(cancels())
print(json.dumps(got))
