/** Small pieces that the page is made of: drawings, portraits, buttons. */

import { element } from "./render.mjs";

const SVG = "http://www.w3.org/2000/svg";

/** @param {string} id A drawing in index.html. */
export function drawing(id) {
  const made = document.createElementNS(SVG, "svg");
  made.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#${id}`);
  made.append(use);
  return made;
}

/** @param {import("./voices.mjs").Voice} voice */
export function portrait(voice) {
  return element(
    "span",
    { className: "portrait", "aria-hidden": "true" },
    voice.portrait ? drawing(voice.portrait) : voice.name.charAt(0),
  );
}

/** @param {string} icon @param {string} label @param {() => void} onclick @param {Record<string, unknown>} [given] */
export function action(icon, label, onclick, given = {}) {
  return element("button", { type: "button", className: "action", onclick, ...given }, drawing(icon), element("span", {}, label));
}

/**
 * @template {HTMLElement} T
 * @param {string} id @param {new () => T} kind
 * @returns {T}
 */
export function part(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`index.html has no #${id}`);
  return found;
}
