/**
 * The site on this machine, without Netlify's CLI: `node dev/server.mjs [PORT]` (default 8888).
 *
 * public/ as files, /v1 as the edge function, /api as the functions; variables from the environment or `.env`.
 */

import { createReadStream, existsSync, readFileSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { Readable } from "node:stream";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const PORT = Number(process.argv[2] ?? 8888);
const TYPES = { ".html": "text/html", ".css": "text/css", ".mjs": "text/javascript", ".js": "text/javascript", ".svg": "image/svg+xml", ".json": "application/json" };

if (existsSync(join(ROOT, ".env"))) {
  for (const line of readFileSync(join(ROOT, ".env"), "utf8").split("\n")) {
    const [, name, , value] = /^\s*(\w+)\s*=\s*(["']?)(.*?)\2\s*$/.exec(line) ?? [];
    if (name) process.env[name] ??= value;
  }
}

const modules = await Promise.all(["edge-functions/gateway.js", "edge-functions/ready.js", "functions/chat.mjs", "functions/token.mjs"].map((path) => import(`../netlify/${path}`)));
const functions = modules.flatMap(({ default: handle, config }) => [config.path].flat().map((path) => ({ handle, path: pattern(path) })));

/** Netlify's paths: `*` is anything, `:name` one part. @param {string} path */
function pattern(path) {
  return new RegExp(`^${path.replace("*", ".*").replace(/:\w+/, "[^/]+")}$`);
}

const server = createServer(async (incoming, outgoing) => {
  const left = new AbortController();
  outgoing.on("close", () => left.abort());
  let request, pathname;
  try {
    request = asked(incoming, left.signal);
    pathname = decodeURIComponent(new URL(request.url).pathname);
  } catch {
    return outgoing.writeHead(400).end("bad request");
  }
  const found = functions.find(({ path }) => path.test(new URL(request.url).pathname));
  if (!found) return file(pathname, outgoing);
  const response = await found.handle(request, { ip: incoming.socket.remoteAddress });
  outgoing.writeHead(response.status, Object.fromEntries(response.headers));
  outgoing.flushHeaders();
  if (!response.body) return outgoing.end();
  // A page that leaves ends the answer, which is no error here.
  Readable.fromWeb(response.body).on("error", () => outgoing.destroy()).pipe(outgoing).on("error", () => {});
});

/** @param {import("node:http").IncomingMessage} incoming @param {AbortSignal} signal @throws {TypeError} It is none. */
function asked(incoming, signal) {
  const hasBody = !["GET", "HEAD"].includes(incoming.method ?? "");
  return new Request(new URL(incoming.url ?? "/", `http://${incoming.headers.host}`), {
    method: incoming.method,
    headers: /** @type {any} */ (incoming.headers),
    signal,
    ...(hasBody ? { body: Readable.toWeb(incoming), duplex: "half" } : {}),
  });
}

/** @param {string} pathname Decoded. @param {import("node:http").ServerResponse} outgoing */
function file(pathname, outgoing) {
  const path = join(ROOT, "public", normalize(pathname), pathname.endsWith("/") ? "index.html" : "");
  const isThere = path.startsWith(join(ROOT, "public")) && existsSync(path) && statSync(path).isFile();
  if (!isThere) return outgoing.writeHead(404).end("not found");
  outgoing.writeHead(200, { "content-type": `${TYPES[extname(path)] ?? "application/octet-stream"}; charset=utf-8` });
  if (extname(path) === ".html") return outgoing.end(nearby(readFileSync(path, "utf8")));
  createReadStream(path).pipe(outgoing);
}

/** A gateway on this machine has no certificate, so here a page may ask it without. @param {string} html */
function nearby(html) {
  return html.replace("connect-src 'self' https:", "connect-src 'self' https: http://127.0.0.1:* http://localhost:*");
}

server.on("error", (error) => {
  const inUse = /** @type {NodeJS.ErrnoException} */ (error).code === "EADDRINUSE";
  console.error(inUse ? `port ${PORT} is in use: node dev/server.mjs ANOTHER` : `port ${PORT}: ${error.message}`);
  process.exitCode = 1;
});
server.listen(PORT, "127.0.0.1", () => {
  console.log(`http://127.0.0.1:${server.address().port}/`);
});
