/** What the owner of the site set, as values that can be relied on. */

import { gatewayUrls } from "./urls.js";

/** @typedef {(name: string) => string | undefined} Environment */

/**
 * @typedef {object} Settings
 * @property {string[]} gateways In the order in which they are asked.
 * @property {string} key Opens the gateways; without one a visitor's own is passed on.
 * @property {string[]} origins Other sites whose pages may ask here.
 * @property {number} firstByteMs A gateway that has not begun by then is left for the next.
 * @property {number} wallMs How long the function may run.
 * @property {number} maxBodyBytes
 * @property {number} perMinute Questions of one visitor, for each instance of a function.
 */

const MAX_WALL_S = 840;

/** Netlify's own way to read a variable, and Node's. @type {Environment} */
export function environment(name) {
  const { Netlify, process } = /** @type {any} */ (globalThis);
  return Netlify?.env?.get(name) ?? process?.env?.[name];
}

/** A variable is missing or wrong; the message names it and the way out, never its value. */
export class SettingsError extends Error {}

/** @param {Environment} env @returns {Settings} @throws {SettingsError} */
export function settings(env) {
  return {
    gateways: gateways(env),
    key: env("SIVE_API_KEY")?.trim() ?? "",
    origins: words(env("SIVE_ORIGINS")),
    firstByteMs: 1000 * number(env, "SIVE_FIRST_BYTE_S", 8, 1, 30),
    wallMs: 1000 * number(env, "SIVE_FUNCTION_WALL_S", 55, 2, MAX_WALL_S),
    maxBodyBytes: number(env, "SIVE_MAX_BODY_BYTES", 262_144, 1, 6_000_000),
    perMinute: number(env, "SIVE_PER_MINUTE", 20, 1, 1e6),
  };
}

/**
 * A number between two others, or what it is by default.
 *
 * @param {Environment} env @param {string} name @param {number} usual @param {number} least @param {number} most
 */
export function number(env, name, usual, least, most) {
  const said = env(name)?.trim();
  if (!said) return usual;
  const value = Number(said);
  if (value >= least && value <= most) return value;
  throw new SettingsError(`${name} must be a number from ${least} to ${most}`);
}

/** @param {string | undefined} list */
export function words(list) {
  return (list ?? "").split(/[\s,]+/).filter(Boolean);
}

/** @param {Environment} env */
function gateways(env) {
  let urls = [];
  try {
    urls = gatewayUrls(env("SIVE_GATEWAY_URLS") ?? "");
  } catch {
    throw new SettingsError("SIVE_GATEWAY_URLS holds something that is no address: write https://HOST, separated by commas");
  }
  if (!urls.length) throw new SettingsError("SIVE_GATEWAY_URLS is not set: where is the gateway?");
  return urls;
}
