/** The streaming function: what passes, what happens at the wall, and when the page leaves. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { chat } from "../netlify/functions/chat.mjs";
import { answers, chunk, chunksOf, during, environmentOf, question, refuses, SSE, textOf } from "./upstream.mjs";

const context = { ip: "192.0.2.7" };
const MESSAGES = [{ role: "user", content: "Qu'est-ce que la joie ?" }];

const ask = (host, { body = {}, env = {}, signal } = {}, more = {}) =>
  chat({ env: environmentOf(host.url, env) })(
    question("/api/chat", { model: "kant", stream: true, messages: MESSAGES, ...body }, { signal }),
    { ...context, ...more },
  );

/** Says so much, and then nothing for ever; a cancel is answered. */
const saysThenWaits = (...parts) => ({ request, reply }) => {
  if (request.url.endsWith("/cancel")) return reply.writeHead(200).end("{}");
  reply.writeHead(200, SSE);
  reply.flushHeaders();
  for (const part of parts) reply.write(part);
};

/** The wall is near. */
const SOON = { SIVE_FUNCTION_WALL_S: "2" };

describe("the streaming function", { concurrency: true }, () => {
  test("a short answer passes as it is, in whole events however the bytes are cut", async (t) => {
    const host = await during(t, async ({ reply }) => {
      reply.writeHead(200, SSE);
      const bytes = Buffer.from(`: waiting\n\n${chunk({ content: "Nature — é" })}${chunk({}, "stop")}data: [DONE]\n\n`);
      for (const byte of bytes) { reply.write(Buffer.of(byte)); await new Promise(setImmediate); }
      reply.end();
    });
    const response = await ask(host);
    assert.equal(response.headers.get("content-type"), SSE["content-type"]);
    const parts = [];
    for await (const part of response.body.pipeThrough(new TextDecoderStream())) parts.push(part);
    assert.ok(parts.every((part) => part.endsWith("\n\n")), "half an event");
    const text = parts.join("");
    assert.match(text, /^: waiting\n\n.*Nature — é.*\[DONE\]\n\n$/s);
    assert.equal(text.match(/continue/), null);
    assert.equal(host.seen[0].path, "/v1/chat/completions");
  });

  test("at the wall the answer ends with a chunk that asks for its continuation, and the gateway is told", async (t) => {
    const half = chunk({ content: "vera" });
    const host = await during(t, saysThenWaits(chunk({ role: "assistant", content: "" }), chunk({ content: "Beatitudo " }), chunk({ content: "non " }), half.slice(0, 30)));
    const response = await ask(host, { body: { max_tokens: 10 }, env: SOON });
    const text = await response.text();
    assert.ok(text.endsWith("data: [DONE]\n\n"));
    const chunks = text.split("\n\n").filter((line) => line.startsWith("data: {")).map((line) => JSON.parse(line.slice(6)));
    assert.equal(textOf(chunks), "Beatitudo non ");
    const last = chunks.at(-1);
    assert.equal(last.choices[0].finish_reason, "length");
    assert.deepEqual(last.sive, { continue: true, max_tokens: 8 });
    assert.deepEqual([last.id, last.model, last.created], ["chatcmpl-1", "kant", 1]);
    await host.asked(2);
    await host.seen[0].left;
    const { path, headers } = host.seen[1];
    assert.equal(path, `/v1/requests/${host.seen[0].headers["x-request-id"]}/cancel`);
    assert.equal(headers.authorization, "Bearer site-key");
  });

  test("a machine that still starts is asked again: nothing was said, and the answer is not over", async (t) => {
    const host = await during(t, saysThenWaits(": waiting; engine: loading\n\n"));
    const chunks = await chunksOf(await ask(host, { env: SOON }));
    assert.deepEqual(chunks.map(({ choices, sive, model }) => [choices[0].finish_reason, sive, model]), [["length", { continue: true }, "kant"]]);
  });

  test("a continuation is passed on as the page asks it", async (t) => {
    const host = await during(t, answers("virtutis."));
    const body = { messages: [...MESSAGES, { role: "assistant", content: "Beatitudo non " }], continue_final_message: true, add_generation_prompt: false };
    assert.equal(textOf(await chunksOf(await ask(host, { body }))), "virtutis.");
    assert.deepEqual(host.seen[0].body, { model: "kant", stream: true, ...body });
  });

  test("an answer that had its end by the wall is not continued", async (t) => {
    const host = await during(t, saysThenWaits(chunk({ content: "a" }, "stop")));
    const text = await (await ask(host, { env: SOON })).text();
    assert.equal(text, `${chunk({ content: "a" }, "stop")}data: [DONE]\n\n`);
    assert.equal(host.seen.length, 1, "there is nothing to cancel");
  });

  test("an answer that reached its own limit at the wall is not continued", async (t) => {
    const host = await during(t, saysThenWaits(chunk({ content: "a" }), chunk({ content: "b" })));
    const chunks = await chunksOf(await ask(host, { body: { max_completion_tokens: 2 }, env: SOON }));
    assert.deepEqual([chunks.at(-1).choices[0].finish_reason, chunks.at(-1).sive], ["length", undefined]);
  });

  for (const [what, body, delta] of [
    ["half a tool call", {}, { tool_calls: [{ index: 0 }] }],
    ["half a thought", {}, { reasoning_content: "hm" }],
    ["an answer to a request with tools", { tools: [{ type: "function" }] }, { content: "a" }],
    ["half a JSON object", { response_format: { type: "json_object" } }, { content: "{" }],
    ["one of several answers", { n: 2 }, { content: "a" }],
  ]) {
    test(`${what} ends in an error at the wall, never as if it were an answer`, async (t) => {
      const host = await during(t, saysThenWaits(chunk(delta)));
      const text = await (await ask(host, { body, env: SOON })).text();
      assert.match(text, /"code":"function_wall"/);
      assert.doesNotMatch(text, /DONE|"length"/);
    });
  }

  test("a gateway that breaks off in the middle ends in an error, never in a clean end", async (t) => {
    for (const end of [(reply) => reply.socket.destroy(), (reply) => reply.end()]) {
      const host = await during(t, ({ request, reply }) => {
        if (request.url.endsWith("/cancel")) return reply.writeHead(404).end();
        reply.writeHead(200, SSE);
        reply.write(chunk({ content: "a" }), () => end(reply));
      });
      const text = await (await ask(host)).text();
      assert.match(text, /"code":"stream_interrupted"/);
      assert.doesNotMatch(text, /DONE/);
    }
  });

  test("an error event of the gateway's own is the last word", async (t) => {
    const event = 'data: {"error": {"message": "lab", "code": "x"}}\n\n';
    const host = await during(t, ({ reply }) => { reply.writeHead(200, SSE); reply.end(event); });
    assert.equal(await (await ask(host)).text(), event);
  });

  test("a refusal and an answer in one piece pass as they are", async (t) => {
    const host = await during(t, refuses(400, "context_length_exceeded"));
    const refused = await ask(host);
    assert.deepEqual([refused.status, (await refused.json()).error.code], [400, "context_length_exceeded"]);
    host.manner = ({ reply }) => reply.writeHead(200, { "content-type": "application/json" }).end('{"id": "whole"}');
    assert.deepEqual(await (await ask(host, { body: { stream: false } })).json(), { id: "whole" });
  });

  for (const [how, leave] of [
    ["by its body", ({ response }) => response.body.cancel()],
    ["by the request's signal", ({ leaving }) => leaving.abort()],
    ["in both ways", ({ response, leaving }) => { leaving.abort(); return response.body.cancel(); }],
  ]) {
    test(`a page that leaves, which the runtime tells ${how}, ends the gateway's work`, async (t) => {
      const host = await during(t, saysThenWaits(chunk({ content: "a" })));
      const leaving = new AbortController();
      const late = [];
      const response = await ask(host, { signal: leaving.signal }, { waitUntil: (work) => late.push(work) });
      await leave({ response, leaving });
      await host.asked(2);
      await host.seen[0].left;
      assert.match(host.seen[1].path, /^\/v1\/requests\/site-[\w-]+\/cancel$/);
      assert.equal(late.length, 1);
      await late[0];
    });
  }

  test("a stop while the gateway's body fails does not end the process", async (t) => {
    // Cancelling the reader of a body that was aborted rejects, and a rejection that nobody takes kills Node.
    const rejections = [];
    const take = (reason) => rejections.push(reason);
    process.on("unhandledRejection", take);
    t.after(() => process.off("unhandledRejection", take));
    for (let turn = 0; turn < 3; turn++) {
      const host = await during(t, saysThenWaits(chunk({ content: "a" })));
      const leaving = new AbortController();
      const response = await ask(host, { signal: leaving.signal });
      const reader = response.body.getReader();
      await reader.read();
      const pending = reader.read();
      leaving.abort();
      await host.close();
      await reader.cancel("stop").catch(() => {});
      await pending.catch(() => {});
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    assert.deepEqual(rejections, []);
  });

  test("models and cancelling are there too, for sites without edge functions", async (t) => {
    const host = await during(t, ({ reply }) => reply.writeHead(200, { "content-type": "application/json" }).end("{}"));
    const handle = chat({ env: environmentOf(host.url) });
    await handle(new Request("https://site.example/api/models"), context);
    await handle(question("/api/requests/page-1/cancel", ""), context);
    assert.deepEqual(host.seen.map(({ path }) => path), ["/v1/models", "/v1/requests/page-1/cancel"]);
  });
});
