/** How the page looks: light or dark, and in which language. */

/**
 * @import {Language, Word} from "./words.mjs"
 * @typedef {ReturnType<typeof import("./words.mjs").speaking>} Say
 */

const THEMES = ["light", "dark"];

/** @param {string | null} theme Any other: as the system has it. */
export function wear(theme) {
  if (theme && THEMES.includes(theme)) document.documentElement.dataset.theme = theme;
}

/** The theme that is not worn now. */
export function otherTheme() {
  const now = document.documentElement.dataset.theme;
  const isDark = now ? now === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  return isDark ? "light" : "dark";
}

/** Say in this language what index.html says in English. @param {Language} language @param {Say} say */
export function translate(language, say) {
  document.documentElement.lang = language;
  for (const node of document.querySelectorAll("[data-word], [data-label]")) {
    if (!(node instanceof HTMLElement)) continue;
    const { word, label } = /** @type {{word?: Word, label?: Word}} */ (node.dataset);
    if (word) node.textContent = say(word);
    if (!label) continue;
    node.setAttribute("aria-label", say(label));
    if (node instanceof HTMLButtonElement) node.title = say(label);
  }
}
