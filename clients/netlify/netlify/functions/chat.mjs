/**
 * The way for sites without edge functions: a streaming function, which may run for a minute and no longer.
 *
 * An answer that takes longer ends before the wall with a chunk that asks the page to ask for the rest.
 */

import { proxy } from "../../src/proxy.js";
import { wall } from "../../src/wall.js";

/** @type {import("../../src/proxy.js").Route[]} */
const ROUTES = [
  { method: "POST", path: /^\/api\/chat$/, to: "/v1/chat/completions", spends: true },
  { method: "GET", path: /^\/api\/models$/, to: "/v1/models" },
  { method: "POST", path: /^\/api\/requests\/([\w.:-]{1,128})\/cancel$/, to: "/v1/requests/$1/cancel", isHeld: true },
];

/** @param {Partial<Parameters<typeof proxy>[0]>} [parts] For tests. */
export const chat = (parts) => proxy({ routes: ROUTES, headMs: ({ wallMs }) => wallMs, relay: wall, ...parts });

export default chat();

export const config = {
  path: ["/api/chat", "/api/models", "/api/requests/:id/cancel"],
  rateLimit: { windowLimit: 120, windowSize: 60, aggregateBy: ["ip", "domain"] },
};
