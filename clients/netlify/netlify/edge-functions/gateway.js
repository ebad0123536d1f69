/**
 * `/v1` of the gateway as `/v1` of the site: the default way, since a stream that has begun may last.
 *
 * Netlify gives an edge function 50 ms of CPU time a request and 40 s until its head, and no limit after that, so
 * no line of this runs for a byte of an answer.
 */

import { proxy } from "../../src/proxy.js";

const HEAD_MS = 35_000;

/** @type {import("../../src/proxy.js").Route[]} */
const ROUTES = [
  { method: "POST", path: /^\/v1\/(chat\/completions|completions)$/, to: "/v1/$1", spends: true },
  { method: "GET", path: /^\/v1\/models$/, to: "/v1/models" },
  { method: "GET", path: /^\/ready$/, to: "/ready", passes: [503] },
  { method: "POST", path: /^\/v1\/requests\/([\w.:-]{1,128})\/cancel$/, to: "/v1/requests/$1/cancel", isHeld: true },
];

/** @param {Partial<Parameters<typeof proxy>[0]>} [parts] For tests. */
export const edge = (parts) => proxy({ routes: ROUTES, headMs: () => HEAD_MS, ...parts });

export default edge();

export const config = {
  path: "/v1/*",
  rateLimit: { windowLimit: 120, windowSize: 60, aggregateBy: ["ip", "domain"] },
};
