/**
 * A client of sive for browsers and Node >= 20: streamed chat, the models, cancelling. No dependencies.
 *
 *     for await (const text of streamChat({ url: "/v1", model: "spinoza", messages })) show(text);
 *
 * Any server that speaks OpenAI will do; one that is a sive also says who is speaking.
 *
 * @typedef {{role: "system" | "user" | "assistant", content: string}} Message
 *
 * @typedef {object} Route Who is speaking, as sive says it in an answer.
 * @property {string} backend
 * @property {boolean} degraded Another voice than the model's own.
 * @property {boolean} resumed The answer broke off elsewhere and goes on here.
 * @property {boolean} truncated The oldest turns did not fit and were left out.
 * @property {string[]} dropped Fields of the request that this backend does not know.
 *
 * @typedef {object} Finish
 * @property {string} reason OpenAI's `finish_reason`.
 * @property {string} requestId
 *
 * @typedef {object} Server
 * @property {string} [url] Up to and with `/v1`, which is the default: the page's own host.
 * @property {string} [key] Sent as `Authorization: Bearer`.
 * @property {AbortSignal} [signal]
 *
 * @typedef {object} Chat
 * @property {string} model
 * @property {Message[]} messages
 * @property {Record<string, unknown>} [options] More fields of the request: `max_tokens`, `temperature`, ...
 * @property {string} [chatUrl] Where a question is posted; default `url` + `/chat/completions`.
 * @property {number} [silenceS] Without a byte for so long the answer is given up: 45.
 * @property {(route: Route) => void} [onRoute] Before the first text, and before the first of another voice.
 * @property {(why: string) => void} [onWaiting] Nobody speaks yet, and why (empty when sive does not say).
 * @property {(finish: Finish) => void} [onFinish]
 */

const SILENCE_S = 45;
const CANCEL_AFTER_MS = 10_000;
const MOST_EMPTY = 5;

/** Why there is no answer, or no end of it. */
export class SiveError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, code?: string, type?: string, requestId?: string, retryAfterS?: number,
   *   cause?: unknown}} [about]
   */
  constructor(message, about = {}) {
    super(message, { cause: about.cause });
    this.name = "SiveError";
    /** The HTTP status; 0 when no answer came. */
    this.status = about.status ?? 0;
    /** OpenAI's or sive's; `network`, `silence`, `bad_response` and `stream_interrupted` are found here. */
    this.code = about.code ?? "";
    this.type = about.type ?? "";
    this.requestId = about.requestId ?? "";
    /** Seconds after which asking again may help, when the server said so. */
    this.retryAfterS = about.retryAfterS;
  }
}

/** Splits a stream of server-sent events, however its bytes are cut. */
export class EventParser {
  #decoder = new TextDecoder();
  #rest = "";
  /** @type {string[]} */
  #data = [];
  #hasData = false;

  /**
   * @param {Uint8Array} [bytes] None: the stream has ended, and what is left of it is taken as it is.
   * @returns {({data: string} | {comment: string})[]}
   */
  feed(bytes) {
    const isEnd = bytes === undefined;
    this.#rest += this.#decoder.decode(bytes, { stream: !isEnd });
    /** @type {({data: string} | {comment: string})[]} */
    const found = [];
    // A carriage return at the very end may be half of a line's end.
    const whole = isEnd ? /\r\n|\n|\r/g : /\r\n|\n|\r(?!$)/g;
    let from = 0;
    for (const end of this.#rest.matchAll(whole)) {
      this.#line(this.#rest.slice(from, end.index), found);
      from = end.index + end[0].length;
    }
    this.#rest = this.#rest.slice(from);
    if (isEnd) {
      this.#line(this.#rest, found);
      this.#line("", found);
      this.#rest = "";
    }
    return found;
  }

  /** @param {string} line @param {({data: string} | {comment: string})[]} found */
  #line(line, found) {
    if (line === "") {
      if (this.#hasData) found.push({ data: this.#data.join("\n") });
      this.#data = [];
      this.#hasData = false;
    } else if (line.startsWith(":")) {
      found.push({ comment: line.slice(1).trim() });
    } else if (line === "data" || line.startsWith("data:")) {
      this.#hasData = true;
      this.#data.push(line.slice(5).replace(/^ /, ""));
    }
  }
}

/**
 * Ask, and yield the answer as it comes. Leaving the loop or aborting `signal` also tells the server to stop,
 * since proxies hide from it that somebody left.
 *
 * An answer that a function's time limit ends (`"sive": {"continue": true}`) is asked to go on and goes on.
 *
 * @param {Server & Chat} chat
 * @returns {AsyncGenerator<string, void, void>}
 * @throws {SiveError} The answer was refused, or broke off; an `AbortError` when `signal` was aborted.
 */
export async function* streamChat(chat) {
  let said = "";
  let options = chat.options;
  for (let empty = 0; empty < MOST_EMPTY; ) {
    const request = new Answer({ ...chat, options }, said);
    const before = said.length;
    for await (const text of request.deltas()) {
      said += text;
      yield text;
    }
    // Once something was said, a round that adds nothing was the last: the answer does not go on.
    if (!request.goesOn || (before > 0 && said.length === before)) return chat.onFinish?.({ reason: request.reason, requestId: request.id });
    if (request.tokensLeft) options = limited(options, request.tokensLeft);
    if (!said) empty += 1;
  }
  throw new SiveError(`the server asked ${MOST_EMPTY} times to go on, and said nothing`, { code: "silence" });
}

/** The new name wins over the old one in a request that has both. @param {Chat["options"]} options @param {number} tokens */
function limited(options, tokens) {
  const name = options?.max_completion_tokens == null ? "max_tokens" : "max_completion_tokens";
  return { ...options, [name]: tokens };
}

/** One request and its answer. */
class Answer {
  reason = "";
  goesOn = false;
  /** Of `max_tokens`, when this answer goes on. */
  tokensLeft = 0;
  #isOver = false;
  #route = "";

  /** @param {Server & Chat} chat @param {string} said What the answer begins with. */
  constructor(chat, said) {
    this.id = newId();
    this.chat = chat;
    this.said = said;
  }

  async *deltas() {
    const silence = new AbortController();
    const watch = new Watch(silence, (this.chat.silenceS ?? SILENCE_S) * 1000);
    try {
      const response = await this.#open(silence.signal, watch);
      const stream = response.body;
      if (!stream) throw this.#error("the answer has no body", { code: "bad_response" });
      if (isJson(response)) yield* this.#whole(await response.json());
      else yield* this.#events(stream, watch);
    } catch (error) {
      this.chat.signal?.throwIfAborted();
      if (watch.isLate) throw this.#error("the server fell silent", { code: "silence", cause: error });
      if (error instanceof SiveError) throw error;
      const code = this.#hasBegun ? "stream_interrupted" : "network";
      throw this.#error(this.#hasBegun ? "the answer broke off" : "the server cannot be reached", {
        code,
        cause: error,
      });
    } finally {
      watch.stop();
      // The server may know nothing of this request yet, or never have heard of it: that is no news.
      if (!this.#isOver) cancel({ ...this.chat, requestId: this.id, signal: undefined }).catch(() => {});
    }
  }

  #hasBegun = false;

  /** @param {AbortSignal} silence @param {Watch} watch */
  async #open(silence, watch) {
    const { url = "/v1", chatUrl = `${trimmed(url)}/chat/completions`, key, model, messages, options } = this.chat;
    const signal = this.chat.signal ? AbortSignal.any([this.chat.signal, silence]) : silence;
    const soFar = this.said ? [{ role: "assistant", content: this.said }] : [];
    const goOn = this.said ? { continue_final_message: true, add_generation_prompt: false } : {};
    const response = await fetch(chatUrl, {
      method: "POST",
      headers: { "content-type": "application/json", "x-request-id": this.id, ...authorization(key) },
      body: JSON.stringify({ ...options, ...goOn, model, messages: [...messages, ...soFar], stream: true }),
      signal,
    });
    watch.look();
    this.id = response.headers.get("x-request-id") ?? this.id;
    if (!response.ok) {
      this.#isOver = true;
      throw await refusal(response, this.id);
    }
    if (!isJson(response) && !type(response).startsWith("text/event-stream")) {
      throw this.#error(`the server answered with ${type(response) || "something"} instead of a stream`, {
        status: response.status,
        code: "bad_response",
      });
    }
    return response;
  }

  /** @param {ReadableStream<Uint8Array>} stream @param {Watch} watch */
  async *#events(stream, watch) {
    const parser = new EventParser();
    const reader = stream.getReader();
    try {
      for (let isEnd = false; !isEnd; ) {
        const { done, value } = await this.#read(reader);
        watch.look();
        isEnd = done;
        for (const event of parser.feed(value)) {
          if ("comment" in event) this.#comment(event.comment);
          else if (event.data === "[DONE]") isEnd = true;
          else yield* this.#whole(parsed(event.data));
        }
      }
    } finally {
      // It rejects when the body has failed already, and then nobody would hear of it but the process.
      reader.cancel().catch(() => {});
    }
    if (!this.reason) {
      throw this.#error("the answer broke off", { code: "stream_interrupted" });
    }
    this.#isOver = true;
  }

  /** Once it is told why the answer ended all of it is there, however the connection ends. @param {ReadableStreamDefaultReader<Uint8Array>} reader */
  async #read(reader) {
    try {
      return await reader.read();
    } catch (error) {
      if (!this.reason || this.chat.signal?.aborted) throw error;
      return { done: true, value: undefined };
    }
  }

  /** @param {any} chunk Of a stream, or an answer in one piece; what cannot be read is passed over. */
  *#whole(chunk) {
    if (typeof chunk !== "object" || chunk === null) return;
    if (chunk.error) {
      this.#isOver = true;
      throw said(chunk.error, { status: 200, requestId: this.id });
    }
    const choice = chunk.choices?.[0];
    if (chunk.sive) this.#routed(chunk.sive);
    const text = choice?.delta?.content ?? choice?.message?.content;
    if (typeof text === "string" && text) {
      this.#hasBegun = true;
      yield text;
    }
    if (choice?.finish_reason) {
      this.reason = choice.finish_reason;
      this.goesOn = chunk.sive?.continue === true;
      this.tokensLeft = Number(chunk.sive?.max_tokens) || 0;
      this.#isOver = true;
    }
  }

  /** @param {Route & {continue?: boolean, max_tokens?: number}} told */
  #routed({ continue: _, max_tokens: __, ...route }) {
    if (!route.backend) return;
    const seen = JSON.stringify(route);
    if (seen !== this.#route) this.chat.onRoute?.(route);
    this.#route = seen;
  }

  /** @param {string} comment */
  #comment(comment) {
    const waiting = /^waiting(?:;\s*(.*))?$/.exec(comment);
    if (waiting) this.chat.onWaiting?.(waiting[1] ?? "");
  }

  /** @param {string} message @param {ConstructorParameters<typeof SiveError>[1]} about */
  #error(message, about) {
    return new SiveError(message, { requestId: this.id, ...about });
  }
}

/**
 * The models that are served, as `/v1/models` lists them.
 *
 * @param {Server} [server]
 * @returns {Promise<{id: string, parent?: string, weights?: string, line?: string, questions?: string[]}[]>}
 * @throws {SiveError}
 */
export async function models({ url = "/v1", key, signal } = {}) {
  const response = await answered(`${trimmed(url)}/models`, { headers: authorization(key), signal });
  if (!response.ok) throw await refusal(response, "");
  if (!isJson(response)) {
    throw new SiveError(`${trimmed(url)}/models is no list of models`, { status: response.status, code: "bad_response" });
  }
  return (await response.json()).data;
}

/**
 * End a request that is being answered; false when there was none.
 *
 * @param {Server & {requestId: string}} request
 * @returns {Promise<boolean>}
 * @throws {SiveError} The server cannot be reached.
 */
export async function cancel({ url = "/v1", key, signal, requestId }) {
  const response = await answered(`${trimmed(url)}/requests/${encodeURIComponent(requestId)}/cancel`, {
    method: "POST",
    headers: authorization(key),
    keepalive: true, // it outlives the page that is being closed
    signal: signal ?? AbortSignal.timeout(CANCEL_AFTER_MS),
  });
  await response.body?.cancel();
  return response.ok;
}

/** @param {string} url @param {RequestInit} init */
async function answered(url, init) {
  try {
    return await fetch(url, init);
  } catch (error) {
    init.signal?.throwIfAborted();
    throw new SiveError("the server cannot be reached", { code: "network", cause: error });
  }
}

/** @param {Response} response @param {string} requestId */
async function refusal(response, requestId) {
  const told = await response.text().catch(() => "");
  const wait = Number(response.headers.get("retry-after") || NaN);
  const about = { status: response.status, requestId, retryAfterS: Number.isFinite(wait) ? wait : undefined };
  const error = parsed(told)?.error;
  return said(error ?? `the server answered ${response.status}`, about);
}

/** @param {any} error OpenAI's object, or only a text @param {{status: number, requestId: string}} about */
function said(error, about) {
  if (typeof error === "string") return new SiveError(error, about);
  const { message, code, type } = error;
  return new SiveError(String(message ?? "the server says no more than that it failed"), {
    ...about,
    code: code == null ? "" : String(code),
    type: type == null ? "" : String(type),
  });
}

/** Gives up when nobody looked for too long. */
class Watch {
  isLate = false;
  #seen = Date.now();

  /** @param {AbortController} controller @param {number} limitMs */
  constructor(controller, limitMs) {
    this.timer = setInterval(() => {
      if (Date.now() - this.#seen < limitMs) return;
      this.isLate = true;
      this.stop();
      controller.abort();
    }, Math.min(limitMs, 1000));
  }

  look() {
    this.#seen = Date.now();
  }

  stop() {
    clearInterval(this.timer);
  }
}

/** A request id of our own, so that a request can be cancelled before anything of its answer has come. */
function newId() {
  // crypto.randomUUID is only there over https and on localhost.
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return `page-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** @param {string} text @returns {any} */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** @param {Response} response */
const type = (response) => response.headers.get("content-type") ?? "";

/** @param {Response} response */
const isJson = (response) => type(response).startsWith("application/json");

/** @param {string} url */
const trimmed = (url) => url.replace(/\/+$/, "");

/** @param {string | undefined} key @returns {Record<string, string>} */
const authorization = (key) => (key ? { authorization: `Bearer ${key}` } : {});
