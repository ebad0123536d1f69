/** A stream of server-sent events, cut where an event ends. */

const ENDS = /\r\n\r\n|\n\n|\r\r/g;

/** Takes bytes however they are cut, and gives whole events. */
export class WholeEvents {
  #decoder = new TextDecoder();
  #rest = "";

  /**
   * The events that are complete by now, in one text; what is left is kept for the next time.
   *
   * @param {Uint8Array} bytes
   */
  feed(bytes) {
    this.#rest += this.#decoder.decode(bytes, { stream: true });
    let end = 0;
    for (const found of this.#rest.matchAll(ENDS)) end = found.index + found[0].length;
    const whole = this.#rest.slice(0, end);
    this.#rest = this.#rest.slice(end);
    return whole;
  }
}

/**
 * The events of a text that holds whole ones; comments are none.
 *
 * @param {string} text
 * @returns {{name: string, payload: any}[]} `payload`: parsed JSON, or null for `[DONE]` and for what is none.
 */
export function eventsOf(text) {
  const found = [];
  for (const event of text.split(ENDS)) {
    const lines = event.split(/\r\n|\n|\r/);
    const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5));
    const name = lines.find((line) => line.startsWith("event:"))?.slice(6).trim() ?? "";
    if (data.length) found.push({ name, payload: json(data.join("\n")) });
  }
  return found;
}

/** One event. @param {unknown} payload */
export const event = (payload) => `data: ${JSON.stringify(payload)}\n\n`;

export const DONE = "data: [DONE]\n\n";

/** @param {string} text */
function json(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
