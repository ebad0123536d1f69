/** The site on one's own machine. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { connect } from "node:net";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const SERVER = fileURLToPath(new URL("../dev/server.mjs", import.meta.url));

/** Send a request line as it is, which clients would not. @param {string} url @param {string} line */
async function raw(url, line) {
  const { hostname, port } = new URL(url);
  const socket = connect(Number(port), hostname);
  socket.end(`${line} HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n`);
  let told = "";
  for await (const part of socket) told += part;
  return Number(told.split(" ")[1]);
}

test("what is no request is told so, and the server goes on", async (t) => {
  const server = spawn(process.execPath, [SERVER, "0"], { stdio: ["ignore", "pipe", "ignore"] });
  t.after(() => server.kill());
  const [line] = await once(server.stdout, "data");
  const url = String(line).trim();
  for (const wrong of ["GET /%", "GET /%ff", "GET //", "TRACE /v1/models"]) assert.equal(await raw(url, wrong), 400, wrong);
  assert.equal(await raw(url, "GET /%2e%2e/package.json"), 404);
  const page = await fetch(url);
  assert.match(await page.text(), /<title>/);
  assert.equal((await fetch(`${url}ready`)).status, 500); // the function, which nobody told of a gateway
});

test("a port in use is one line, with the way out", async (t) => {
  const first = spawn(process.execPath, [SERVER, "0"], { stdio: ["ignore", "pipe", "ignore"] });
  t.after(() => first.kill());
  const [line] = await once(first.stdout, "data");
  const { port } = new URL(String(line).trim());
  const second = spawn(process.execPath, [SERVER, port], { stdio: ["ignore", "ignore", "pipe"] });
  t.after(() => second.kill());
  const [told] = await once(second.stderr, "data");
  assert.equal(String(told), `port ${port} is in use: node dev/server.mjs ANOTHER\n`);
  const [code] = second.exitCode === null ? await once(second, "exit") : [second.exitCode];
  assert.equal(code, 1);
});
