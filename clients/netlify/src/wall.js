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
export function wall(asked) {
  const { response } = asked;
  if (!response.body || !response.headers.get("content-type")?.startsWith("text/event-stream")) return response;
  return new Response(new ReadableStream(new Walled(asked, response.body.getReader())), response);
}

/**
 * The source of a stream that ends in time.
 *
 * @implements {UnderlyingDefaultSource<Uint8Array>}
 */
class Walled {
  #encoder = new TextEncoder();
  #events = new WholeEvents();
  #isOver = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /** @param {import("./proxy.js").Asked} asked @param {ReadableStreamDefaultReader<Uint8Array>} reader */
  constructor(asked, reader) {
    this.asked = asked;
    this.reader = reader;
    this.told = new Told(JSON.parse(new TextDecoder().decode(asked.body ?? undefined)));
  }

  /** @param {ReadableStreamDefaultController<Uint8Array>} controller */
  start(controller) {
    const { endsAtMs } = this.asked;
    this.#timer = setTimeout(() => this.#end(controller, this.told.atTheWall()), Math.max(0, endsAtMs - Date.now()));
  }

  /** @param {ReadableStreamDefaultController<Uint8Array>} controller */
  async pull(controller) {
    try {
      while (!this.#isOver) {
        const { done, value } = await this.reader.read();
        if (this.#isOver) return;
        if (done) return this.#end(controller, this.told.atTheEnd());
        const events = this.#events.feed(value);
        this.told.take(events);
        if (events) return controller.enqueue(this.#encoder.encode(events));
      }
    } catch {
      this.#end(controller, this.told.atTheEnd());
    }
  }

  /** The page left. Netlify may tell so here, by the request's signal, which ends the body, or not at all. */
  cancel() {
    this.#stop();
  }

  /** @param {ReadableStreamDefaultController<Uint8Array>} controller @param {string} last */
  #end(controller, last) {
    if (this.#isOver) return;
    this.#stop();
    if (last) controller.enqueue(this.#encoder.encode(last));
    controller.close();
  }

  #stop() {
    if (this.#isOver) return;
    this.#isOver = true;
    clearTimeout(this.#timer);
    // It rejects when the body was aborted already, which would end the whole process.
    this.reader.cancel().catch(() => {});
    if (!this.told.isComplete) this.asked.cancel();
  }
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
