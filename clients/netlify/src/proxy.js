/** A request of the page, checked, and asked of the gateways with the site's key. */

import { readBody } from "./body.js";
import { refusal } from "./errors.js";
import { askInTurn } from "./gateways.js";
import { Limiter } from "./limits.js";
import { cors, foreign, preflight } from "./origin.js";
import { environment, settings, SettingsError } from "./settings.js";

const CARRIED = ["accept", "content-type", "x-sive-require"];
const REQUEST_ID = /^[A-Za-z0-9._:-]{1,128}$/;

/**
 * @typedef {object} Route
 * @property {"GET" | "POST"} method
 * @property {RegExp} path Its first group goes into `to` as `$1`.
 * @property {string} to The gateway's path.
 * @property {boolean} [spends] It costs something: counted for each visitor, and shown to one gateway after another.
 * @property {number[]} [passes] Statuses that are an answer too.
 * @property {boolean} [isHeld] Only one of the gateways has what is asked for: a 404 is no last word.
 */

/**
 * @typedef {object} Asked What became of a request that reached a gateway.
 * @property {Response} response
 * @property {Uint8Array<ArrayBuffer> | null} body
 * @property {number} endsAtMs When the function's time is up.
 * @property {() => void} cancel Tells the gateway that nobody wants the answer any more.
 */

/**
 * A function of Netlify's that passes requests on.
 *
 * @param {object} how
 * @param {Route[]} how.routes
 * @param {(given: import("./settings.js").Settings) => number} how.headMs How long until there must be a head.
 * @param {(asked: Asked) => Response} [how.relay] Makes the answer to a question from the gateway's.
 * @param {import("./settings.js").Environment} [how.env]
 * @param {Limiter} [how.limiter]
 */
export function proxy({ routes, headMs, relay, env = environment, limiter = new Limiter() }) {
  /** @type {import("./gateways.js").Rests} */
  const rests = new Map();

  return async function handle(/** @type {Request} */ request, /** @type {any} */ context) {
    const begunAtMs = Date.now();
    let given;
    try {
      given = settings(env);
    } catch (error) {
      if (!(error instanceof SettingsError)) throw error;
      return refusal(500, "misconfigured", error.message);
    }
    const allowed = cors(request, given.origins);
    const refuse = (/** @type {Parameters<typeof refusal>} */ ...[status, code, message, headers]) =>
      refusal(status, code, message, { ...allowed, ...headers });

    const { pathname } = new URL(request.url);
    const there = routes.filter((route) => route.path.test(pathname));
    if (!there.length) return refuse(404, "unknown_url", `there is no ${pathname.slice(0, 200)} here`);
    const why = foreign(request, given.origins);
    if (why) return refuse(403, "foreign_origin", why);
    if (request.method === "OPTIONS") return preflight(allowed);
    const route = there.find(({ method }) => method === request.method);
    if (!route) return refuse(405, "method_not_allowed", `ask ${pathname.slice(0, 200)} with ${there[0].method}`);

    const waitS = route.spends ? limiter.take(context?.ip ?? "", given.perMinute) : 0;
    if (waitS) return refuse(429, "too_many_requests", `too many questions: again in ${waitS} s`, { "retry-after": `${waitS}` });
    const body = route.method === "POST" ? await readBody(request, given.maxBodyBytes) : null;
    if (route.method === "POST" && !body) {
      return refuse(413, "request_too_large", `the request is larger than ${given.maxBodyBytes} bytes`);
    }

    const said = request.headers.get("x-request-id") ?? "";
    const requestId = REQUEST_ID.test(said) ? said : `site-${crypto.randomUUID()}`;
    const opens = authorization(request, given.key);
    const headers = { ...carried(request), ...opens, "x-request-id": requestId };
    const budgetMs = headMs(given);
    const { response, url } = await askInTurn(
      given.gateways,
      {
        path: pathname.replace(route.path, route.to),
        method: route.method,
        headers,
        body,
        signal: request.signal,
        // An answer in one piece gives its head last.
        clockMs: route.spends && !isStream(body) ? budgetMs : given.firstByteMs,
        budgetMs,
        isSitesKey: Boolean(given.key),
        passes: route.passes ?? [],
        isHeld: route.isHeld ?? false,
      },
      rests,
    );
    for (const [name, value] of Object.entries(allowed)) response.headers.set(name, value);
    if (!relay || !route.spends || !url || !response.ok) return response;
    const cancel = () => {
      const target = `${url}/v1/requests/${requestId}/cancel`;
      const told = fetch(target, { method: "POST", headers: opens, redirect: "manual" }).then((reply) => reply.body?.cancel());
      // A function is frozen when its answer has ended, unless Netlify knows that there is work left.
      context?.waitUntil?.(told.catch(() => {}));
      told.catch(() => {}); // the answer had ended before, or the gateway is gone
    };
    return relay({ response, body, endsAtMs: begunAtMs + given.wallMs, cancel });
  };
}

/** @param {Request} request @returns {Record<string, string>} */
function carried(request) {
  /** @type {Record<string, string>} */
  const headers = {};
  for (const name of CARRIED) {
    const value = request.headers.get(name);
    if (value !== null) headers[name] = value;
  }
  return headers;
}

/**
 * The site's key; without one the visitor's own may open the gateway. With one that is nobody's business.
 *
 * @param {Request} request @param {string} key @returns {Record<string, string>}
 */
function authorization(request, key) {
  const said = key ? `Bearer ${key}` : request.headers.get("authorization");
  return said ? { authorization: said } : {};
}

/** @param {Uint8Array<ArrayBuffer> | null} body */
function isStream(body) {
  try {
    return JSON.parse(new TextDecoder().decode(body ?? undefined)).stream === true;
  } catch {
    return false;
  }
}
