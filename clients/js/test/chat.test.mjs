/** Asking over real sockets: what comes through, what is told, and what is an error. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { cancel, models, SiveError, streamChat } from "../sive.mjs";
import { chunk, DONE, serving, stream, until } from "./server.mjs";

const MESSAGES = [{ role: "user", content: "Qu'est-ce que la joie ?" }];
const POD = { backend: "pod-a", degraded: false, resumed: false, truncated: false, dropped: [] };
const END = chunk("", { sive: POD }, "stop");

async function ask(url, more = {}) {
  const said = [];
  const told = { routes: [], waits: [], finishes: [] };
  const chat = {
    url,
    model: "spinoza",
    messages: MESSAGES,
    onRoute: (route) => told.routes.push({ ...route, after: said.join("") }),
    onWaiting: (why) => told.waits.push(why),
    onFinish: (finish) => told.finishes.push(finish.reason),
    ...more,
  };
  for await (const text of streamChat(chat)) said.push(text);
  return { said: said.join(""), ...told };
}

const fails = (code, more = {}) => (error) => {
  assert.ok(error instanceof SiveError, String(error));
  assert.deepEqual({ code: error.code, ...Object.fromEntries(Object.keys(more).map((key) => [key, error[key]])) }, { code, ...more });
  return true;
};

test("an answer comes in pieces, with who speaks before the first and why it ended", async () => {
  const pieces = [": waiting; engine: not ready\n\n", chunk("La ", { sive: POD }), chunk("joie"), END, DONE];
  await serving((_, response) => stream(response, pieces), async ({ url, seen }) => {
    const { dropped, ...pod } = POD;
    assert.deepEqual(await ask(url, { key: "k", options: { max_tokens: 9 } }), {
      said: "La joie",
      routes: [{ ...pod, dropped, after: "" }],
      waits: ["engine: not ready"],
      finishes: ["stop"],
    });
    const [{ path, headers, body }] = seen;
    assert.equal(path, "/v1/chat/completions");
    assert.equal(headers.authorization, "Bearer k");
    assert.deepEqual(body, { max_tokens: 9, model: "spinoza", messages: MESSAGES, stream: true });
  });
});

test("another voice is told exactly where it begins", async () => {
  const other = { ...POD, backend: "local", degraded: true, resumed: true };
  const pieces = [chunk("one ", { sive: POD }), chunk("two ", { sive: other }), chunk("", { sive: other }, "stop"), DONE];
  await serving((_, response) => stream(response, pieces), async ({ url }) => {
    const { routes } = await ask(url);
    assert.deepEqual(routes.map(({ backend, after }) => [backend, after]), [["pod-a", ""], ["local", "one "]]);
  });
});

test("an answer without an end mark is complete when it has its finish_reason", async () => {
  await serving((_, response) => stream(response, [chunk("all"), END]), async ({ url }) => {
    assert.equal((await ask(url)).said, "all");
  });
});

test("what cannot be read, and fields nobody expects, are passed over", async () => {
  const pieces = ["data: {broken\n\n", "data: null\n\n", "data: {\"choices\": []}\n\n", chunk("fine"), END, DONE];
  await serving((_, response) => stream(response, pieces), async ({ url }) => {
    assert.equal((await ask(url)).said, "fine");
  });
});

for (const [what, pieces] of Object.entries({ "after some words": [chunk("half an ")], "before a word": [] })) {
  test(`a stream that ends early ${what} is an error, never an answer`, async () => {
    await serving((_, response) => stream(response, pieces), async ({ url }) => {
      await assert.rejects(ask(url), fails("stream_interrupted"));
    });
  });
}

test("an end mark without a finish_reason is no clean end", async () => {
  await serving((_, response) => stream(response, [chunk("half"), DONE]), async ({ url }) => {
    await assert.rejects(ask(url), fails("stream_interrupted"));
  });
});

test("a connection that is reset in the middle is an error", async () => {
  const answer = (_, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(chunk("half"), () => response.destroy());
  };
  await serving(answer, async ({ url }) => {
    await assert.rejects(ask(url), fails("stream_interrupted"));
  });
});

test("an error inside the stream is thrown with its code, after what was said", async () => {
  const error = { error: { message: "the answer broke off", type: "server_error", param: null, code: "stream_interrupted" } };
  await serving((_, response) => stream(response, [chunk("half "), `data: ${JSON.stringify(error)}\n\n`]), async ({ url }) => {
    const said = [];
    const run = async () => {
      for await (const text of streamChat({ url, model: "m", messages: MESSAGES })) said.push(text);
    };
    await assert.rejects(run, fails("stream_interrupted", { type: "server_error", message: "the answer broke off" }));
    assert.deepEqual(said, ["half "]);
  });
});

test("a refusal is thrown with its status, code, request id and patience", async () => {
  const answer = (_, response) => {
    const headers = { "content-type": "application/json", "retry-after": "7", "x-request-id": "req-1" };
    response.writeHead(503, headers).end(JSON.stringify({ error: { message: "nobody", type: "server_error", code: "no_backend" } }));
  };
  await serving(answer, async ({ url }) => {
    const wanted = { status: 503, type: "server_error", requestId: "req-1", retryAfterS: 7, message: "nobody" };
    await assert.rejects(ask(url), fails("no_backend", wanted));
  });
});

test("a refusal that is no JSON, or an empty one, is still an error with its status", async () => {
  for (const body of ["<h1>Bad gateway</h1>", "", "{\"error\": \"plain\"}"]) {
    await serving((_, response) => response.writeHead(502).end(body), async ({ url }) => {
      await assert.rejects(ask(url), fails("", { status: 502 }));
    });
  }
});

test("a page of HTML with status 200 is no answer", async () => {
  await serving((_, response) => response.writeHead(200, { "content-type": "text/html" }).end("<h1>Hi</h1>"), async ({ url }) => {
    await assert.rejects(ask(url), fails("bad_response", { status: 200 }));
    await assert.rejects(models({ url }), fails("bad_response"));
  });
});

test("a host that ignores that a stream was asked for is understood", async () => {
  const whole = { choices: [{ message: { role: "assistant", content: "whole" }, finish_reason: "stop" }], sive: POD };
  const answer = (_, response) => response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(whole));
  await serving(answer, async ({ url }) => {
    const { said, finishes, routes } = await ask(url);
    assert.deepEqual([said, finishes, routes.length], ["whole", ["stop"], 1]);
  });
});

test("a server that cannot be reached is a network error", async () => {
  await assert.rejects(ask("http://127.0.0.1:9/v1"), fails("network", { status: 0 }));
  await assert.rejects(models({ url: "http://127.0.0.1:9/v1" }), fails("network"));
});

test("a server that falls silent is given up, and told so; comments are no silence", async () => {
  const answer = async (request, response) => {
    if (request.url.endsWith("/cancel")) return response.end("{}");
    response.writeHead(200, { "content-type": "text/event-stream" });
    for (let beat = 0; beat < 9; beat += 1) {
      response.write(": waiting\n\n");
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    response.write(chunk("one"));
  };
  await serving(answer, async ({ url, seen }) => {
    const waits = [];
    await assert.rejects(ask(url, { silenceS: 0.3, onWaiting: (why) => waits.push(why) }), fails("silence"));
    assert.equal(waits.length, 9);
    await cancelled(seen);
  });
});

async function cancelled(seen) {
  await until(() => seen.some(({ path }) => path.endsWith("/cancel")));
  const asked = seen.find(({ path }) => path.endsWith("/completions"));
  const told = seen.find(({ path }) => path.endsWith("/cancel"));
  assert.equal(told.path, `/v1/requests/${asked.headers["x-request-id"]}/cancel`);
  assert.equal(told.headers.authorization, asked.headers.authorization);
}

function endless(left) {
  return (request, response) => {
    if (request.url.endsWith("/cancel")) return response.end("{}");
    response.writeHead(200, { "content-type": "text/event-stream" });
    const timer = setInterval(() => response.write(chunk("word ")), 5);
    response.on("close", () => {
      clearInterval(timer);
      left.push(true);
    });
  };
}

test("aborting ends the request, tells the server by its id, and is an AbortError", async () => {
  const left = [];
  await serving(endless(left), async ({ url, seen }) => {
    const controller = new AbortController();
    const run = async () => {
      for await (const _ of streamChat({ url, key: "k", model: "m", messages: MESSAGES, signal: controller.signal })) controller.abort();
    };
    await assert.rejects(run, { name: "AbortError" });
    await cancelled(seen);
    await until(() => left.length);
  });
});

test("leaving the loop does the same", async () => {
  const left = [];
  await serving(endless(left), async ({ url, seen }) => {
    for await (const _ of streamChat({ url, model: "m", messages: MESSAGES })) break;
    await cancelled(seen);
    await until(() => left.length);
  });
});

test("aborting before anything came does the same", async () => {
  await serving((request, response) => request.url.endsWith("/cancel") && response.end("{}"), async ({ url, seen }) => {
    const controller = new AbortController();
    const answer = ask(url, { signal: controller.signal });
    await until(() => seen.length);
    controller.abort();
    await assert.rejects(answer, { name: "AbortError" });
    await cancelled(seen);
  });
});

test("an answer that is complete, or was refused, cancels nothing", async () => {
  await serving((_, response) => stream(response, [chunk("all"), END, DONE]), async ({ url, seen }) => {
    await ask(url);
    assert.deepEqual(seen.map(({ path }) => path), ["/v1/chat/completions"]);
  });
  await serving((_, response) => response.writeHead(400).end("{}"), async ({ url, seen }) => {
    await assert.rejects(ask(url));
    assert.deepEqual(seen.map(({ path }) => path), ["/v1/chat/completions"]);
  });
});

test("no rejection is left over when a body fails that was given up", async () => {
  const left = [];
  const unhandled = [];
  const note = (reason) => unhandled.push(reason);
  process.on("unhandledRejection", note);
  await serving(endless(left), async ({ url }) => {
    const controller = new AbortController();
    const run = async () => {
      for await (const _ of streamChat({ url, model: "m", messages: MESSAGES, signal: controller.signal })) controller.abort(new Error("mine"));
    };
    await assert.rejects(run, { message: "mine" });
  });
  await new Promise((resolve) => setImmediate(resolve));
  process.off("unhandledRejection", note);
  assert.deepEqual(unhandled, []);
});

test("an answer that a time limit ended is asked to go on, with what was said last", async () => {
  const parts = [
    [chunk("one "), chunk("", { sive: { ...POD, continue: true, max_tokens: 7 } }, "length"), DONE],
    [chunk("two"), END, DONE],
  ];
  await serving((_, response) => stream(response, parts.shift()), async ({ url, seen }) => {
    const { said, finishes } = await ask(url, { options: { max_tokens: 9 } });
    assert.deepEqual([said, finishes], ["one two", ["stop"]]);
    assert.deepEqual(seen.map(({ body }) => body.max_tokens), [9, 7]);
    assert.deepEqual(seen[1].body.messages, [...MESSAGES, { role: "assistant", content: "one " }]);
    assert.equal(seen[1].body.continue_final_message, true);
    assert.equal(seen[1].body.add_generation_prompt, false);
    assert.notEqual(seen[0].headers["x-request-id"], seen[1].headers["x-request-id"]);
  });
});

test("an answer that is asked to go on and does not is over", async () => {
  const wall = chunk("", { sive: { ...POD, continue: true } }, "length");
  const parts = [[chunk("one "), wall], [wall], [chunk("never")]];
  await serving((_, response) => stream(response, parts.shift()), async ({ url, seen }) => {
    const { said, finishes } = await ask(url);
    assert.deepEqual([said, finishes, seen.length], ["one ", ["length"], 2]);
  });
});

test("the models are listed, and a request is cancelled by its id", async () => {
  const answer = (request, response) => {
    response.writeHead(request.url.includes("gone") ? 404 : 200, { "content-type": "application/json" });
    response.end(JSON.stringify({ data: [{ id: "spinoza" }] }));
  };
  await serving(answer, async ({ url, seen }) => {
    assert.deepEqual(await models({ url: `${url}/`, key: "k" }), [{ id: "spinoza" }]);
    assert.equal(await cancel({ url, requestId: "a/b" }), true);
    assert.equal(await cancel({ url, requestId: "gone" }), false);
    assert.deepEqual(seen.map(({ path }) => path), ["/v1/models", "/v1/requests/a%2Fb/cancel", "/v1/requests/gone/cancel"]);
    assert.equal(seen[0].headers.authorization, "Bearer k");
  });
});

test("who is asked to go on and on, and is told nothing, gives up", async () => {
  const wall = chunk("", { sive: { ...POD, continue: true } }, "length");
  const parts = [...Array(9).fill([wall, DONE]), [chunk("late"), END]];
  await serving((_, response) => stream(response, parts.shift()), async ({ url, seen }) => {
    await assert.rejects(ask(url), fails("silence"));
    assert.equal(seen.length, 5);
  });
});

test("what is left of a limit is told under the name it was set by", async () => {
  const parts = [[chunk("one ", { sive: { ...POD, continue: true, max_tokens: 7 } }, "length")], [chunk("two"), END]];
  await serving((_, response) => stream(response, parts.shift()), async ({ url, seen }) => {
    await ask(url, { options: { max_completion_tokens: 9 } });
    assert.deepEqual(seen.map(({ body }) => [body.max_completion_tokens, body.max_tokens]), [[9, undefined], [7, undefined]]);
  });
});

for (const [how, more] of Object.entries({ "is cut": {}, "falls silent": { silenceS: 0.2 } })) {
  test(`an answer whose end was told is whole, even when the connection ${how} before its last line`, async () => {
    const answer = (_, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write(chunk("all") + END);
      if (how === "is cut") setTimeout(() => response.socket.destroy(), 50);
    };
    await serving(answer, async ({ url, seen }) => {
      const { said, finishes } = await ask(url, more);
      assert.deepEqual([said, finishes], ["all", ["stop"]]);
      assert.equal(seen.length, 1, "and nothing is cancelled");
    });
  });
}

test("aborting is aborting, even after the end was told", async () => {
  const answer = (_, response) => response.writeHead(200, { "content-type": "text/event-stream" }).write(chunk("all") + END);
  await serving(answer, async ({ url }) => {
    const controller = new AbortController();
    const told = ask(url, { signal: controller.signal });
    setTimeout(() => controller.abort(), 100);
    await assert.rejects(told, { name: "AbortError" });
  });
});
