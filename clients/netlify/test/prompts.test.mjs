/** The drop-in for the old site, with gateways and with a Space of the oldest kind; tests/test_netlify.py has a real one. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { answerIn } from "../src/gradio.js";
import { edited } from "../src/gradio_queue.js";
import { callSNB, SNBError, streamSNB } from "../src/prompts.js";
import { answers, chunk, during, refuses, SSE } from "./upstream.mjs";

const envOf = (given) => (name) => given[name];
const gateway = (host, more = {}) => envOf({ SIVE_GATEWAY_URLS: host.url, SIVE_API_KEY: "site-key", ...more });

test("the same three arguments resolve to the full text", async (t) => {
  const host = await during(t, answers("La joie ", "est un passage."));
  const before = { SIVE_GATEWAY_URLS: process.env.SIVE_GATEWAY_URLS, SIVE_API_KEY: process.env.SIVE_API_KEY };
  t.after(() => Object.entries(before).forEach(([name, value]) => (value === undefined ? delete process.env[name] : (process.env[name] = value))));
  Object.assign(process.env, { SIVE_GATEWAY_URLS: host.url, SIVE_API_KEY: "site-key" });
  assert.equal(await callSNB("Spinoza", "Éthique III, déf. 2", "Qu'est-ce que la joie ?"), "La joie est un passage.");
  const { body, headers } = host.seen[0];
  assert.equal(headers.authorization, "Bearer site-key");
  assert.deepEqual([body.model, body.stream, body.messages.map(({ role }) => role)], ["spinoza", true, ["system", "user"]]);
  assert.match(body.messages[0].content, /^Tu es Baruch Spinoza.*Éthique III, déf\. 2$/s);
  assert.equal(body.messages[1].content, "Qu'est-ce que la joie ?");
});

test("without passages the system prompt stands alone", async (t) => {
  const host = await during(t, answers("a"));
  await streamSNB("kant", "", "?", { env: gateway(host) });
  assert.doesNotMatch(host.seen[0].body.messages[0].content, /Passages/);
});

test("deltas are told as they come, with all there is so far", async (t) => {
  const host = await during(t, answers("a", "b", "c"));
  const told = [];
  await streamSNB("kant", "", "?", { env: gateway(host), onDelta: (delta, text) => told.push([delta, text]) });
  assert.deepEqual(told, [["a", "a"], ["b", "ab"], ["c", "abc"]]);
});

test("a signal ends it, and the gateway's work", async (t) => {
  const host = await during(t, ({ reply }) => { reply.writeHead(200, SSE); reply.write(chunk({ content: "a" })); });
  const leaving = new AbortController();
  const asked = streamSNB("kant", "", "?", { env: gateway(host), signal: leaving.signal, onDelta: () => leaving.abort() });
  await assert.rejects(asked, { name: "AbortError" });
  await host.seen[0].left;
});

test("what went wrong has a status, a code and the text so far", async (t) => {
  const host = await during(t, refuses(503, "no_backend"));
  await assert.rejects(callWith(host), (error) => error instanceof SNBError && error.status === 503 && error.code === "no_backend");
  host.manner = ({ reply }) => { reply.writeHead(200, SSE); reply.write(chunk({ content: "a" }), () => reply.socket.destroy()); };
  await assert.rejects(callWith(host), (error) => error instanceof SNBError && error.text === "a");
  host.manner = ({ reply }) => { reply.writeHead(200, SSE); reply.end(chunk({ content: "a" })); };
  await assert.rejects(callWith(host), { code: "stream_interrupted", text: "a" });
  host.manner = ({ reply }) => { reply.writeHead(200, SSE); reply.end(`${chunk({ content: "a" })}data: {"error": {"message": "lab", "code": "x"}}\n\n`); };
  await assert.rejects(callWith(host), { code: "x", text: "a", message: "lab" });
});

const callWith = (host) => streamSNB("kant", "", "?", { env: gateway(host) });

test("an unknown philosopher and a missing address are said by name", async () => {
  await assert.rejects(streamSNB("Hegel", "", "?", { env: envOf({}) }), /no philosopher "Hegel".*spinoza, bergson, kant/);
  await assert.rejects(streamSNB("__proto__", "", "?", { env: envOf({}) }), RangeError);
  await assert.rejects(streamSNB("kant", "", "?", { env: envOf({}) }), /SIVE_GATEWAY_URLS is not set/);
  await assert.rejects(streamSNB("kant", "", "?", { env: envOf({ SNB_BACKEND_URL: "ftp://secret" }) }), /^(?!.*secret).*SNB_BACKEND_URL is no address/);
});

for (const [name, url, prefix] of [
  ["SNB_BACKEND_URL", (host) => `${host.url}/v1`, undefined],
  ["SNB_API_PREFIX", (host) => host.url.replace("http://", ""), "/v1"],
]) {
  test(`a backend is a gateway when ${name} ends in /v1`, async (t) => {
    const host = await during(t, answers("a"));
    const env = envOf({ SNB_BACKEND_URL: url(host), SNB_API_PREFIX: prefix });
    assert.equal(await streamSNB("kant", "", "?", { env }), "a");
    assert.equal(host.seen[0].path, "/v1/chat/completions");
  });
}

/** A Space as Gradio 4 had it: no prefix. */
const oldSpace = (...events) => ({ request, reply }) => {
  if (!request.url.startsWith("/call/")) return reply.writeHead(404).end("{}");
  if (request.method === "POST") return reply.writeHead(200, { "content-type": "application/json" }).end('{"event_id": "7"}');
  reply.writeHead(200, { "content-type": "text/event-stream" }).end(events.join(""));
};
const spoke = (name, data) => `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`;

test("on a 404 the other prefix is tried, once", async (t) => {
  const host = await during(t, oldSpace(spoke("generating", ["Deus", []]), spoke("heartbeat", null), spoke("complete", ["Deus sive Natura", []])));
  const told = [];
  const env = envOf({ SNB_BACKEND_URL: host.url, SNB_GRADIO_API: "chat", HF_TOKEN: "hf" });
  const text = await streamSNB("spinoza", "Éthique I", "Dieu ?", { env, onDelta: (delta) => told.push(delta) });
  assert.deepEqual([text, told], ["Deus sive Natura", ["Deus", " sive Natura"]]);
  assert.deepEqual(host.seen.map(({ path }) => path), ["/gradio_api/call/chat", "/call/chat", "/call/chat/7"]);
  assert.deepEqual(host.seen[1].body, { data: ["Éthique I\n\nDieu ?", []] });
  assert.ok(host.seen.every(({ headers }) => headers.authorization === "Bearer hf"));
  host.seen.length = 0;
  host.manner = ({ reply }) => reply.writeHead(404).end();
  await assert.rejects(streamSNB("spinoza", "", "?", { env }), { status: 404 });
  assert.equal(host.seen.length, 2);
});

test("a Space that changes what it said is told as a whole", async (t) => {
  const host = await during(t, oldSpace(spoke("generating", ["Je pense"]), spoke("complete", ["J'ai pensé"])));
  const told = [];
  const env = envOf({ SNB_BACKEND_URL: host.url, SNB_API_PREFIX: "", SNB_GRADIO_API: "/chat" });
  await streamSNB("spinoza", "", "?", { env, onDelta: (delta, text) => told.push([delta, text]) });
  assert.deepEqual(told, [["Je pense", "Je pense"], ["", "J'ai pensé"]]);
});

test("a Space that breaks off, fails or gives no event is an error", async (t) => {
  const env = (host) => envOf({ SNB_BACKEND_URL: host.url, SNB_API_PREFIX: "", SNB_GRADIO_API: "/chat" });
  for (const [events, message] of [
    [[spoke("generating", ["Je"])], /broke off/],
    [[spoke("generating", ["Je"]), spoke("error", null)], /does not say why/],
    [[spoke("error", { error: "CUDA OOM" })], /^CUDA OOM$/],
  ]) {
    const host = await during(t, oldSpace(...events));
    await assert.rejects(streamSNB("spinoza", "", "?", { env: env(host) }), { name: "SNBError", message });
  }
  const host = await during(t, ({ reply }) => reply.writeHead(200, { "content-type": "text/html" }).end("<p>sleeping</p>"));
  await assert.rejects(streamSNB("spinoza", "", "?", { env: env(host) }), /no event to wait for/);
  const literal = envOf({ SNB_BACKEND_URL: host.url });
  await assert.rejects(streamSNB("spinoza", "", "?", { env: literal }), /has no function \/\/chat_function: it has none/);
});

for (const [form, outputs] of [
  ["a text", ["joie"]],
  ["message and pairs", ["", [["?", "tristesse"], ["?", "joie"]]]],
  ["message and messages", ["", [{ role: "user", content: "?" }, { role: "assistant", content: "joie" }]]],
  ["parts, as Gradio 6 keeps them", ["", [{ role: "assistant", content: [{ type: "text", text: "jo" }, { type: "text", text: "ie" }] }]]],
  ["a text and an empty history", ["joie", []]],
  ["a history alone", [[["?", "joie"]]]],
]) {
  test(`the answer is found in ${form}`, () => assert.equal(answerIn(outputs), "joie"));
}

test("a question that waits in the history is no answer", () => {
  assert.equal(answerIn(["", [{ role: "user", content: "?" }]]), "");
  assert.equal(answerIn(["", [["?", null]]]), "");
});

for (const [edits, before, after] of [
  [[["append", [], "b"]], "a", "ab"],
  [[["replace", [], "b"]], "a", "b"],
  [[["append", [0, "content"], "b"]], [{ content: "a" }], [{ content: "ab" }]],
  [[["add", [1], "b"]], ["a", "c"], ["a", "b", "c"]],
  [[["delete", [0], null]], ["a", "b"], ["b"]],
  [[["add", ["k"], 1], ["replace", ["k"], 2], ["delete", ["j"], null]], { j: 0 }, { k: 2 }],
  [[], "a", "a"],
]) {
  test(`edits ${JSON.stringify(edits)} make ${JSON.stringify(after)}`, () => assert.deepEqual(edited(before, edits), after));
}

for (const step of ["__proto__", "constructor", "prototype", ["__proto__"]]) {
  test(`an edit by way of ${JSON.stringify(step)} is refused, and changes nothing`, () => {
    for (const path of [[step, "polluted"], ["a", step]]) {
      assert.throws(() => edited({ a: {} }, [["add", path, 1]]), /__proto__|constructor|prototype/);
    }
    assert.equal({}.polluted, undefined);
  });
}
