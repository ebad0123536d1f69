/**
 * One question and its answer, as a value that events change. Pure: no clock, no page, no network.
 *
 * sending -> streaming -> done | stopped | error; the last three are final.
 *
 * @import {Route} from "./sive.mjs"
 * @typedef {{backend: string, degraded: boolean, resumed: boolean, truncated: boolean, at: number}} Voice
 *   `at`: from which character on.
 * @typedef {"sending" | "streaming" | "done" | "stopped" | "error"} Status
 * @typedef {{message: string, code: string, status: number, retryAfterS?: number}} Failure
 *
 * @typedef {object} Turn
 * @property {string} question
 * @property {string} text Of the answer, as far as it came.
 * @property {Status} status
 * @property {Voice[]} voices Who spoke, in order.
 * @property {string} waiting Why nobody speaks yet; empty when nobody says.
 * @property {number} startedMs
 * @property {number | null} firstMs From the question to the first text.
 * @property {number | null} tookMs From the question to the end.
 * @property {string} reason OpenAI's finish_reason.
 * @property {Failure | null} failure
 *
 * @typedef {{kind: "waiting", why: string} | {kind: "route", route: Route} | {kind: "text", text: string}
 *   | {kind: "finish", reason: string} | {kind: "stop"} | {kind: "fail", failure: Failure}} Happening
 */

/** @param {string} question @param {number} atMs @returns {Turn} */
export function asked(question, atMs) {
  return {
    question,
    text: "",
    status: "sending",
    voices: [],
    waiting: "",
    startedMs: atMs,
    firstMs: null,
    tookMs: null,
    reason: "",
    failure: null,
  };
}

/** @param {Turn} turn */
export const isOpen = (turn) => turn.status === "sending" || turn.status === "streaming";

/**
 * What becomes of a turn; what comes after its end changes nothing.
 *
 * @param {Turn} turn @param {Happening} happening @param {number} atMs
 * @returns {Turn}
 */
export function after(turn, happening, atMs) {
  if (!isOpen(turn)) return turn;
  const tookMs = atMs - turn.startedMs;
  switch (happening.kind) {
    case "waiting":
      return { ...turn, waiting: happening.why };
    case "route":
      return { ...turn, voices: [...turn.voices.filter(({ at }) => at < turn.text.length), voice(turn, happening.route)] };
    case "text":
      return {
        ...turn,
        status: "streaming",
        text: turn.text + happening.text,
        waiting: "",
        firstMs: turn.firstMs ?? tookMs,
      };
    case "finish":
      return { ...turn, status: "done", reason: happening.reason, tookMs, waiting: "" };
    case "stop":
      return { ...turn, status: "stopped", tookMs, waiting: "" };
    case "fail":
      return { ...turn, status: "error", failure: happening.failure, tookMs, waiting: "" };
  }
}

/** @param {Turn} turn @param {Route} route @returns {Voice} */
function voice(turn, { backend, degraded, resumed, truncated }) {
  return { backend, degraded, resumed, truncated, at: turn.text.length };
}

/** @param {Turn} turn Where the answer broke off and was carried on. */
export function seams(turn) {
  return turn.voices.filter(({ at }) => at > 0).map(({ at }) => at);
}

/** @param {Turn} turn Did anybody but the model's own voice speak? */
export const isDegraded = (turn) => turn.voices.some(({ degraded }) => degraded);

/**
 * The messages that ask the last question of a conversation: what failed without a word is not part of it.
 *
 * @param {Turn[]} turns @param {string} question
 * @returns {import("./sive.mjs").Message[]}
 */
export function messages(turns, question) {
  const said = turns.filter((turn) => turn.text).flatMap((turn) => [
    { role: /** @type {const} */ ("user"), content: turn.question },
    { role: /** @type {const} */ ("assistant"), content: turn.text },
  ]);
  return [...said, { role: "user", content: question }];
}

/**
 * What sive says of an engine that starts: its phase, for how long, and how long still when it knows.
 *
 * @param {string} why @returns {{phase: string, forS: number, leftS: number | null} | null} None: nothing starts.
 */
export function boot(why) {
  const found = /not ready \((\w+) for (\d+) s(?:, about (\d+) s left)?/.exec(why);
  return found && { phase: found[1], forS: Number(found[2]), leftS: found[3] ? Number(found[3]) : null };
}
