/** Tokens for pages that ask the gateway themselves. */

import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { test } from "node:test";

import { token } from "../netlify/functions/token.mjs";
import { idOf, mint } from "../src/token.js";
import { question, SITE } from "./upstream.mjs";

const SECRET = "0123456789abcdef".repeat(4);
const context = { ip: "192.0.2.7" };
const ask = (env = {}, request = question("/api/token", "")) =>
  token({ env: (name) => ({ SIVE_TOKEN_SECRET: SECRET, ...env })[name] })(request, context);
const claimsOf = (text) => JSON.parse(Buffer.from(text.split(".")[1], "base64url").toString());

test("a token is signed claims with an end, a page and a visitor", async () => {
  const before = Math.floor(Date.now() / 1000);
  const response = await ask({ SIVE_TOKEN_MINUTES: "5", SIVE_TOKEN_MODELS: "spinoza, kant" });
  assert.equal(response.headers.get("cache-control"), "no-store");
  const told = await response.json();
  const claims = claimsOf(told.token);
  assert.ok(claims.iat >= before && claims.exp === claims.iat + 300);
  assert.deepEqual([told.expires_in, told.expires_at], [300, claims.exp]);
  assert.deepEqual([claims.models, claims.origin], [["spinoza", "kant"], SITE]);
  const [head, mac] = [told.token.slice(0, told.token.lastIndexOf(".")), told.token.split(".")[2]];
  assert.equal(mac, createHmac("sha256", SECRET).update(head).digest("base64url"));
});

test("without SIVE_TOKEN_MODELS it opens whatever the gateway serves", async () => {
  assert.equal(claimsOf((await (await ask()).json()).token).models, undefined);
});

test("a visitor's next token has the same id, whatever else it was; nobody else's has", async () => {
  const first = await mint(SECRET, { iat: 1, exp: 2, id: "ada" });
  const next = async (text) => claimsOf((await (await ask({}, question("/api/token", { token: text }))).json()).token).id;
  assert.equal(await next(first), "ada");
  const others = [await mint("x".repeat(32), { iat: 1, exp: 2, id: "ada" }), first.slice(0, -2), `${first}.x`, first.replace("sive1", "sive2"), "", 7];
  for (const text of others) assert.notEqual(await next(text), "ada");
  assert.equal(await idOf(SECRET, first), "ada");
});

test("only the site's own pages get one, by POST, and not without end", async () => {
  const statusOf = async (request, env) => (await ask(env, request)).status;
  assert.equal(await statusOf(question("/api/token", "", { headers: { origin: "https://evil.example" } })), 403);
  assert.equal(await statusOf(new Request(`${SITE}/api/token`, { method: "POST" })), 403);
  assert.equal(await statusOf(new Request(`${SITE}/api/token`)), 405);
  const handle = token({ env: (name) => ({ SIVE_TOKEN_SECRET: SECRET, SIVE_PER_MINUTE: "1" })[name] });
  assert.equal((await handle(question("/api/token", ""), context)).status, 200);
  assert.equal((await handle(question("/api/token", ""), context)).status, 429);
});

test("a secret that is missing or short, and an hour that is too long, are the owner's mistake", async () => {
  for (const env of [{ SIVE_TOKEN_SECRET: "" }, { SIVE_TOKEN_SECRET: "short-secret" }, { SIVE_TOKEN_MINUTES: "61" }]) {
    const response = await ask(env);
    const { error } = await response.json();
    assert.deepEqual([response.status, error.code], [500, "misconfigured"]);
    assert.match(error.message, /^SIVE_TOKEN_(SECRET|MINUTES) must/);
    assert.doesNotMatch(error.message, /short-secret/);
  }
});
