/** The edge function, with real gateways behind it. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { config, edge } from "../netlify/edge-functions/gateway.js";
import * as ready from "../netlify/edge-functions/ready.js";
import { answers, chunk, chunksOf, during, environmentOf, question, refuses, silent, SITE, SSE, textOf } from "./upstream.mjs";

const CHAT = "/v1/chat/completions";
const context = { ip: "192.0.2.7" };

/** Ask through the edge function. */
const ask = (urls, request = question(CHAT), env = {}) => edge({ env: environmentOf(urls, env) })(request, context);

const codeOf = async (response) => [response.status, (await response.json()).error.code];

test("an answer passes as it comes, with the site's key and without the gateway's other headers", async (t) => {
  const host = await during(t, answers("Deus ", "sive ", "Natura — é"));
  const request = question(CHAT, undefined, { headers: { authorization: "Bearer visitor", cookie: "c", "x-request-id": "page-1", "x-sive-require": "adapter" } });
  const response = await ask(host.url, request);
  assert.equal(response.status, 200);
  assert.equal(response.headers.get("x-sive-backend"), "pod");
  assert.equal(response.headers.get("server"), null);
  assert.equal(response.headers.get("cache-control"), "no-cache, no-transform");
  assert.equal(textOf(await chunksOf(response)), "Deus sive Natura — é");
  const { headers, path } = host.seen[0];
  assert.equal(path, CHAT);
  assert.equal(headers.authorization, "Bearer site-key");
  assert.equal(headers["x-request-id"], "page-1");
  assert.equal(headers["x-sive-require"], "adapter");
  assert.equal(headers.cookie, undefined);
});

test("the head is there before a byte of the body, and keep-alives pass", async (t) => {
  let go;
  const host = await during(t, async ({ reply }) => {
    reply.writeHead(200, SSE);
    reply.flushHeaders();
    await new Promise((resolve) => (go = resolve));
    reply.write(": waiting; engine: loading\n\n");
    reply.end(`${chunk({ content: "a" }, "stop")}data: [DONE]\n\n`);
  });
  const response = await ask(host.url);
  assert.equal(response.status, 200);
  go();
  assert.match(await response.text(), /^: waiting; engine: loading\n\n/);
});

test("without a key of the site's the visitor's own is passed on", async (t) => {
  const host = await during(t, answers("a"));
  const request = question(CHAT, undefined, { headers: { authorization: "Bearer visitor" } });
  await (await ask(host.url, request, { SIVE_API_KEY: "" })).text();
  assert.equal(host.seen[0].headers.authorization, "Bearer visitor");
  host.manner = refuses(401, "invalid_api_key");
  assert.deepEqual(await codeOf(await ask(host.url, question(CHAT), { SIVE_API_KEY: "" })), [401, "invalid_api_key"]);
});

for (const [name, manner] of Object.entries({
  "500": refuses(500),
  "503": refuses(503, "no_backend"),
  "429": refuses(429),
  "a refused key": refuses(401),
  html: ({ reply }) => reply.writeHead(502, { "content-type": "text/html" }).end("<h1>secret-host</h1>"),
  "a reset": ({ reply }) => reply.socket.resetAndDestroy(),
  silence: silent,
})) {
  test(`the next gateway answers after ${name}, with the same question`, async (t) => {
    const first = await during(t, manner);
    const second = await during(t, answers("Bonjour"));
    const response = await ask([first.url, second.url], question(CHAT), { SIVE_FIRST_BYTE_S: "1" });
    assert.equal(textOf(await chunksOf(response)), "Bonjour");
    assert.deepEqual(second.seen[0].body, first.seen[0].body);
    assert.equal(first.seen.length, 1);
  });
}

for (const status of [400, 404, 422]) {
  test(`a ${status} is the caller's own and goes nowhere else`, async (t) => {
    const first = await during(t, refuses(status, "theirs"));
    const second = await during(t, answers("Bonjour"));
    assert.deepEqual(await codeOf(await ask([first.url, second.url])), [status, "theirs"]);
    assert.equal(second.seen.length, 0);
  });
}

test("when none answers, the first reason is told, and nothing of where they are", async (t) => {
  const first = await during(t, refuses(503, "no_backend", { "retry-after": "7" }));
  const second = await during(t, ({ reply }) => reply.writeHead(502, { "content-type": "text/html" }).end("<h1>secret-host</h1>"));
  const told = await ask([first.url, second.url]);
  assert.equal(told.headers.get("retry-after"), "7");
  assert.deepEqual(await codeOf(told), [503, "no_backend"]);
  const gone = "http://127.0.0.1:9";
  const text = await (await ask([second.url, gone])).text() + await (await ask([gone])).text();
  assert.match(text, /bad_gateway.*gateway_unreachable/);
  assert.doesNotMatch(text, /127\.0\.0\.1|secret|site-key/);
});

test("a refused key of the site's is the owner's business, not the visitor's", async (t) => {
  const host = await during(t, refuses(401, "invalid_api_key"));
  const response = await ask(host.url);
  assert.deepEqual(await codeOf(response), [502, "gateway_refused_key"]);
});

test("a gateway that was silent is asked last for a while, and first again when it has answered", async (t) => {
  const first = await during(t, silent);
  const second = await during(t, answers("Bonjour"));
  const handle = edge({ env: environmentOf([first.url, second.url], { SIVE_FIRST_BYTE_S: "1" }) });
  for (let turn = 0; turn < 2; turn++) await (await handle(question(CHAT), context)).text();
  assert.deepEqual([first.seen.length, second.seen.length], [1, 2]);
  first.manner = answers("Salut");
  second.manner = refuses(429); // it is well, and has enough to do
  assert.equal(textOf(await chunksOf(await handle(question(CHAT), context))), "Salut");
  second.manner = answers("Bonjour");
  assert.equal(textOf(await chunksOf(await handle(question(CHAT), context))), "Salut");
});

test("an answer in one piece is not held to the clock of a first byte", async (t) => {
  const first = await during(t, ({ reply }) => setTimeout(() => reply.writeHead(200, { "content-type": "application/json" }).end("{}"), 1300));
  const second = await during(t, answers("Bonjour"));
  const request = question(CHAT, { model: "kant", messages: [] });
  const response = await ask([first.url, second.url], request, { SIVE_FIRST_BYTE_S: "1" });
  assert.equal(await response.text(), "{}");
  assert.equal(second.seen.length, 0);
});

test("a redirect is not followed, and the key goes nowhere", async (t) => {
  const elsewhere = await during(t, answers("secret"));
  const second = await during(t, answers("Bonjour"));
  for (const status of [302, 307]) {
    const first = await during(t, ({ reply }) => reply.writeHead(status, { location: `${elsewhere.url}${CHAT}` }).end());
    assert.equal(textOf(await chunksOf(await ask([first.url, second.url]))), "Bonjour");
  }
  assert.equal(elsewhere.seen.length, 0);
});

test("the clock stops with the head: an answer that has begun may take its time", async (t) => {
  const host = await during(t, ({ reply }) => {
    reply.writeHead(200, SSE);
    reply.write(chunk({ content: "a" }));
    setTimeout(() => reply.end(`${chunk({}, "stop")}data: [DONE]\n\n`), 1300);
  });
  const response = await ask([host.url, host.url], question(CHAT), { SIVE_FIRST_BYTE_S: "1" });
  assert.match(await response.text(), /DONE/);
});

test("a stream that has begun is never begun anew elsewhere", async (t) => {
  const first = await during(t, ({ reply }) => { reply.writeHead(200, SSE); reply.write(chunk({ content: "Deus" })); setTimeout(() => reply.socket.destroy(), 50); });
  const second = await during(t, answers("Bonjour"));
  const response = await ask([first.url, second.url]);
  await assert.rejects(response.text());
  assert.equal(second.seen.length, 0);
});

test("only the page of the site may ask, and those its owner names", async (t) => {
  const host = await during(t, answers("a"));
  const from = (origin, env) => ask(host.url, question(CHAT, undefined, { headers: { origin } }), env);
  for (const origin of ["https://evil.example", "https://site.example.evil.example", "null", "https://site.example:444"]) {
    assert.deepEqual(await codeOf(await from(origin)), [403, "foreign_origin"]);
  }
  const named = await from("https://friend.example", { SIVE_ORIGINS: "https://friend.example" });
  assert.equal(named.headers.get("access-control-allow-origin"), "https://friend.example");
  await named.text();
  const program = new Request(SITE + CHAT, { method: "POST", body: "{}" });
  assert.deepEqual(await codeOf(await ask(host.url, program)), [403, "foreign_origin"]);
  const embedded = new Request(`${SITE}/v1/models`, { headers: { "sec-fetch-site": "cross-site" } });
  assert.deepEqual(await codeOf(await ask(host.url, embedded)), [403, "foreign_origin"]);
  assert.equal(host.seen.length, 1);
});

test("a preflight is answered for named pages alone", async () => {
  const asked = (origin) => new Request(SITE + CHAT, { method: "OPTIONS", headers: { origin } });
  const env = { SIVE_ORIGINS: "https://friend.example" };
  const fine = await ask("http://127.0.0.1:9", asked("https://friend.example"), env);
  assert.deepEqual([fine.status, fine.headers.get("access-control-allow-origin")], [204, "https://friend.example"]);
  const not = await ask("http://127.0.0.1:9", asked("https://evil.example"), env);
  assert.deepEqual([not.status, not.headers.get("access-control-allow-origin")], [403, null]);
});

test("a question that is too large is not read to its end, whatever it declares", async (t) => {
  const host = await during(t, answers("a"));
  const env = { SIVE_MAX_BODY_BYTES: "1000" };
  assert.deepEqual(await codeOf(await ask(host.url, question(CHAT, "x".repeat(1001)), env)), [413, "request_too_large"]);
  let pulled = 0;
  const endless = new ReadableStream({ pull: (controller) => { pulled += 1; controller.enqueue(new Uint8Array(400)); } });
  const request = new Request(SITE + CHAT, { method: "POST", headers: { origin: SITE }, body: endless, duplex: "half" });
  assert.deepEqual(await codeOf(await ask(host.url, request, env)), [413, "request_too_large"]);
  assert.ok(pulled < 10);
  pulled = 0;
  const declared = new Request(request.url, { method: "POST", headers: { origin: SITE, "content-length": "1001" }, body: new ReadableStream({ pull: () => { pulled += 1; } }, { highWaterMark: 0 }), duplex: "half" });
  assert.deepEqual(await codeOf(await ask(host.url, declared, env)), [413, "request_too_large"]);
  assert.equal(pulled, 0);
  assert.equal(host.seen.length, 0);
});

test("a visitor who asks too much is told when to come back, and the others are not", async (t) => {
  const host = await during(t, answers("a"));
  const handle = edge({ env: environmentOf(host.url, { SIVE_PER_MINUTE: "2" }) });
  const statuses = [];
  for (const ip of ["192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2"]) {
    const response = await handle(question(CHAT), { ip });
    statuses.push(response.status);
    if (response.status === 429) assert.ok(Number(response.headers.get("retry-after")) >= 1);
    await response.text();
  }
  assert.deepEqual(statuses, [200, 200, 429, 200]);
});

test("models, readiness and cancelling pass, and nothing else of the gateway", async (t) => {
  const host = await during(t, ({ reply }) => reply.writeHead(503, { "content-type": "application/json" }).end('{"ready": false}'));
  const get = (path) => ask(host.url, new Request(SITE + path, { headers: { "sec-fetch-site": "same-origin" } }));
  const ready = await get("/ready");
  assert.deepEqual([ready.status, await ready.json()], [503, { ready: false }]);
  host.manner = ({ reply }) => reply.writeHead(200, { "content-type": "application/json" }).end('{"data": []}');
  assert.deepEqual(await (await get("/v1/models")).json(), { data: [] });
  host.seen.length = 0;
  for (const path of ["/status", "/metrics", "/admin/adapters", "/v1/load_lora_adapter", "/v1/models/../../admin/adapters", "/v1//chat/completions", "/v1/embeddings"]) {
    assert.deepEqual(await codeOf(await get(path)), [404, "unknown_url"], path);
  }
  assert.deepEqual(await codeOf(await get(CHAT)), [405, "method_not_allowed"]);
  assert.equal(host.seen.length, 0);
});

test("a cancel finds the gateway that has the request", async (t) => {
  const first = await during(t, refuses(404, "request_not_found"));
  const second = await during(t, ({ reply }) => reply.writeHead(200, { "content-type": "application/json" }).end('{"cancelled": 1}'));
  const response = await ask([first.url, second.url], question("/v1/requests/page-1/cancel", ""));
  assert.deepEqual(await response.json(), { cancelled: 1 });
  assert.equal(second.seen[0].path, "/v1/requests/page-1/cancel");
  assert.deepEqual(await codeOf(await ask(first.url, question("/v1/requests/page-1/cancel", ""))), [404, "request_not_found"]);
  assert.deepEqual(await codeOf(await ask(first.url, question("/v1/requests/a%2F..%2Fb/cancel", ""))), [404, "unknown_url"]);
});

test("a page that leaves ends the gateway's work, before the head and after it", async (t) => {
  const host = await during(t, silent);
  const leaving = new AbortController();
  const waiting = ask(host.url, question(CHAT, undefined, { signal: leaving.signal }));
  await host.asked(1);
  leaving.abort();
  assert.equal((await waiting).status, 499);
  await host.seen[0].left;
  host.manner = ({ reply }) => { reply.writeHead(200, SSE); reply.write(chunk({ content: "a" })); };
  const response = await ask(host.url);
  await response.body.cancel();
  await host.seen[1].left;
});

test("an owner who set something wrong is told which variable, and not its value", async () => {
  const told = async (env) => (await (await edge({ env: (name) => env[name] })(question(CHAT), context)).json()).error;
  assert.match((await told({})).message, /SIVE_GATEWAY_URLS is not set/);
  assert.match((await told({ SIVE_GATEWAY_URLS: "ftp://user:secret@host" })).message, /^SIVE_GATEWAY_URLS(?!.*secret)/);
  const wrong = await told({ SIVE_GATEWAY_URLS: "h.example", SIVE_FIRST_BYTE_S: "secret" });
  assert.match(wrong.message, /^SIVE_FIRST_BYTE_S must be a number from 1 to 30$/);
  assert.equal(wrong.code, "misconfigured");
});

test("a page of HTML from a gateway's address is no answer: the next is asked, and first from then on", async (t) => {
  const html = (status) => ({ reply }) => reply.writeHead(status, { "content-type": "text/html" }).end("<script>parked</script>");
  const parked = await during(t, html(200));
  const second = await during(t, answers("Bonjour"));
  const handle = edge({ env: environmentOf([parked.url, second.url]) });
  for (let turn = 0; turn < 2; turn++) assert.equal(textOf(await chunksOf(await handle(question(CHAT), context))), "Bonjour");
  assert.equal(parked.seen.length, 1);
  assert.deepEqual(await codeOf(await ask(parked.url)), [502, "bad_gateway"]);
  parked.manner = html(503); // which would be an answer of /ready
  assert.deepEqual(await codeOf(await ask(parked.url, new Request(`${SITE}/ready`, { headers: { "sec-fetch-site": "same-origin" } }))), [502, "bad_gateway"]);
});

test("a type that nobody gave is none, and one in capitals with a charset is one", async (t) => {
  const host = await during(t, ({ reply }) => reply.writeHead(200).end("{}"));
  assert.deepEqual(await codeOf(await ask(host.url)), [502, "bad_gateway"]);
  host.manner = ({ reply }) => reply.writeHead(200, { "content-type": "Application/JSON ; charset=utf-8" }).end("{}");
  assert.equal((await ask(host.url)).status, 200);
});

test("waiting for a voice uses up nothing of what an address may ask", () => {
  assert.deepEqual([config.path, ready.config.path], ["/v1/*", "/ready"]);
  assert.ok(config.rateLimit);
  assert.ok(!("rateLimit" in ready.config));
});
