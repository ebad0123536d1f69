/** What the page has to say above the question: what went wrong, and what can be done about it. */

import { part } from "./parts.mjs";
import { element } from "./render.mjs";
import { SiveError } from "./sive.mjs";

/** @typedef {ReturnType<typeof import("./words.mjs").speaking>} Say */
/** @typedef {[label: string, onclick: () => void]} Deed */

const OWN = /** @type {const} */ (["network", "silence", "stream_interrupted", "bad_response"]);

/** @param {unknown} error @param {Say} say What it says to the reader. */
export function why(error, say) {
  if (!(error instanceof SiveError)) return String(error);
  const own = OWN.find((code) => code === error.code);
  const what = own && error.status < 300 ? say(own, { message: error.message }) : error.message;
  return error.retryAfterS ? `${what} ${say("in", { seconds: error.retryAfterS })}` : what;
}

export class Banner {
  root = part("banner", HTMLElement);

  /** @param {string} text @param {Deed[]} deeds */
  tell(text, deeds) {
    this.root.classList.remove("bad");
    this.root.replaceChildren(element("p", {}, text), ...deeds.map(([label, onclick]) => button(label, onclick)));
    this.root.hidden = false;
  }

  /** @param {string} text @param {Say} say @param {() => void} [again] Tries it once more. */
  warn(text, say, again) {
    const dismiss = /** @type {Deed} */ ([say("dismiss"), () => this.hush()]);
    const retry = () => {
      this.hush();
      again?.();
    };
    this.tell(text, again ? [[say("again"), retry], dismiss] : [dismiss]);
    this.root.classList.add("bad");
  }

  hush() {
    this.root.hidden = true;
    this.root.replaceChildren();
  }
}

/** @param {string} label @param {() => void} onclick */
const button = (label, onclick) => element("button", { type: "button", className: "text", onclick }, label);
