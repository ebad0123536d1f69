/** A gateway on a real socket that does what a test says, and remembers what it was asked. */

import { createServer } from "node:http";

/**
 * @param {(exchange: {request: import("node:http").IncomingMessage, body: any, reply: import("node:http").ServerResponse}) => unknown} manner
 */
export async function upstream(manner) {
  /** @type {{method: string, path: string, headers: any, body: any, left: Promise<void>}[]} */
  const seen = [];
  /** @type {{count: number, resolve: () => void}[]} */
  const waiting = [];
  const server = createServer(async (request, reply) => {
    let text = "";
    for await (const part of request) text += part;
    const left = new Promise((resolve) => reply.on("close", () => resolve()));
    const body = text ? JSON.parse(text) : null;
    seen.push({ method: request.method, path: request.url, headers: request.headers, body, left });
    for (const { count, resolve } of waiting) if (seen.length >= count) resolve();
    await host.manner({ request, body, reply });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const host = {
    manner,
    seen,
    url: `http://127.0.0.1:${server.address().port}`,
    /** There were so many requests. */
    asked: (count) => new Promise((resolve) => (seen.length >= count ? resolve() : waiting.push({ count, resolve }))),
    /** Ends with the test. */
    close: () => new Promise((resolve) => { server.close(resolve); server.closeAllConnections(); }),
  };
  return host;
}

/** For a test: ends with it. @param {import("node:test").TestContext} t */
export async function during(t, manner) {
  const host = await upstream(manner);
  t.after(host.close);
  return host;
}

/** One chunk of a stream. */
export function chunk(delta, finish_reason = null, more = {}) {
  const choices = [{ index: 0, delta, logprobs: null, finish_reason }];
  return `data: ${JSON.stringify({ id: "chatcmpl-1", object: "chat.completion.chunk", created: 1, model: "kant", choices, ...more })}\n\n`;
}

export const SSE = { "content-type": "text/event-stream; charset=utf-8", "x-request-id": "theirs", "x-sive-backend": "pod", server: "secret-server" };

/** Streams the words and ends as it should. @param {string[]} words */
export const answers = (...words) => ({ reply }) => {
  reply.writeHead(200, SSE);
  reply.write(chunk({ role: "assistant", content: "" }));
  for (const word of words) reply.write(chunk({ content: word }));
  reply.end(`${chunk({}, "stop")}data: [DONE]\n\n`);
};

/** Refuses with an error of OpenAI's shape. */
export const refuses = (status, code = "lab", headers = {}) => ({ reply }) => {
  reply.writeHead(status, { "content-type": "application/json", ...headers });
  reply.end(JSON.stringify({ error: { message: `lab ${status}`, type: "server_error", param: null, code } }));
};

/** Says nothing, ever. */
export const silent = () => {};

export const SITE = "https://site.example";

/** A question of the site's own page. */
export function question(path, body = { model: "kant", stream: true, messages: [{ role: "user", content: "?" }] }, { headers = {}, signal } = {}) {
  return new Request(SITE + path, {
    method: "POST",
    headers: { "content-type": "application/json", origin: SITE, ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
    signal,
  });
}

/** Variables of the environment for these gateways. */
export const environmentOf = (urls, more = {}) => {
  const given = { SIVE_GATEWAY_URLS: [urls].flat().join(","), SIVE_API_KEY: "site-key", ...more };
  return (name) => given[name];
};

/** The chunks of an answer. */
export async function chunksOf(response) {
  const text = await response.text();
  return text.split("\n\n").filter((line) => line.startsWith("data: {")).map((line) => JSON.parse(line.slice(6)));
}

/** The text of chunks. */
export const textOf = (chunks) => chunks.map((one) => one.choices?.[0]?.delta?.content ?? "").join("");
