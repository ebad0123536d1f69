/** A real HTTP server for one test: it answers by a function, and remembers what it was asked. */

import { once } from "node:events";
import http from "node:http";

/**
 * @param {(request: http.IncomingMessage & {body: string}, response: http.ServerResponse) => unknown} answer
 * @param {(server: {url: string, seen: {method: string, path: string, headers: http.IncomingHttpHeaders, body: any}[]}) => unknown} use
 */
export async function serving(answer, use) {
  const seen = [];
  const server = http.createServer(async (request, response) => {
    const parts = [];
    for await (const part of request) parts.push(part);
    const body = Buffer.concat(parts).toString();
    seen.push({ method: request.method, path: request.url, headers: request.headers, body: body && JSON.parse(body) });
    await answer(Object.assign(request, { body }), response);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    await use({ url: `http://127.0.0.1:${server.address().port}/v1`, seen });
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

/** An event stream of these bytes, each piece on its own. */
export function stream(response, pieces, headers = {}) {
  response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8", ...headers });
  for (const piece of pieces) response.write(piece);
  response.end();
}

/** @param {string} content @param {object} [more] */
export const chunk = (content, more = {}, finish_reason = null) =>
  `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content }, finish_reason }], ...more })}\n\n`;

export const DONE = "data: [DONE]\n\n";

/** Wait for something that can be seen. @param {() => unknown} isSo */
export async function until(isSo) {
  for (const began = Date.now(); !isSo(); await new Promise((resolve) => setTimeout(resolve, 5))) {
    if (Date.now() - began > 10_000) throw new Error(`it did not happen: ${isSo}`);
  }
}
