/** The gateways of a site, asked in order until one of them answers. */

import { refusal } from "./errors.js";

const REST_MS = 30_000;
const MAX_ERROR_BYTES = 65_536;

/** Headers of an answer that go on to the page. Whatever else a gateway says stays on the server. */
const TOLD = [
  "content-type",
  "retry-after",
  "x-request-id",
  "x-should-retry",
  "x-sive-attempts",
  "x-sive-backend",
  "x-sive-degraded",
];

/** Until when a gateway that could not answer is asked last, by its URL. @typedef {Map<string, number>} Rests */

/**
 * @typedef {object} Ask
 * @property {string} path From `/v1/` on, or another page of the gateway.
 * @property {string} method
 * @property {Record<string, string>} headers
 * @property {Uint8Array<ArrayBuffer> | null} body
 * @property {AbortSignal} signal The page's: it left.
 * @property {number} clockMs A gateway that has not begun by then is left for the next.
 * @property {number} budgetMs All of them together; the last one has what is left of it.
 * @property {boolean} isSitesKey Not the visitor's own: a gateway that refuses it is misconfigured.
 * @property {number[]} passes Statuses that are an answer too.
 * @property {boolean} isHeld Only one of them has what is asked for: a 404 is no last word.
 */

/**
 * An answer, or the best reason why there is none.
 *
 * The clock stops with the head, since nothing was shown to anybody until then; the body is never looked at, so
 * that a runtime which counts CPU time passes it on by itself. A gateway gives its head with the first event,
 * and after 5 s in any case.
 *
 * @param {string[]} urls @param {Ask} ask @param {Rests} rests
 * @returns {Promise<{response: Response, url: string | null}>} `url`: who answers; null when nobody does.
 */
export async function askInTurn(urls, ask, rests) {
  const endsAt = Date.now() + ask.budgetMs;
  /** @type {Response | null} */
  let best = null;
  for (const [at, url] of inTurn(urls, rests).entries()) {
    const isLast = at === urls.length - 1;
    const leftMs = endsAt - Date.now();
    const clock = new Clock(isLast ? leftMs : Math.min(ask.clockMs, leftMs), ask.signal);
    try {
      const response = await fetch(url + ask.path, { ...request(ask), signal: clock.signal });
      if (response.ok || ask.passes.includes(response.status)) {
        if (isOfAGateway(response)) {
          rests.delete(url);
          return { response: answer(response), url };
        }
        response.body?.cancel().catch(() => {});
        best ??= refusal(502, "bad_gateway", "what answers at the gateway's address is no gateway");
        rests.set(url, Date.now() + REST_MS);
        continue;
      }
      const told = await refused(response, ask);
      if (!mayNextDoBetter(response.status, ask)) return { response: told, url };
      best ??= told;
      if (isItsOwnFault(response.status)) rests.set(url, Date.now() + REST_MS);
    } catch {
      if (ask.signal.aborted) return { response: refusal(499, "caller_left", "the page left"), url: null };
      rests.set(url, Date.now() + REST_MS);
    } finally {
      clock.stop();
    }
  }
  const message = urls.length > 1 ? "none of the gateways answers" : "the gateway does not answer";
  return { response: best ?? refusal(502, "gateway_unreachable", message, { "retry-after": "5" }), url: null };
}

/** Those that rest come last: the one that rested longest first. @param {string[]} urls @param {Rests} rests */
function inTurn(urls, rests) {
  const now = Date.now();
  const until = (/** @type {string} */ url) => Math.max(0, (rests.get(url) ?? 0) - now);
  return [...urls].sort((one, other) => until(one) - until(other));
}

/** @param {Ask} ask @returns {RequestInit} */
function request({ method, headers, body }) {
  // A redirect would carry the question, and on the same host the key, to wherever it points.
  return { method, headers, body: body?.byteLength ? body : undefined, redirect: "manual" };
}

/**
 * A host that was given up or a proxy whose gateway is away may answer 200 too, with a page of its own: shown from
 * the site's own address, that page could do there whatever the site can.
 *
 * @param {Response} response
 */
function isOfAGateway({ headers }) {
  const type = headers.get("content-type")?.split(";")[0].trim().toLowerCase() ?? "";
  return type === "application/json" || type === "text/event-stream";
}

/** @param {number} status @param {Ask} ask */
function mayNextDoBetter(status, ask) {
  if (isItsOwnFault(status) || [408, 425, 429].includes(status)) return true;
  return (isKeyWrong(status) && ask.isSitesKey) || (status === 404 && ask.isHeld);
}

/** A redirect counts: what stands there is no gateway. @param {number} status */
const isItsOwnFault = (status) => status >= 500 || status < 400;

/** @param {number} status */
const isKeyWrong = (status) => status === 401 || status === 403;

/** @param {Response} response */
function answer(response) {
  const headers = new Headers({ "cache-control": "no-cache, no-transform", "x-accel-buffering": "no" });
  for (const name of TOLD) {
    const value = response.headers.get(name);
    if (value !== null) headers.set(name, value);
  }
  return new Response(response.body, { status: response.status, headers });
}

/**
 * A refusal as the page may see it: a gateway's own words, but no proxy's HTML, and no word of the site's key.
 *
 * @param {Response} response @param {Ask} ask
 */
async function refused(response, ask) {
  const { status } = response;
  const body = await upTo(response, MAX_ERROR_BYTES);
  if (isKeyWrong(status) && ask.isSitesKey) {
    return refusal(502, "gateway_refused_key", "the gateway refuses this site's key: its owner must look at SIVE_API_KEY");
  }
  if (status < 400 || !isOpenAIError(body)) {
    const code = status === 404 ? "not_found" : "bad_gateway";
    return refusal(status === 404 || status === 429 ? status : 502, code, `the gateway answered with HTTP ${status}`);
  }
  return answer(new Response(body, response));
}

/** @param {Response} response @param {number} maxBytes */
async function upTo(response, maxBytes) {
  const decoder = new TextDecoder();
  let text = "";
  for await (const part of response.body ?? []) {
    text += decoder.decode(part, { stream: true });
    if (text.length > maxBytes) return "";
  }
  return text;
}

/** @param {string} text */
function isOpenAIError(text) {
  try {
    return typeof JSON.parse(text).error === "object";
  } catch {
    return false;
  }
}

/** Aborts what has not begun in time, or when the page leaves; after `stop` only the latter. */
class Clock {
  #late = new AbortController();

  /** @param {number} ms @param {AbortSignal} left */
  constructor(ms, left) {
    this.signal = AbortSignal.any([this.#late.signal, left]);
    this.timer = setTimeout(() => this.#late.abort(), Math.max(0, ms));
  }

  stop() {
    clearTimeout(this.timer);
  }
}
