/**
 * A short-lived token for a page that asks the gateway itself (`<meta name="sive-api" content="direct">`).
 *
 * POST, for pages of this site. A visitor's last token in the request (`{"token": ...}`) is followed by one with the same
 * `id`, with which it may cancel what it asked before.
 */

import { readBody } from "../../src/body.js";
import { refusal } from "../../src/errors.js";
import { Limiter } from "../../src/limits.js";
import { foreign } from "../../src/origin.js";
import { environment, number, SettingsError, words } from "../../src/settings.js";
import { idOf, mint } from "../../src/token.js";

const MAX_BODY_BYTES = 8192;
const MIN_SECRET_CHARS = 32;

/** @param {{env?: import("../../src/settings.js").Environment, limiter?: Limiter}} [parts] For tests. */
export function token({ env = environment, limiter = new Limiter() } = {}) {
  return async function handle(/** @type {Request} */ request, /** @type {any} */ context) {
    if (request.method !== "POST") return refusal(405, "method_not_allowed", "ask for a token with POST");
    const why = foreign(request, words(env("SIVE_ORIGINS")));
    if (why) return refusal(403, "foreign_origin", why);
    try {
      const waitS = limiter.take(context?.ip ?? "", number(env, "SIVE_PER_MINUTE", 20, 1, 1e6));
      if (waitS) return refusal(429, "too_many_requests", `too many tokens: again in ${waitS} s`, { "retry-after": `${waitS}` });
      return await minted(request, env);
    } catch (error) {
      if (error instanceof SettingsError) return refusal(500, "misconfigured", error.message);
      throw error;
    }
  };
}

/** @param {Request} request @param {import("../../src/settings.js").Environment} env */
async function minted(request, env) {
  const secret = env("SIVE_TOKEN_SECRET")?.trim() ?? "";
  if (secret.length < MIN_SECRET_CHARS) {
    throw new SettingsError(`SIVE_TOKEN_SECRET must have ${MIN_SECRET_CHARS} characters at least (openssl rand -hex 32), and the gateway's SIVE_TOKEN_SECRETS must name it too`);
  }
  const lifetimeS = Math.round(60 * number(env, "SIVE_TOKEN_MINUTES", 10, 1, 60));
  const models = words(env("SIVE_TOKEN_MODELS"));
  const iat = Math.floor(Date.now() / 1000);
  const claims = {
    iat,
    exp: iat + lifetimeS,
    id: (await idOf(secret, await before(request))) ?? crypto.randomUUID(),
    ...(models.length ? { models } : {}),
    origin: request.headers.get("origin") ?? undefined,
  };
  const told = { token: await mint(secret, claims), expires_in: lifetimeS, expires_at: claims.exp };
  return Response.json(told, { headers: { "cache-control": "no-store" } });
}

/** The token that the visitor had. @param {Request} request */
async function before(request) {
  const body = await readBody(request, MAX_BODY_BYTES);
  try {
    return String(JSON.parse(new TextDecoder().decode(body ?? undefined)).token ?? "");
  } catch {
    return "";
  }
}

export default token();

export const config = {
  path: "/api/token",
  rateLimit: { windowLimit: 60, windowSize: 60, aggregateBy: ["ip", "domain"] },
};
