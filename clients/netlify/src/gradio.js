/** A function of a Gradio app, as an old Space has one. */

import { eventsOf, WholeEvents } from "./events.js";
import { authorization, eventId, GradioError, posted } from "./gradio_http.js";
import { byNumber } from "./gradio_queue.js";

const OTHER_PREFIX = { "": "/gradio_api", "/gradio_api": "" };

/**
 * @typedef {object} Call
 * @property {string} url Of the app, without a slash at its end.
 * @property {string} prefix Of its API: Gradio 4 had none, 5 and 6 have `/gradio_api`.
 * @property {string} name The function's, as the app's own "Use via API" spells it: `/chat`, or `//chat_function`.
 * @property {unknown[]} data Its arguments.
 * @property {string} [key] Of a private Space.
 * @property {AbortSignal} [signal]
 */

/**
 * Call the function, and yield all it has said so far each time it says more.
 *
 * @param {Call} call
 * @returns {AsyncGenerator<any[], void, void>} The function's outputs.
 * @throws {GradioError}
 */
export async function* callGradio(call) {
  // A name with a slash of its own cannot stand in a path: no server finds it there.
  if (!call.name.startsWith("//")) return yield* byName(call);
  const { prefix, number, name } = await lookUp(call);
  if (name.includes("/")) yield* byNumber({ ...call, prefix }, number);
  else yield* byName({ ...call, prefix, name });
}

/** Ask by the function's own path; the other prefix is tried on a 404. @param {Call} call */
async function* byName({ url, prefix, name, data, key, signal }) {
  const base = (/** @type {string} */ under) => `${url}${under}/call/${name.replace(/^\//, "")}`;
  const post = (/** @type {string} */ under) => fetch(base(under), { ...posted({ data }, key), signal });
  let under = prefix;
  let reply = await post(under);
  if (reply.status === 404 && under in OTHER_PREFIX) {
    await reply.body?.cancel();
    under = OTHER_PREFIX[/** @type {keyof typeof OTHER_PREFIX} */ (under)];
    reply = await post(under);
  }
  const id = await eventId(reply, name);
  yield* outputs(await fetch(`${base(under)}/${id}`, { headers: authorization(key), signal }));
}

/** Which function that is, and where. @param {Call} call */
async function lookUp({ url, prefix, name, key, signal }) {
  const reply = await fetch(`${url}/config`, { headers: authorization(key), signal });
  if (!reply.ok) throw new GradioError(`the Space does not say which functions it has: HTTP ${reply.status}`, reply.status);
  const { dependencies = [], api_prefix = prefix } = await reply.json().catch(() => ({}));
  const wanted = name.replace(/^\/+/, "");
  const found = dependencies.find((/** @type {any} */ { api_name }) => String(api_name).replace(/^\/+/, "") === wanted);
  if (found) return { prefix: api_prefix, number: found.id, name: String(found.api_name) };
  const names = dependencies.map((/** @type {any} */ { api_name }) => `/${api_name}`).join(", ");
  throw new GradioError(`the Space has no function ${name}: it has ${names || "none"}`, 404);
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
