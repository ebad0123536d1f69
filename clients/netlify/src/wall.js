/** An answer that ends before the function does. */

import { errorObject } from "./errors.js";
import { DONE, event, eventsOf, WholeEvents } from "./events.js";

/**
 * Pass an answer on, in whole events, until it ends or time is up.
 *
 * When it is up the answer gets a last chunk of its own, with `finish_reason: "length"` and
 * `"sive": {"continue": true}`. Whoever gets that asks the same once more, with the text so far as the last message
 * (`{"role": "assistant", "content": ...}`, `continue_final_message: true`, `add_generation_prompt: false`; as
 * before when there is no text yet), and shows what comes as its continuation. A `max_tokens` in
 * the chunk's `sive` is what is left of the request's own. What cannot be carried on by its text ends in an error.
 *
 * @param {import("./proxy.js").Asked} asked
 */
export function wall({ response, body, endsAtMs, signal, cancel }) {
  if (!response.body || !response.headers.get("content-type")?.startsWith("text/event-stream")) return response;
  const told = new Told(JSON.parse(new TextDecoder().decode(body ?? undefined)));
  const reader = response.body.getReader();
  const whole = new WholeEvents();
  const encoder = new TextEncoder();
  let isOver = false;

  const stream = new ReadableStream({
    start(controller) {
      this.timer = setTimeout(() => this.end(controller, told.atTheWall()), Math.max(0, endsAtMs - Date.now()));
      // Netlify may tell of a page that left in either way, or not at all.
      signal.addEventListener("abort", () => this.end(controller, ""), { once: true });
    },
    async pull(controller) {
      try {
        while (!isOver) {
          const { done, value } = await reader.read();
          if (isOver) return;
          if (done) return this.end(controller, told.atTheEnd());
          const events = whole.feed(value);
          told.take(events);
          if (events) return controller.enqueue(encoder.encode(events));
        }
      } catch {
        this.end(controller, told.atTheEnd());
      }
    },
    cancel() {
      this.stop();
    },
    end(controller, last) {
      if (isOver) return;
      this.stop();
      if (last) controller.enqueue(encoder.encode(last));
      controller.close();
    },
    stop() {
      if (isOver) return;
      isOver = true;
      clearTimeout(this.timer);
      // It rejects when the body was aborted already, which would end the whole process.
      reader.cancel().catch(() => {});
      if (!told.isComplete) cancel();
    },
  });
  return new Response(stream, response);
}

/** What of an answer was passed on. */
class Told {
  isComplete = false;
  #asked;
  /** @type {any} The first chunk: the ones after it are of the same answer. */
  #first = null;
  #tokens = 0;
  #isText = true;

  /** @param {any} asked The request. */
  constructor(asked) {
    this.#asked = asked;
  }

  /** @param {string} events */
  take(events) {
    for (const { payload: chunk } of eventsOf(events)) {
      const choice = chunk?.choices?.[0];
      this.#first ??= choice ? chunk : null;
      const { content, role, ...more } = choice?.delta ?? {};
      if (content) this.#tokens += 1; // a chunk holds one at least
      if (Object.values(more).some((value) => value?.length)) this.#isText = false; // tools, thoughts
      if (choice?.finish_reason || chunk?.error) this.isComplete = true;
    }
  }

  /** What is said when time is up. */
  atTheWall() {
    if (this.isComplete) return DONE;
    const left = this.#left();
    if (!this.#canGoOn()) return lost("the function's time was up, and such an answer cannot be carried on", "function_wall");
    const { id = "chatcmpl-wall", created = Math.floor(Date.now() / 1000), model = this.#asked.model } = this.#first ?? {};
    const goOn = left === 0 ? {} : { sive: { continue: true, ...(left === null ? {} : { max_tokens: left }) } };
    const choices = [{ index: 0, delta: {}, logprobs: null, finish_reason: "length" }];
    return event({ id, object: "chat.completion.chunk", created, model, choices, ...goOn }) + DONE;
  }

  /** What is said when the gateway's answer is over, whether it should be or not. */
  atTheEnd() {
    return this.isComplete ? "" : lost("the answer broke off", "stream_interrupted");
  }

  #canGoOn() {
    const { n, tools, functions, response_format: format, logprobs } = this.#asked;
    const isPlain = !tools?.length && !functions?.length && (!format || format.type === "text") && !logprobs;
    return isPlain && (n ?? 1) === 1 && this.#isText;
  }

  /** How many tokens the request still allows; null when it sets no limit. */
  #left() {
    const limit = this.#asked.max_completion_tokens ?? this.#asked.max_tokens;
    return typeof limit === "number" ? Math.max(0, limit - this.#tokens) : null;
  }
}

/** @param {string} message @param {string} code */
const lost = (message, code) => event(errorObject(message, 502, code));
