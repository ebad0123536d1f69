/** Who can be asked: what the page knows of the models that a sive serves. */

/**
 * @typedef {object} Voice
 * @property {string} id The model.
 * @property {string} name
 * @property {string} portrait A drawing in index.html, or "" for a monogram.
 * @property {string} line One line of character.
 * @property {string[]} questions
 */

/** @typedef {{name: string, en: {line: string, questions: string[]}, fr: {line: string, questions: string[]}}} Known */

/** @type {Record<string, Known>} */
const KNOWN = {
  spinoza: {
    name: "Spinoza",
    en: {
      line: "Grinder of lenses. God, or Nature.",
      questions: ["What is joy?", "Do we have free will?", "Does a free man fear death?"],
    },
    fr: {
      line: "Polisseur de lentilles. Dieu, c’est-à-dire la Nature.",
      questions: ["Qu’est-ce que la joie ?", "Avons-nous le libre arbitre ?", "Pourquoi ne pas craindre la mort ?"],
    },
  },
  bergson: {
    name: "Bergson",
    en: {
      line: "Time is not a line: it lasts, and it swells.",
      questions: ["What is duration?", "Why do we laugh?", "Where is a memory kept?"],
    },
    fr: {
      line: "Le temps n’est pas une ligne : il dure, et il gonfle.",
      questions: ["Qu’est-ce que la durée ?", "Pourquoi rions-nous ?", "Qu’est-ce que la mémoire ?"],
    },
  },
  kant: {
    name: "Kant",
    en: {
      line: "The starry sky above, the moral law within.",
      questions: ["What is duty?", "May I ever tell a lie?", "What is Enlightenment?"],
    },
    fr: {
      line: "Le ciel étoilé au-dessus, la loi morale au-dedans.",
      questions: ["Qu’est-ce que le devoir ?", "Ai-je jamais le droit de mentir ?", "Qu’est-ce que les Lumières ?"],
    },
  },
  local: {
    name: "Local",
    en: {
      line: "The small model of this very machine.",
      questions: ["Who are you?", "What is freedom?"],
    },
    fr: {
      line: "Le petit modèle de cette machine même.",
      questions: ["Qui es-tu ?", "Qu’est-ce que la liberté ?"],
    },
  },
};

/** @typedef {{id: string, parent?: string, line?: string, questions?: string[]}} Model As a sive lists it. */

/** What a sive says of a model itself comes before what is known here. @param {Model} model @param {"en" | "fr"} language @returns {Voice} */
export function voice(model, language) {
  const short = model.id.split("/").at(-1) || model.id;
  const own = Array.isArray(model.questions) ? model.questions.map(String) : null;
  const known = Object.hasOwn(KNOWN, model.id) ? KNOWN[model.id] : null;
  return {
    id: model.id,
    name: known?.name ?? short.charAt(0).toUpperCase() + short.slice(1),
    portrait: known ? model.id : "",
    line: model.line ?? known?.[language].line ?? model.parent ?? "",
    questions: own ?? (known ?? KNOWN.local)[language].questions,
  };
}
