/**
 * Asking a philosopher from a site's own functions, as before: `callSNB` gives the whole answer, `streamSNB` also
 * tells of it as it comes.
 *
 * Who is asked, from the environment: the gateways of `SIVE_GATEWAY_URLS` with `SIVE_API_KEY`; else `SNB_BACKEND_URL`,
 * which is a gateway when it or `SNB_API_PREFIX` ends in `/v1`, and an old Space otherwise, whose function is
 * `SNB_GRADIO_API` and whose key, if it is private, is `HF_TOKEN`.
 */

import { eventsOf, WholeEvents } from "./events.js";
import { askInTurn } from "./gateways.js";
import { answerIn, callGradio } from "./gradio.js";
import { philosopherOf } from "./philosophers.js";
import { environment, settings, SettingsError } from "./settings.js";
import { apiPrefix, baseUrl } from "./urls.js";

/** There is no answer, or no end of it. `text`: what there is of it. */
export class SNBError extends Error {
  text = "";

  /** @param {string} message @param {{status?: number, code?: string, cause?: unknown}} about */
  constructor(message, { status = 502, code = "", cause } = {}) {
    super(message, { cause });
    this.name = "SNBError";
    this.status = status;
    this.code = code;
  }
}

/**
 * The whole answer.
 *
 * @param {string} philosopher `spinoza`, `bergson` or `kant`.
 * @param {string} ragContext Passages to draw on; may be empty.
 * @param {string} userMessage
 * @returns {Promise<string>}
 * @throws {SNBError}
 */
export async function callSNB(philosopher, ragContext, userMessage) {
  return streamSNB(philosopher, ragContext, userMessage);
}

/**
 * The whole answer, told as it comes.
 *
 * @param {string} philosopher @param {string} ragContext @param {string} userMessage
 * @param {object} [how]
 * @param {AbortSignal} [how.signal] Ends it.
 * @param {(delta: string, text: string) => void} [how.onDelta] What was added, and all there is; nothing was added
 *   when a Space has changed what it had said.
 * @param {import("./settings.js").Environment} [how.env] For tests.
 * @returns {Promise<string>}
 * @throws {SNBError} Or the signal's own reason.
 */
export async function streamSNB(philosopher, ragContext, userMessage, { signal, onDelta, env = environment } = {}) {
  let text = "";
  const tell = (/** @type {string} */ now) => {
    const delta = now.startsWith(text) ? now.slice(text.length) : "";
    if (now === text) return;
    text = now;
    onDelta?.(delta, now);
  };
  try {
    const speaker = philosopherOf(philosopher);
    const place = placeOf(env);
    if ("url" in place) {
      const data = [[ragContext, userMessage].filter(Boolean).join("\n\n"), []];
      for await (const outputs of callGradio({ ...place, data, signal })) tell(answerIn(outputs));
    } else {
      for await (const delta of chat(place, speaker, ragContext, userMessage, signal)) tell(text + delta);
    }
    return text;
  } catch (error) {
    signal?.throwIfAborted();
    throw failed(error, text);
  }
}

/** The old Space, or the settings of the gateways. @param {import("./settings.js").Environment} env */
function placeOf(env) {
  const url = env("SNB_BACKEND_URL")?.trim();
  if (env("SIVE_GATEWAY_URLS")?.trim() || !url) return settings(env);
  const prefix = apiPrefix(env("SNB_API_PREFIX"));
  let base;
  try {
    base = baseUrl(url);
  } catch {
    throw new SettingsError("SNB_BACKEND_URL is no address: write HOST or https://HOST");
  }
  if (base.endsWith("/v1")) return settings((name) => (name === "SIVE_GATEWAY_URLS" ? base : env(name)));
  if (prefix.endsWith("/v1")) return settings((name) => (name === "SIVE_GATEWAY_URLS" ? base + prefix : env(name)));
  return { url: base, prefix, name: env("SNB_GRADIO_API")?.trim() || "//chat_function", key: env("HF_TOKEN")?.trim() };
}

/**
 * @param {import("./settings.js").Settings} given @param {{model: string, systemPrompt: string}} speaker
 * @param {string} ragContext @param {string} userMessage @param {AbortSignal} [signal]
 */
async function* chat(given, speaker, ragContext, userMessage, signal = new AbortController().signal) {
  const passages = ragContext ? `\n\nPassages sur lesquels t'appuyer :\n${ragContext}` : "";
  const messages = [
    { role: "system", content: speaker.systemPrompt + passages },
    { role: "user", content: userMessage },
  ];
  const { response } = await askInTurn(
    given.gateways,
    {
      path: "/v1/chat/completions",
      method: "POST",
      headers: { "content-type": "application/json", ...(given.key ? { authorization: `Bearer ${given.key}` } : {}) },
      body: new TextEncoder().encode(JSON.stringify({ model: speaker.model, messages, stream: true })),
      signal,
      clockMs: given.firstByteMs,
      budgetMs: given.wallMs,
      isSitesKey: Boolean(given.key),
      passes: [],
      isHeld: false,
    },
    rests,
  );
  if (!response.ok) {
    const { error } = await response.json();
    throw new SNBError(error.message, { status: response.status, code: error.code });
  }
  yield* deltas(response);
}

/** @type {import("./gateways.js").Rests} */
const rests = new Map();

/** @param {Response} response */
async function* deltas(response) {
  const whole = new WholeEvents();
  for await (const bytes of response.body ?? []) {
    for (const { payload } of eventsOf(whole.feed(bytes))) {
      if (payload?.error) throw new SNBError(payload.error.message, { code: payload.error.code });
      const choice = payload?.choices?.[0];
      if (choice?.delta?.content) yield choice.delta.content;
      if (choice?.finish_reason) return;
    }
  }
  throw new SNBError("the answer broke off", { code: "stream_interrupted" });
}

/** @param {unknown} error @param {string} text */
function failed(error, text) {
  if (error instanceof RangeError || error instanceof SettingsError) return error;
  const { message, status } = /** @type {any} */ (error);
  const told = error instanceof SNBError ? error : new SNBError(message, { status, cause: error });
  told.text = text;
  return told;
}
