/** The page: one conversation at a time, and what its buttons do. */

import { Api, place } from "./api.mjs";
import { Banner, why } from "./banner.mjs";
import { after, asked, messages } from "./chat.mjs";
import { Composer } from "./composer.mjs";
import { askKey } from "./door.mjs";
import { Exchange } from "./exchange.mjs";
import { Follow } from "./follow.mjs";
import { otherTheme, translate, wear } from "./looks.mjs";
import { part, portrait } from "./parts.mjs";
import { Rail } from "./rail.mjs";
import { element } from "./render.mjs";
import { SiveError } from "./sive.mjs";
import { PREFIX, storage, Store } from "./store.mjs";
import { voice } from "./voices.mjs";
import { Waking } from "./waking.mjs";
import { language, speaking } from "./words.mjs";

/**
 * @import {Happening, Turn} from "./chat.mjs"
 * @import {Conversation} from "./store.mjs"
 */

const KEEP_EVERY_MS = 2000;

class Page {
  /** @type {import("./voices.mjs").Model[]} */
  models = [];
  /** @type {Conversation} */
  conversation = fresh("");
  /** @type {Exchange[]} */
  exchanges = [];
  /** @type {AbortController | null} */
  running = null;
  /** @type {Promise<void> | null} */
  meeting = null;
  /** A question waits until it is known who can be asked. */
  isWaiting = false;
  keptMs = 0;
  frame = 0;

  constructor() {
    this.kept = storage(() => localStorage);
    this.store = new Store(this.kept);
    this.api = new Api(place(meta), storage(() => sessionStorage));
    this.language = language(this.kept.getItem("sive/language"), navigator.languages);
    this.say = speaking(this.language);
    this.log = part("log", HTMLElement);
    this.composer = new Composer(() => this.send());
    this.banner = new Banner();
    this.follow = new Follow(this.log, part("latest", HTMLButtonElement));
    this.rail = new Rail({
      choose: (id) => this.begin(id),
      open: (id) => this.open(id),
      remove: (id) => this.remove(id),
    });
    this.waking = new Waking(this.api, () => this.waitedFor);
    this.listen();
  }

  async start() {
    wear(this.kept.getItem("sive/theme"));
    this.translate();
    this.composer.focus();
    await this.meet();
    if (!this.models.length) return this.draw(); // beginning a conversation would hush why there is nobody
    const last = this.store.get(this.kept.getItem("sive/current") ?? "");
    if (last && this.models.some(({ id }) => id === last.model)) this.show(last);
    else this.begin(this.kept.getItem("sive/model") ?? "");
  }

  listen() {
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing) return;
      if (this.rail.isOpen) this.rail.toggle(false);
      else if (this.running) this.stop();
      else this.rewriteNoMore();
    });
    part("stop", HTMLButtonElement).addEventListener("click", () => this.stop());
    part("fresh", HTMLButtonElement).addEventListener("click", () => this.begin(this.conversation.model));
    part("language", HTMLButtonElement).addEventListener("click", () => this.turnLanguage());
    part("theme", HTMLButtonElement).addEventListener("click", () => this.turnTheme());
    part("save", HTMLButtonElement).addEventListener("click", () => this.save());
    part("clear", HTMLButtonElement).addEventListener("click", () => this.clear());
    addEventListener("pagehide", () => {
      this.stop();
      this.keep();
    });
    addEventListener("storage", (event) => this.otherTab(event.key));
  }

  /** Learn who can be asked: once, however many want to know it at a time. */
  meet() {
    this.meeting ??= this.learn().finally(() => (this.meeting = null));
    return this.meeting;
  }

  /** A key is asked for until one opens. */
  async learn() {
    for (let hasAsked = false; ; hasAsked = true) {
      try {
        this.models = await this.api.models();
        if (!this.models.length) this.warn(this.say("noModels"));
        return;
      } catch (error) {
        if (!this.isRefusedKey(error)) {
          this.warn(why(error, this.say), () => this.start());
          return;
        }
        await this.askKey(hasAsked);
      }
    }
  }

  /**
   * Whoever could not be met when the page began is met now, before the first question.
   *
   * @param {string} question Goes back to where it was typed when nobody can be asked.
   */
  async hasMet(question) {
    if (this.models.length) return true;
    this.banner.hush();
    this.isWaiting = true;
    await this.meet();
    this.isWaiting = false;
    if (!this.models.length) {
      this.composer.giveBack(question);
      return false;
    }
    this.conversation.model ||= this.known(this.kept.getItem("sive/model"))?.id ?? "";
    this.remember("model", this.conversation.model);
    this.draw();
    return true;
  }

  /** @param {boolean} isWrong */
  async askKey(isWrong) {
    this.api.use(await askKey(isWrong));
    this.composer.field.focus();
  }

  /** @param {unknown} error */
  isRefusedKey(error) {
    return error instanceof SiveError && error.status === 401 && this.api.takesKeys;
  }

  get voice() {
    const model = this.models.find(({ id }) => id === this.conversation.model) ?? { id: this.conversation.model || "sive" };
    return voice(model, this.language);
  }

  /** @param {string} model Begin a conversation with it. */
  begin(model) {
    this.show(fresh(this.known(model)?.id ?? ""));
    this.rail.toggle(false);
    this.composer.focus();
  }

  /** @param {string | null} model Where it is not served, the first that is. */
  known(model) {
    return this.models.find(({ id }) => id === model) ?? this.models[0];
  }

  /** @param {string} id */
  open(id) {
    const found = this.store.get(id);
    if (found) this.show(found);
    this.rail.toggle(false);
  }

  /** @param {Conversation} conversation */
  show(conversation) {
    this.stop();
    this.rewriteNoMore();
    this.banner.hush();
    this.conversation = conversation;
    this.remember("current", conversation.id);
    if (conversation.model) this.remember("model", conversation.model);
    this.draw();
    this.follow.toEnd();
    this.waking.look();
  }

  /** Draw everything anew: another conversation, or another language. */
  draw() {
    const { say, voice: who } = this;
    document.title = say("title", who);
    document.body.dataset.voice = who.id;
    part("who", HTMLElement).textContent = who.name;
    part("portrait", HTMLElement).replaceChildren(...portrait(who).childNodes);
    part("name", HTMLElement).textContent = who.name;
    part("line", HTMLElement).textContent = who.line;
    part("questions", HTMLUListElement).replaceChildren(
      ...who.questions.map((text) =>
        element("li", {}, element("button", { type: "button", onclick: () => this.ask(text) }, text)),
      ),
    );
    this.composer.field.placeholder = say("ask", who);
    this.log.setAttribute("aria-label", say("log", who));
    const voices = this.models.map((model) => voice(model, this.language));
    this.rail.showVoices(voices, this.conversation.model);
    this.exchanges = this.conversation.turns.map((turn) => this.exchange(turn));
    part("turns", HTMLElement).replaceChildren(...this.exchanges.map(({ root }) => root));
    this.refresh();
  }

  /** What depends on how many turns there are. */
  refresh() {
    const { exchanges } = this;
    exchanges.forEach((one, at) => {
      one.isLast = at === exchanges.length - 1;
      one.show(one.turn);
    });
    part("welcome", HTMLElement).hidden = exchanges.length > 0;
    this.rail.showConversations(this.store.all(), this.conversation.id, this.say);
    part("send", HTMLButtonElement).hidden = this.running !== null;
    part("stop", HTMLButtonElement).hidden = this.running === null;
    this.composer.grow();
  }

  /** @param {Turn} turn */
  exchange(turn) {
    const { say, language, voice } = this;
    return new Exchange(turn, { say, language, voice }, { retry: () => this.retry(), edit: () => this.rewrite() });
  }

  send() {
    if (!this.composer.text || this.isBusy) return;
    const isAnother = this.composer.isRewriting;
    if (isAnother) this.leaveRewriting();
    const text = this.composer.take();
    if (isAnother) this.dropLast();
    this.ask(text);
  }

  get isBusy() {
    return this.running !== null || this.isWaiting;
  }

  retry() {
    if (this.isBusy) return;
    const last = this.dropLast();
    if (last) this.ask(last.question);
  }

  dropLast() {
    this.exchanges.pop()?.root.remove();
    return this.conversation.turns.pop();
  }

  /** @param {string} question */
  async ask(question) {
    if (this.isBusy || !(await this.hasMet(question))) return;
    this.banner.hush();
    const { conversation } = this;
    const said = messages(conversation.turns, question);
    let turn = asked(question, Date.now());
    const at = conversation.turns.push(turn) - 1;
    const exchange = this.exchange(turn);
    this.exchanges.push(exchange);
    part("turns", HTMLElement).append(exchange.root);
    const controller = (this.running = new AbortController());
    this.keep();
    this.refresh();
    this.follow.toEnd();
    const happened = (/** @type {Happening} */ happening) => {
      if (conversation.turns[at] !== turn) return; // it was dropped, and another may stand in its place
      conversation.turns[at] = turn = after(turn, happening, Date.now());
      if (conversation === this.conversation) this.paint(at);
    };
    try {
      const stream = this.api.chat({
        model: conversation.model,
        messages: said,
        signal: controller.signal,
        onRoute: (route) => happened({ kind: "route", route }),
        onWaiting: (why) => happened({ kind: "waiting", why }),
        onFinish: ({ reason }) => happened({ kind: "finish", reason }),
      });
      for await (const text of stream) happened({ kind: "text", text });
    } catch (error) {
      if (controller.signal.aborted) happened({ kind: "stop" });
      else happened({ kind: "fail", failure: failure(error) });
      if (!controller.signal.aborted) this.failed(turn, error);
    }
    if (this.running === controller) this.running = null;
    this.ended(conversation, at);
  }

  /** @param {Turn} turn @param {unknown} known */
  failed({ question, text }, known) {
    if (text || this.composer.text) {
      this.warn(why(known, this.say), () => this.retry());
      return;
    }
    // Nothing was said: the question goes back to where it was typed.
    this.dropLast();
    this.composer.giveBack(question);
    const again = async () => {
      if (this.isRefusedKey(known)) await this.askKey(true);
      this.send();
    };
    this.warn(why(known, this.say), again);
    if (this.isRefusedKey(known)) again();
  }

  /** @param {Conversation} conversation @param {number} at */
  ended(conversation, at) {
    this.keep(conversation);
    if (conversation !== this.conversation) return;
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    const turn = conversation.turns.at(at);
    if (turn) this.exchanges[at]?.show(turn);
    this.refresh();
    this.follow.grown();
    if (turn?.status !== "done") return;
    // Told once it is whole: word by word it would be read out over and over.
    part("said", HTMLElement).textContent = `${this.say("answered", this.voice)} ${turn.text.slice(0, 2000)}`;
  }

  /** Draw an answer that grows, once a frame. @param {number} at */
  paint(at) {
    if (Date.now() - this.keptMs > KEEP_EVERY_MS) this.keep();
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      const turn = this.conversation.turns[at];
      if (turn) this.exchanges[at]?.show(turn);
      this.follow.grown();
    });
  }

  stop() {
    this.running?.abort();
    this.running = null;
  }

  /** Rewrite the last question. */
  rewrite() {
    const last = this.exchanges.at(-1);
    if (!last || this.composer.isRewriting) return;
    last.root.classList.add("edited");
    this.banner.tell(this.say("editing"), [[this.say("cancel"), () => this.rewriteNoMore()]]);
    this.composer.rewrite(last.turn.question);
  }

  rewriteNoMore() {
    if (!this.composer.isRewriting) return;
    this.leaveRewriting();
    this.composer.rewriteNoMore();
  }

  leaveRewriting() {
    this.exchanges.at(-1)?.root.classList.remove("edited");
    this.banner.hush();
  }

  /** @param {string} text @param {() => void} [again] */
  warn(text, again) {
    this.banner.warn(text, this.say, again);
  }

  /** @param {Conversation} [conversation] */
  keep(conversation = this.conversation) {
    this.keptMs = Date.now();
    if (!conversation.turns.length) {
      this.store.remove(conversation.id);
      return;
    }
    conversation.changedMs = this.keptMs;
    if (!this.store.put(conversation)) this.warn(this.say("full"));
  }

  /** @param {string} what @param {string} value */
  remember(what, value) {
    try {
      this.kept.setItem(`sive/${what}`, value);
    } catch {
      // No room: the next visit begins as the first did.
    }
  }

  /** @param {string | null} key What another tab changed; null when it cleared everything. */
  otherTab(key) {
    if (key !== null && !key.startsWith(PREFIX)) return;
    const mine = this.store.get(this.conversation.id);
    if (mine && !this.running && key === PREFIX + mine.id) {
      this.conversation = mine;
      this.draw();
    }
    this.rail.showConversations(this.store.all(), this.conversation.id, this.say);
  }

  /** @param {string} id */
  remove(id) {
    this.store.remove(id);
    if (id === this.conversation.id) this.leave();
    else this.refresh();
  }

  /** Begin another conversation, and forget this one even while it is being answered. */
  leave() {
    this.conversation.turns = [];
    this.begin(this.conversation.model);
  }

  clear() {
    if (!confirm(this.say("clearSure"))) return;
    for (const { id } of this.store.all()) this.store.remove(id);
    this.leave();
  }

  save() {
    const url = URL.createObjectURL(new Blob([this.store.exported()], { type: "application/json" }));
    element("a", { href: url, download: "sive-conversations.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  /** Whose waking up is shown: the chosen voice's, until it is asked something. */
  get waitedFor() {
    const { conversation, exchanges, voice, say, language } = this;
    return exchanges.length || !conversation.model ? null : { model: conversation.model, voice, say, language };
  }

  turnLanguage() {
    this.language = this.language === "en" ? "fr" : "en";
    this.remember("language", this.language);
    this.say = speaking(this.language);
    this.translate();
    this.draw();
    this.waking.look();
  }

  translate() {
    translate(this.language, this.say);
    part("language", HTMLElement).lang = this.language === "en" ? "fr" : "en";
  }

  turnTheme() {
    const theme = otherTheme();
    this.remember("theme", theme);
    wear(theme);
  }
}

/** @param {string} model @returns {Conversation} */
function fresh(model) {
  const id = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, model, changedMs: Date.now(), turns: [] };
}

/** @param {unknown} error */
function failure(error) {
  if (!(error instanceof SiveError)) return { message: String(error), code: "page", status: 0 };
  const { message, code, status, retryAfterS } = error;
  return { message, code, status, retryAfterS };
}

/** @param {string} name */
const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.getAttribute("content") ?? "";

new Page().start();
