/** Where a question is typed, and where the last one is rewritten. */

import { part } from "./parts.mjs";

export class Composer {
  /** What was typed before the last question was put in its place; null when none is being rewritten. @type {string | null} */
  #draft = null;

  /** @param {() => void} send */
  constructor(send) {
    this.field = part("question", HTMLTextAreaElement);
    part("ask", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
    this.field.addEventListener("keydown", (event) => {
      // Enter that accepts what an input method offers is not ours; Safari only says so by the code.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      send();
    });
    this.field.addEventListener("input", () => this.grow());
  }

  get text() {
    return this.field.value.trim();
  }

  get isRewriting() {
    return this.#draft !== null;
  }

  /** The question that was typed; a rewritten one is no draft any more, and what was typed before it comes back. */
  take() {
    const { text } = this;
    this.field.value = this.#draft ?? "";
    this.#draft = null;
    this.grow();
    return text;
  }

  /** Put a question back that nobody answered; not over what was typed since. @param {string} question */
  giveBack(question) {
    if (!this.text) this.field.value = question;
    this.grow();
  }

  /** @param {string} question */
  rewrite(question) {
    this.#draft = this.field.value;
    this.field.value = question;
    this.field.focus();
    this.field.setSelectionRange(question.length, question.length);
    this.grow();
  }

  /** What was typed before comes back. */
  rewriteNoMore() {
    if (this.isRewriting) this.take();
  }

  /** Not where that would bring up a keyboard nobody asked for. */
  focus() {
    if (!matchMedia("(hover: none)").matches) this.field.focus();
  }

  grow() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }
}
