/** Which pages may ask: the site's own, and those that its owner names. */

/**
 * Why a request may not be answered, or null.
 *
 * Browsers send `Origin` with every POST, and pages cannot forge it. A program can: this keeps other sites from
 * spending the key in their visitors' browsers, and is no lock.
 *
 * @param {Request} request @param {string[]} origins
 */
export function foreign(request, origins) {
  const origin = request.headers.get("origin");
  if (origin) return isOwn(origin, request) || origins.includes(origin) ? null : `pages of ${origin.slice(0, 200)} may not ask here`;
  if (request.method === "POST") return "only pages may ask here: there is no Origin";
  const site = request.headers.get("sec-fetch-site") ?? "none";
  return site === "same-origin" || site === "none" ? null : "another site's page may not ask here";
}

/**
 * What lets a page of another, named site read the answer; nothing for the site's own.
 *
 * @param {Request} request @param {string[]} origins @returns {Record<string, string>}
 */
export function cors(request, origins) {
  const origin = request.headers.get("origin") ?? "";
  if (!origins.includes(origin) || isOwn(origin, request)) return {};
  return {
    "access-control-allow-origin": origin,
    "access-control-expose-headers": "x-request-id, x-sive-backend, x-sive-degraded, x-sive-attempts, retry-after",
    vary: "Origin",
  };
}

/** The answer to a browser that asks whether it may ask. @param {Record<string, string>} allowed */
export function preflight(allowed) {
  const asked = { "access-control-allow-methods": "GET, POST", "access-control-max-age": "600" };
  const headers = { ...allowed, ...asked, "access-control-allow-headers": "authorization, content-type, x-request-id, x-sive-require" };
  return new Response(null, { status: 204, headers });
}

/** @param {string} origin As a browser spells it; "null" is nobody's. @param {Request} request */
function isOwn(origin, request) {
  return URL.canParse(origin) && new URL(origin).host === new URL(request.url).host;
}
