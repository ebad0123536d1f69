/** A function of a Gradio app, as an old Space has one. */

import { eventsOf, WholeEvents } from "./events.js";

const OTHER_PREFIX = { "": "/gradio_api", "/gradio_api": "" };

/** The app refuses or fails. `status`: of its reply, 502 when it fails later. */
export class GradioError extends Error {
  /** @param {string} message @param {number} [status] */
  constructor(message, status = 502) {
    super(message);
    this.status = status;
  }
}

/**
 * Call the function, and yield all it has said so far each time it says more.
 *
 * @param {object} how
 * @param {string} how.url Of the app, without a slash at its end.
 * @param {string} how.prefix Of its API: Gradio 4 had none, 5 and 6 have `/gradio_api`; the other is tried on a 404.
 * @param {string} how.name The function's `api_name`.
 * @param {unknown[]} how.data Its arguments.
 * @param {string} [how.key] Of a private Space.
 * @param {AbortSignal} [how.signal]
 * @returns {AsyncGenerator<unknown[], void, void>} The function's outputs.
 * @throws {GradioError}
 */
export async function* callGradio({ url, prefix, name, data, key, signal }) {
  const headers = { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const base = (/** @type {string} */ under) => `${url}${under}/call/${name}`;
  const post = (/** @type {string} */ under) =>
    fetch(base(under), { method: "POST", headers, body: JSON.stringify({ data }), signal });
  let under = prefix;
  let reply = await post(under);
  if (reply.status === 404 && under in OTHER_PREFIX) {
    await reply.body?.cancel();
    under = OTHER_PREFIX[/** @type {keyof typeof OTHER_PREFIX} */ (under)];
    reply = await post(under);
  }
  if (!reply.ok) throw new GradioError(`the Space refuses ${name} with HTTP ${reply.status}`, reply.status);
  const { event_id: id } = await reply.json().catch(() => ({}));
  if (!id) throw new GradioError(`the Space has taken ${name} and gives no event to wait for`);
  yield* outputs(await fetch(`${base(under)}/${id}`, { headers, signal }));
}

/** @param {Response} reply */
async function* outputs(reply) {
  if (!reply.ok) throw new GradioError(`the Space has lost the call: HTTP ${reply.status}`, reply.status);
  const whole = new WholeEvents();
  for await (const bytes of reply.body ?? []) {
    for (const { name, payload } of eventsOf(whole.feed(bytes))) {
      if (name === "error") throw new GradioError(payload?.error ?? "the Space's function failed and does not say why");
      if (Array.isArray(payload)) yield payload;
      if (name === "complete") return;
    }
  }
  throw new GradioError("the Space broke off in the middle of its answer");
}

/**
 * The answer among the outputs of a chat function: `(message, history)` or a text alone.
 *
 * Blocks of the usual kind empty the message box and add the answer to the history; others give the answer itself.
 *
 * @param {unknown[]} outputs
 */
export function answerIn(outputs) {
  const history = outputs.find((output) => Array.isArray(output) && output.length);
  const last = Array.isArray(history) ? history[history.length - 1] : undefined;
  const spoken = Array.isArray(last) ? last[1] : last?.role === "assistant" ? last.content : undefined;
  const text = textOf(spoken);
  return text || textOf(outputs[0]);
}

/** Gradio 6 keeps what was said as parts. @param {any} content @returns {string} */
function textOf(content) {
  if (Array.isArray(content)) return content.map((part) => part?.text ?? "").join("");
  return typeof content === "string" ? content : "";
}
