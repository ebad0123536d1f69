/**
 * Conversations, kept in this browser: one entry each, so that two tabs do not overwrite one another's.
 *
 * @import {Turn} from "./chat.mjs"
 * @typedef {{id: string, model: string, changedMs: number, turns: Turn[]}} Conversation
 * @typedef {Pick<Storage, "length" | "key" | "getItem" | "setItem" | "removeItem">} Kept
 */

export const PREFIX = "sive/conversation/";

export class Store {
  /** @param {Kept} kept `localStorage`, or anything like it. */
  constructor(kept) {
    this.kept = kept;
  }

  /** @returns {Conversation[]} Last changed first; what cannot be read is passed over, and left alone. */
  all() {
    const keys = Array.from({ length: this.kept.length }, (_, at) => this.kept.key(at) ?? "");
    return keys
      .filter((key) => key.startsWith(PREFIX))
      .map((key) => this.get(key.slice(PREFIX.length)))
      .filter((one) => one !== null)
      .sort((one, other) => other.changedMs - one.changedMs);
  }

  /** @param {string} id @returns {Conversation | null} An answer that was under way when it was kept has stopped. */
  get(id) {
    const found = read(this.kept.getItem(PREFIX + id));
    if (found?.id !== id || typeof found.model !== "string" || !Array.isArray(found.turns)) return null;
    return { id, model: found.model, changedMs: Number(found.changedMs) || 0, turns: found.turns.filter(isTurn).map(closed) };
  }

  /** @param {Conversation} conversation @returns {boolean} Was there room? */
  put(conversation) {
    try {
      this.kept.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
      return true;
    } catch {
      return false; // the quota; what is kept of it is as it was before
    }
  }

  /** @param {string} id */
  remove(id) {
    this.kept.removeItem(PREFIX + id);
  }

  /** @returns {string} All of them, to be kept elsewhere. */
  exported() {
    return JSON.stringify({ format: "sive conversations", version: 1, conversations: this.all() }, null, 2);
  }
}

/**
 * The browser's storage, or where it is switched off a memory as long as the page.
 *
 * @param {() => Storage} open @returns {Kept}
 */
export function storage(open) {
  try {
    const found = open();
    found.getItem(PREFIX);
    return found;
  } catch {
    return new Forgetful();
  }
}

class Forgetful {
  /** @type {Map<string, string>} */
  #kept = new Map();

  get length() {
    return this.#kept.size;
  }

  /** @param {number} at */
  key(at) {
    return [...this.#kept.keys()][at] ?? null;
  }

  /** @param {string} key */
  getItem(key) {
    return this.#kept.get(key) ?? null;
  }

  /** @param {string} key @param {string} value */
  setItem(key, value) {
    this.#kept.set(key, value);
  }

  /** @param {string} key */
  removeItem(key) {
    this.#kept.delete(key);
  }
}

/** @param {string | null} text @returns {any} */
function read(text) {
  try {
    return JSON.parse(text ?? "null");
  } catch {
    return null;
  }
}

/** @param {any} turn */
const isTurn = (turn) =>
  typeof turn?.question === "string" && typeof turn.text === "string" && Array.isArray(turn.voices);

/** @param {Turn} turn @returns {Turn} */
const closed = (turn) =>
  turn.status === "sending" || turn.status === "streaming" ? { ...turn, status: "stopped", waiting: "" } : turn;
