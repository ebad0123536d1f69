/** The side of the page: who can be asked, and what was asked before. */

import { drawing, part, portrait } from "./parts.mjs";
import { element } from "./render.mjs";

/**
 * @import {Voice} from "./voices.mjs"
 * @import {Conversation} from "./store.mjs"
 * @typedef {ReturnType<typeof import("./words.mjs").speaking>} Say
 * @typedef {{choose: (id: string) => void, open: (id: string) => void, remove: (id: string) => void}} Deeds
 */

const TITLE_CHARS = 60;

export class Rail {
  /** @param {Deeds} deeds */
  constructor(deeds) {
    this.deeds = deeds;
    this.root = part("rail", HTMLElement);
    this.menu = part("menu", HTMLButtonElement);
    this.picker = part("picker", HTMLFieldSetElement);
    this.list = part("conversations", HTMLUListElement);
    this.menu.addEventListener("click", () => this.toggle());
    document.addEventListener("click", ({ target }) => {
      if (this.isOpen && target instanceof Node && !this.root.contains(target) && !this.menu.contains(target)) this.toggle(false);
    });
  }

  get isOpen() {
    return this.menu.getAttribute("aria-expanded") === "true";
  }

  /** @param {boolean} [open] Only narrow screens hide it at all. */
  toggle(open = !this.isOpen) {
    this.menu.setAttribute("aria-expanded", String(open));
    this.root.classList.toggle("open", open);
    const checked = this.picker.querySelector("input:checked");
    if (open && checked instanceof HTMLElement) checked.focus();
  }

  /** @param {Voice[]} voices @param {string} chosen */
  showVoices(voices, chosen) {
    const legend = this.picker.firstElementChild;
    const options = voices.map((voice) => {
      const radio = element("input", { type: "radio", name: "voice", value: voice.id, checked: voice.id === chosen });
      radio.addEventListener("change", () => this.deeds.choose(voice.id));
      return element(
        "label",
        { className: "voice", "data-voice": voice.id },
        radio,
        portrait(voice),
        element("span", {}, element("strong", {}, voice.name), element("small", {}, voice.line)),
      );
    });
    this.picker.replaceChildren(...(legend ? [legend] : []), ...options);
  }

  /** @param {Conversation[]} conversations @param {string} current @param {Say} say */
  showConversations(conversations, current, say) {
    part("none", HTMLElement).hidden = conversations.length > 0;
    part("keep", HTMLElement).hidden = conversations.length === 0;
    this.list.replaceChildren(
      ...conversations.map(({ id, model, turns }) => {
        const title = (turns[0]?.question ?? "").slice(0, TITLE_CHARS) || "…";
        const open = element(
          "button",
          { type: "button", className: "past", "data-voice": model, onclick: () => this.deeds.open(id) },
          element("i", { "aria-hidden": "true" }),
          element("span", { dir: "auto" }, title),
        );
        if (id === current) open.setAttribute("aria-current", "true");
        const remove = element(
          "button",
          { type: "button", className: "icon", "aria-label": say("remove", { title }), onclick: () => this.deeds.remove(id) },
          drawing("i-close"),
        );
        return element("li", {}, open, remove);
      }),
    );
  }
}
