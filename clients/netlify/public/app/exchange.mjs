/** One question and its answer on the page: how far it is, who speaks, what can be done with it. */

import { boot, isDegraded, isOpen, seams } from "./chat.mjs";
import { Document, marked } from "./markdown.mjs";
import { action, drawing, portrait } from "./parts.mjs";
import { element, Rendering } from "./render.mjs";
import { doing, seconds } from "./words.mjs";

/**
 * @import {Turn} from "./chat.mjs"
 * @import {Voice} from "./voices.mjs"
 * @typedef {{say: ReturnType<typeof import("./words.mjs").speaking>, language: "en" | "fr", voice: Voice}} Setting
 * @typedef {{retry: () => void, edit: () => void}} Deeds
 */

const COPIED_MS = 1600;

export class Exchange {
  #document = new Document();
  #shown = "";
  #was = "";

  /** @param {Turn} turn @param {Setting} setting @param {Deeds} deeds */
  constructor(turn, setting, deeds) {
    this.setting = setting;
    this.deeds = deeds;
    const { say, voice } = setting;
    this.turn = turn;
    this.notice = element("div", { className: "notice" });
    this.text = element("div", { className: "text" });
    this.waiting = element("div", { className: "waiting" });
    this.foot = element("footer");
    this.answer = element(
      "article",
      { className: "answer", "aria-label": voice.name },
      portrait(voice),
      element("div", { className: "body" }, this.notice, this.text, this.waiting, this.foot),
    );
    this.editing = action("i-edit", say("edit"), () => deeds.edit());
    const question = element("p", { dir: "auto" }, turn.question);
    this.root = element(
      "section",
      { className: "turn" },
      element("div", { className: "question" }, element("span", { className: "hidden" }, `${say("you")}: `), question, this.editing),
      this.answer,
    );
    this.rendering = new Rendering(this.text, "");
    this.isLast = true;
    this.show(turn);
  }

  /** @param {Turn} turn */
  show(turn) {
    this.turn = turn;
    const { say } = this.setting;
    this.rendering.seam = say("resumed", { backend: turn.voices.at(-1)?.backend });
    const text = marked(turn.text, seams(turn));
    if (text !== this.#shown) {
      const { blocks, settled } = this.#document.append(text.slice(this.#shown.length));
      this.#shown = text;
      this.rendering.show(blocks, settled);
    }
    const state = JSON.stringify([turn.status, turn.voices, turn.waiting, turn.text === "", this.isLast]);
    if (state === this.#was) return;
    this.#was = state;
    const open = isOpen(turn);
    this.root.dataset.status = turn.status;
    this.root.classList.toggle("degraded", isDegraded(turn));
    this.answer.setAttribute("aria-busy", String(open));
    this.editing.hidden = open || !this.isLast;
    this.notice.replaceChildren(...this.#notices());
    this.waiting.replaceChildren(...(open && !turn.text ? this.#waits() : []));
    this.foot.replaceChildren(...this.#footer());
  }

  /** @returns {Node[]} */
  #notices() {
    const { say, voice } = this.setting;
    const other = this.turn.voices.find(({ degraded }) => degraded);
    if (!other) return [];
    const detail = say(other.at > 0 ? "degradedFrom" : "degradedBy", { backend: other.backend });
    return [
      element(
        "p",
        { className: "not-own" },
        drawing("i-warn"),
        element("span", {}, element("strong", {}, say("degraded", voice)), " ", detail),
      ),
    ];
  }

  /** @returns {Node[]} */
  #waits() {
    const { say, voice, language } = this.setting;
    const booting = boot(this.turn.waiting);
    if (!booting) {
      return [element("p", { className: "thinking" }, say("thinking", voice), element("span", { className: "dots", "aria-hidden": "true" }))];
    }
    const { forS, leftS } = booting;
    const phase = doing(language, booting.phase);
    const left = leftS === null ? "" : ` ${say("left", { seconds: leftS })}`;
    return [
      element(
        "div",
        { className: "booting" },
        element("p", {}, element("strong", {}, say("booting", voice))),
        element("progress", leftS === null ? { "aria-label": say("booting", voice) } : { "aria-label": say("booting", voice), max: forS + leftS || 1, value: forS }),
        element("p", { className: "quiet" }, say("phase", { phase }) + left),
      ),
    ];
  }

  /** @returns {Node[]} */
  #footer() {
    const { say } = this.setting;
    const { turn } = this;
    if (isOpen(turn)) return turn.text ? [this.#badge()] : [];
    const parts = [this.#badge()];
    if (turn.failure) parts.push(element("span", { className: "failure" }, drawing("i-warn"), say(turn.text ? "broken" : "failed")));
    if (turn.status === "stopped") parts.push(element("span", {}, say("stopped")));
    if (turn.reason === "length") parts.push(element("span", {}, say("length")));
    if (turn.voices.some(({ truncated }) => truncated)) parts.push(element("span", {}, say("truncated")));
    const deeds = element("span", { className: "deeds" });
    if (turn.text) deeds.append(this.#copy());
    if (this.isLast) deeds.append(action("i-retry", say("retry"), () => this.deeds.retry()));
    return [...parts, deeds];
  }

  #badge() {
    const { say, language } = this.setting;
    const names = this.turn.voices.map(({ backend }) => backend).filter((name, at, all) => name !== all[at - 1]);
    const took = this.turn.tookMs === null ? [] : [say("seconds", { seconds: seconds(language, this.turn.tookMs) })];
    const text = [names.join(" → "), ...took].filter(Boolean).join(" · ");
    return element("span", { className: "badge" }, text);
  }

  #copy() {
    const { say } = this.setting;
    const button = action("i-copy", say("copy"), async () => {
      await navigator.clipboard.writeText(this.turn.text);
      const label = button.lastElementChild;
      if (!label) return;
      label.textContent = say("copied");
      setTimeout(() => (label.textContent = say("copy")), COPIED_MS);
    });
    return button;
  }
}
