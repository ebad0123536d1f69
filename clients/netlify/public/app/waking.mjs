/** The line under the name: is the chosen voice there, or is it only waking up? */

import { boot } from "./chat.mjs";
import { part } from "./parts.mjs";
import { doing } from "./words.mjs";

const LOOK_EVERY_MS = 5000;
// An audience behind one address shares what Netlify and the gateway allow an address.
const LOOK_WHEN_WELL_MS = 60_000;

/**
 * @typedef {object} Asked What is looked at: nothing while a conversation is shown.
 * @property {string} model
 * @property {{name: string}} voice
 * @property {ReturnType<typeof import("./words.mjs").speaking>} say
 * @property {"en" | "fr"} language
 */

export class Waking {
  #lookAtMs = 0;

  /** @param {import("./api.mjs").Api} api @param {() => Asked | null} asked */
  constructor(api, asked) {
    this.api = api;
    this.asked = asked;
    setInterval(() => Date.now() >= this.#lookAtMs && this.look(), LOOK_EVERY_MS);
  }

  async look() {
    const asked = this.asked();
    if (document.hidden || !asked) return;
    this.#lookAtMs = Date.now() + LOOK_WHEN_WELL_MS;
    const rungs = (await this.api.ready())[asked.model] ?? [];
    const now = this.asked(); // in what language, too
    if (now?.model !== asked.model) return;
    // Gateways of before only said who is first.
    const own = rungs.some(({ degraded }) => degraded !== undefined) ? rungs.filter(({ degraded }) => !degraded) : rungs.slice(0, 1);
    const state = part("state", HTMLElement);
    state.hidden = !own.length || own.some(({ ready }) => ready);
    if (state.hidden) return;
    this.#lookAtMs = 0;
    const whys = own.map(({ resting }) => resting ?? "");
    state.textContent = told(now, whys.find((why) => boot(why)) ?? "", rungs.some(({ ready }) => ready));
  }
}

/** @param {Asked} asked @param {string} why @param {boolean} hasOthers */
function told({ voice, say, language }, why, hasOthers) {
  const booting = boot(why);
  if (!booting) return [say("resting", voice), ...(hasOthers ? [say("instead")] : [])].join(" ");
  const left = booting.leftS ? ` ${say("left", { seconds: booting.leftS })}` : "";
  return `${say("booting", voice)} · ${say("phase", { phase: doing(language, booting.phase) })}${left}`;
}
