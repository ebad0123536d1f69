/** Gradio's queue, as its own page uses it: the only way to a function whose name has a slash of its own. */

import { eventsOf, WholeEvents } from "./events.js";
import { authorization, eventId, GradioError, posted } from "./gradio_http.js";

/**
 * Ask by number, and yield all it has said so far each time it says more.
 *
 * @param {import("./gradio.js").Call} call @param {number} number The function's `fn_index`.
 * @returns {AsyncGenerator<any[], void, void>}
 */
export async function* byNumber({ url, prefix, name, data, key, signal }, number) {
  const session_hash = crypto.randomUUID().slice(0, 12);
  const join = posted({ data, fn_index: number, session_hash }, key);
  const id = await eventId(await fetch(`${url}${prefix}/queue/join`, { ...join, signal }), name);
  const reply = await fetch(`${url}${prefix}/queue/data?session_hash=${session_hash}`, { headers: authorization(key), signal });
  if (!reply.ok) throw new GradioError(`the Space has lost the call: HTTP ${reply.status}`, reply.status);
  yield* outputs(reply, id);
}

/** @param {Response} reply @param {string} id @returns {AsyncGenerator<any[], void, void>} */
async function* outputs(reply, id) {
  const whole = new WholeEvents();
  /** @type {any[] | null} */
  let now = null;
  for await (const bytes of reply.body ?? []) {
    for (const { payload } of eventsOf(whole.feed(bytes))) {
      if (payload?.event_id !== id) continue;
      const { msg, output, success } = payload;
      if (msg === "process_generating" && success !== false) {
        now = now === null ? output.data : output.data.map((/** @type {Edit[]} */ edits, /** @type {number} */ at) => edited(now?.[at], edits));
        yield /** @type {any[]} */ (now);
      } else if (msg === "process_completed" && success !== false) {
        return yield output.data;
      } else if (success === false || msg === "unexpected_error") {
        throw new GradioError(output?.error ?? payload.message ?? "the Space's function failed and does not say why");
      }
    }
  }
  throw new GradioError("the Space broke off in the middle of its answer");
}

/** What to do, where (keys from the outside in), and with what. @typedef {["replace" | "append" | "add" | "delete", (string | number)[], any]} Edit */

/** Steps that lead out of the value, into what all objects share. */
const OUTWARD = ["__proto__", "constructor", "prototype"];

/**
 * A value after its edits: from the second piece on Gradio only says what has changed.
 *
 * @param {any} before @param {Edit[]} edits
 */
export function edited(before, edits) {
  let value = structuredClone(before);
  for (const [action, path, added] of edits) {
    const outward = path.find((step) => OUTWARD.includes(`${step}`));
    if (outward !== undefined) throw new GradioError(`the Space edits ${outward}, which no answer has`);
    if (!path.length) {
      value = action === "append" ? value + added : added;
      continue;
    }
    const last = path[path.length - 1];
    const inner = path.slice(0, -1).reduce((within, step) => within[step], value);
    if (action === "append") inner[last] += added;
    else if (action === "replace") inner[last] = added;
    else if (Array.isArray(inner)) inner.splice(Number(last), action === "delete" ? 1 : 0, ...(action === "add" ? [added] : []));
    else if (action === "delete") delete inner[last];
    else inner[last] = added;
  }
  return value;
}
