/**
 * Where the page asks, which one place says: `<meta name="sive-api" content="edge | direct | function">`.
 *
 * edge: `/v1` of the page's own host, which is a sive itself or an edge function in front of one.
 * direct: the sive of `<meta name="sive-gateway">`, with a token that `/api/token` hands out for minutes.
 * function: `/api/chat` of the page's own host, with `/api/models` beside it.
 */

import { boot } from "./chat.mjs";
import { models, SiveError, streamChat } from "./sive.mjs";

const EARLY_MS = 30_000;
const AGAIN_MS = 3000;
const KEY = "sive/key";

/** @typedef {{way: string, url: string, chatUrl?: string}} Place */

/** @param {(name: string) => string} meta @returns {Place} */
export function place(meta) {
  const way = meta("sive-api") || "edge";
  if (way === "direct") return { way, url: `${meta("sive-gateway").replace(/\/+$/, "").replace(/\/v1$/, "")}/v1` };
  if (way === "function") return { way, url: "/api", chatUrl: "/api/chat" };
  return { way, url: "/v1" };
}

/** A sive, with whatever opens it. */
export class Api {
  /** @type {{token: string, untilMs: number} | null} */
  #token = null;
  #tellsReady;

  /** @param {Place} place @param {Pick<Storage, "getItem" | "setItem">} session */
  constructor(place, session) {
    this.place = place;
    this.session = session;
    this.#tellsReady = place.way === "edge";
  }

  /** @param {string} key */
  use(key) {
    this.session.setItem(KEY, key);
    this.#token = null;
  }

  /** Can a key that somebody types open it? Where tokens do, a refusal is the site's own mistake. */
  get takesKeys() {
    return this.place.way !== "direct";
  }

  /**
   * An answer; while an engine starts and nobody else is there, it is asked again and again.
   *
   * @param {Omit<Parameters<typeof streamChat>[0], "url" | "key">} chat
   */
  async *chat(chat) {
    for (;;) {
      try {
        return yield* streamChat({ ...chat, ...this.place, key: await this.#key() });
      } catch (error) {
        if (!(error instanceof SiveError) || error.status !== 503 || !boot(error.message)) throw error;
        chat.onWaiting?.(error.message);
        await pause(AGAIN_MS, chat.signal);
      }
    }
  }

  async models() {
    return models({ url: this.place.url, key: await this.#key() });
  }

  /**
   * The rungs of each model and whether they could answer now, where a gateway is near enough to say.
   *
   * @returns {Promise<Record<string, {backend: string, degraded?: boolean, ready: boolean, resting?: string}[]>>}
   */
  async ready() {
    if (!this.#tellsReady) return {};
    try {
      const key = await this.#key();
      const headers = new Headers(key ? { authorization: `Bearer ${key}` } : {});
      const response = await fetch(this.place.url.replace(/v1$/, "ready"), { headers });
      return (await response.json()).models ?? {};
    } catch {
      this.#tellsReady = false; // a site in front of it that does not pass this on
      return {};
    }
  }

  async #key() {
    if (this.place.way !== "direct") return this.session.getItem(KEY) ?? undefined;
    if (this.#token && this.#token.untilMs - Date.now() > EARLY_MS) return this.#token.token;
    // The token before goes along, so that the next opens the same requests: to cancel them, for one.
    const body = JSON.stringify({ token: this.#token?.token });
    const asked = { method: "POST", headers: { "content-type": "application/json" }, body };
    const response = await fetch("/api/token", asked).catch((cause) => {
      throw new SiveError("the server cannot be reached", { code: "network", cause });
    });
    const told = await response.json().catch(() => ({}));
    if (!response.ok || !told.token) {
      const message = told.error?.message ?? "/api/token gives no token";
      throw new SiveError(message, { status: response.status, code: told.error?.code ?? "bad_response" });
    }
    this.#token = { token: told.token, untilMs: Date.now() + 1000 * (told.expires_in ?? 60) };
    return this.#token.token;
  }
}

/** @param {number} ms @param {AbortSignal} [signal] @returns {Promise<void>} Rejects when it is aborted. */
function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    const end = () => (clearTimeout(timer), reject(signal?.reason));
    if (signal?.aborted) end();
    signal?.addEventListener("abort", end, { once: true });
  });
}
