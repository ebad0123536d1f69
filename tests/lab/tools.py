"""A host whose model calls a tool."""

from tests.lab.upstream import Exchange, Json, answers, chunk

CALL_ID = "call_1"
PIECES = ('{"city"', ': "Am', 'sterdam"}')
ARGUMENTS = "".join(PIECES)


async def calls_a_tool(exchange: Exchange) -> None:
    """Calls the first tool of the request; once it has its result, answers with it."""
    body = exchange.seen.body
    results = [one for one in body["messages"] if one["role"] == "tool"]
    if results:
        assert results[-1]["tool_call_id"] == CALL_ID
        await answers("It is ", str(results[-1]["content"]))(exchange)
        return
    function: Json = {"name": body["tools"][0]["function"]["name"], "arguments": ARGUMENTS}
    if not body.get("stream"):
        call = {"id": CALL_ID, "type": "function", "function": function}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        answer = {"id": "x", "object": "chat.completion", "created": 1, "model": exchange.model}
        await exchange.json({**answer, "choices": [choice], "usage": usage})
        return
    await exchange.head()
    begun = {"index": 0, "id": CALL_ID, "type": "function", "function": function | {"arguments": ""}}
    await exchange.event(chunk(exchange, {"role": "assistant", "content": None, "tool_calls": [begun]}))
    for piece in PIECES:
        part = {"index": 0, "function": {"arguments": piece}}
        await exchange.event(chunk(exchange, {"tool_calls": [part]}))
    await exchange.event(chunk(exchange, {}, "tool_calls"))
    await exchange.done()
