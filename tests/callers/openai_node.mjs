// openai-node against a gateway: prints what it got as one JSON object.
// The SDK lies elsewhere, so its place is named: node openai_node.mjs PLACE URL KEY
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [place, baseURL, apiKey] = process.argv.slice(2);
const found = createRequire(`${place}/package.json`).resolve("openai");
const { default: OpenAI } = await import(pathToFileURL(found));

const sdk = new OpenAI({ baseURL, apiKey });
const messages = [{ role: "user", content: "hi" }];
const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
const got = { errors: {} };

const whole = await sdk.chat.completions.create({ model: "chat", messages });
got.whole = whole.choices[0].message.content;
got.usage = whole.usage.total_tokens;
got.model = whole.model;
got.backend = whole.sive.backend;

got.stream = [];
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await sdk.chat.completions.create({ model: "chat", messages, ...options })) {
  if (chunk.choices[0]?.delta.content) got.stream.push(chunk.choices[0].delta.content);
  if (chunk.usage) got.stream_usage = chunk.usage.total_tokens;
}
got.models = [];
for await (const model of sdk.models.list()) got.models.push(model.id);
const embedded = await sdk.embeddings.create({ model: "embeddings", input: "four", encoding_format: "float" });
got.embedding = embedded.data[0].embedding[2];

got.response = (await sdk.responses.create({ model: "chat", input: "hi" })).output_text;
got.response_stream = [];
for await (const event of await sdk.responses.create({ model: "chat", input: "hi", stream: true })) {
  if (event.type === "response.output_text.delta") got.response_stream.push(event.delta);
  got.response_end = event.type;
}

const called = (await sdk.chat.completions.create({ model: "tools", messages, tools })).choices[0];
const call = called.message.tool_calls[0];
got.tool = [call.function.name, call.function.arguments, called.finish_reason];
const result = { role: "tool", tool_call_id: call.id, content: "rain" };
const after = await sdk.chat.completions.create({ model: "tools", messages: [...messages, called.message, result], tools });
got.tool_result = after.choices[0].message.content;
const streamed = (await sdk.chat.completions.stream({ model: "tools", messages, tools }).finalChatCompletion()).choices[0];
const part = streamed.message.tool_calls[0].function;
got.tool_stream = [part.name, part.arguments, streamed.finish_reason];

const raised = async (name, ask) => {
  try {
    await ask();
  } catch (error) {
    got.errors[name] = error.constructor.name;
  }
};
const wrong = new OpenAI({ baseURL, apiKey: "wrong" });
await raised("wrong_key", () => wrong.chat.completions.create({ model: "chat", messages }));
await raised("unknown_model", () => sdk.chat.completions.create({ model: "nobody", messages }));
await raised("callers_own", () => sdk.chat.completions.create({ model: "refuses", messages }));
await raised("nobody", () => sdk.chat.completions.create({ model: "down", messages }));
await raised("cut", async () => {
  for await (const _ of await sdk.chat.completions.create({ model: "cut", messages, stream: true }));
});

const endless = await sdk.chat.completions.create({ model: "endless", messages, stream: true });
for await (const _ of endless) {
  endless.controller.abort();
  break;
}
console.log(JSON.stringify(got));
