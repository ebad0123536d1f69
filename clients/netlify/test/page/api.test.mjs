/** Where the page asks: three ways, one place that says which. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Api, place } from "../../public/app/api.mjs";

const metas = (given) => (name) => given[name] ?? "";

test("without a word, and on the edge, it is /v1 of the page's own host", () => {
  assert.deepEqual(place(metas({})), { way: "edge", url: "/v1" });
  assert.deepEqual(place(metas({ "sive-api": "edge" })), { way: "edge", url: "/v1" });
});

test("directly it is the gateway's /v1, with or without it written", () => {
  for (const url of ["https://g.example", "https://g.example/", "https://g.example/v1", "https://g.example/v1/"]) {
    assert.equal(place(metas({ "sive-api": "direct", "sive-gateway": url })).url, "https://g.example/v1");
  }
});

test("the function is asked at /api/chat, and all else beside it", () => {
  assert.deepEqual(place(metas({ "sive-api": "function" })), { way: "function", url: "/api", chatUrl: "/api/chat" });
});

/** Replaces fetch for as long as `use` runs. */
async function fetching(answer, use) {
  const before = globalThis.fetch;
  const asked = [];
  globalThis.fetch = async (url, init = {}) => {
    asked.push([init.method ?? "GET", String(url), new Headers(init.headers).get("authorization")]);
    return answer(String(url));
  };
  try {
    await use();
  } finally {
    globalThis.fetch = before;
  }
  return asked;
}

const session = (key) => ({ getItem: () => key, setItem: (_, value) => (key = value) });

test("a direct way asks the site for a token, and uses it until shortly before it ends", async () => {
  const answer = (url) => Response.json(url === "/api/token" ? { token: "t", expires_in: 300 } : { data: [] });
  const api = new Api({ way: "direct", url: "https://g.example/v1" }, session("a key of the page's own host"));
  const asked = await fetching(answer, async () => {
    await api.models();
    await api.models();
  });
  assert.deepEqual(asked, [
    ["POST", "/api/token", null],
    ["GET", "https://g.example/v1/models", "Bearer t"],
    ["GET", "https://g.example/v1/models", "Bearer t"],
  ]);
});

test("a token that is about to end is not used", async () => {
  const answer = (url) => Response.json(url === "/api/token" ? { token: "t", expires_in: 20 } : { data: [] });
  const api = new Api({ way: "direct", url: "https://g.example/v1" }, session(null));
  const asked = await fetching(answer, async () => {
    await api.models();
    await api.models();
  });
  assert.equal(asked.filter(([, url]) => url === "/api/token").length, 2);
});

test("a key that was typed is sent to the page's own host", async () => {
  const api = new Api({ way: "edge", url: "/v1" }, session(null));
  api.use("k");
  const asked = await fetching(() => Response.json({ data: [], models: {} }), async () => {
    await api.models();
    await api.ready();
  });
  assert.deepEqual(asked, [["GET", "/v1/models", "Bearer k"], ["GET", "/ready", "Bearer k"]]);
});

test("a site that does not pass /ready on is asked for it once", async () => {
  const api = new Api({ way: "edge", url: "/v1" }, session(null));
  const asked = await fetching(() => new Response("<h1>404</h1>", { status: 404 }), async () => {
    for (let time = 0; time < 3; time += 1) assert.deepEqual(await api.ready(), {});
  });
  assert.equal(asked.length, 1);
});

test("while an engine starts and nobody else is there, it is asked again, and stops when told", async () => {
  const error = { message: "no backend could answer for 'kant': engine: the engine is not ready (loading for 2 s, about 9 s left)", code: "no_backend" };
  const api = new Api({ way: "edge", url: "https://g.example/v1" }, session(null));
  const controller = new AbortController();
  const waits = [];
  const asked = await fetching(() => Response.json({ error }, { status: 503 }), async () => {
    const run = async () => {
      const onWaiting = (why) => {
        waits.push(why);
        controller.abort();
      };
      for await (const _ of api.chat({ model: "kant", messages: [], signal: controller.signal, onWaiting })) assert.fail();
    };
    await assert.rejects(run, { name: "AbortError" });
  });
  assert.deepEqual([waits, asked.length], [[error.message], 1]);
});

test("any other 503 is an error at once", async () => {
  const api = new Api({ way: "edge", url: "https://g.example/v1" }, session(null));
  await fetching(() => Response.json({ error: { message: "nobody", code: "no_backend" } }, { status: 503 }), async () => {
    const run = async () => {
      for await (const _ of api.chat({ model: "kant", messages: [] })) assert.fail();
    };
    await assert.rejects(run, { code: "no_backend" });
  });
});
