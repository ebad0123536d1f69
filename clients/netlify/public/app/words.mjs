/** What the page says, in English and in French. `{name}` stands for what is given. */

/** @typedef {keyof typeof EN} Word */
/** @typedef {"en" | "fr"} Language */

const EN = {
  title: "{name} · sive",
  skip: "Skip to the question",
  menu: "Philosophers and conversations",
  close: "Close",
  philosophers: "Who answers",
  conversations: "Conversations",
  none: "Nothing yet. What you ask stays in this browser.",
  fresh: "New chat",
  language: "Français",
  theme: "Light or dark",
  save: "Export",
  clear: "Delete all",
  clearSure: "Delete all conversations kept in this browser?",
  remove: "Delete “{title}”",
  log: "Conversation with {name}",
  question: "Your question",
  ask: "Ask {name}…",
  send: "Send",
  stop: "Stop",
  hint: "Enter sends, Shift + Enter begins a new line, Esc stops.",
  latest: "Latest",
  copy: "Copy",
  copied: "Copied",
  retry: "Retry",
  edit: "Edit",
  editing: "You are rewriting your last question.",
  cancel: "Cancel",
  you: "You",
  thinking: "{name} is thinking",
  booting: "{name} is waking up",
  phase: "The engine {phase}.",
  left: "About {seconds} s left.",
  resting: "{name} is not reachable at the moment.",
  instead: "Whoever answers instead will say so.",
  seconds: "{seconds} s",
  degraded: "Not {name}’s own voice:",
  degradedBy: "{backend} answers instead.",
  degradedFrom: "{backend} carries on from the mark.",
  resumed: "Here the answer broke off, and {backend} carried it on",
  truncated: "The oldest turns did not fit and were left out.",
  length: "The answer reached its length limit.",
  stopped: "Stopped",
  answered: "{name} has answered.",
  broken: "The answer broke off",
  failed: "No answer",
  network: "The server cannot be reached. Your question is still here.",
  silence: "The server fell silent.",
  stream_interrupted: "The connection was lost in the middle of the answer.",
  bad_response: "What answered is no sive: {message}",
  again: "Try again",
  in: "It asks for {seconds} s of patience.",
  dismiss: "Dismiss",
  full: "This browser has no room left: the conversation is not kept. Export or delete older ones.",
  noModels: "There is nobody to ask.",
  keyTitle: "This sive asks for a key",
  keyWhy: "It is kept for this tab only, and sent to nobody else.",
  keyWrong: "That key does not open it.",
  key: "API key",
  keyUse: "Use it",
};

/** @type {Record<Word, string>} */
const FR = {
  title: "{name} · sive",
  skip: "Aller à la question",
  menu: "Philosophes et conversations",
  close: "Fermer",
  philosophers: "Qui répond",
  conversations: "Conversations",
  none: "Rien encore. Vos questions restent dans ce navigateur.",
  fresh: "Nouvelle conversation",
  language: "English",
  theme: "Clair ou sombre",
  save: "Exporter",
  clear: "Tout effacer",
  clearSure: "Effacer toutes les conversations gardées dans ce navigateur ?",
  remove: "Effacer « {title} »",
  log: "Conversation avec {name}",
  question: "Votre question",
  ask: "Interrogez {name}…",
  send: "Envoyer",
  stop: "Arrêter",
  hint: "Entrée envoie, Maj + Entrée va à la ligne, Échap arrête.",
  latest: "Dernier message",
  copy: "Copier",
  copied: "Copié",
  retry: "Réessayer",
  edit: "Modifier",
  editing: "Vous récrivez votre dernière question.",
  cancel: "Annuler",
  you: "Vous",
  thinking: "{name} réfléchit",
  booting: "{name} se réveille",
  phase: "Le moteur {phase}.",
  left: "Encore {seconds} s environ.",
  resting: "{name} est injoignable pour l’instant.",
  instead: "Qui répond à sa place le dira.",
  seconds: "{seconds} s",
  degraded: "Ce n’est pas la voix de {name} :",
  degradedBy: "{backend} répond à sa place.",
  degradedFrom: "{backend} continue à partir du repère.",
  resumed: "Ici la réponse s’est interrompue, et {backend} l’a continuée",
  truncated: "Les plus anciens échanges ne tenaient pas et ont été omis.",
  length: "La réponse a atteint sa longueur maximale.",
  stopped: "Arrêté",
  answered: "{name} a répondu.",
  broken: "La réponse s’est interrompue",
  failed: "Pas de réponse",
  network: "Le serveur est injoignable. Votre question est toujours là.",
  silence: "Le serveur ne dit plus rien.",
  stream_interrupted: "La connexion s’est perdue au milieu de la réponse.",
  bad_response: "Ce qui répond n’est pas un sive : {message}",
  again: "Réessayer",
  in: "Il demande {seconds} s de patience.",
  dismiss: "Fermer",
  full: "Ce navigateur n’a plus de place : la conversation n’est pas gardée. Exportez ou effacez les anciennes.",
  noModels: "Il n’y a personne à interroger.",
  keyTitle: "Ce sive demande une clé",
  keyWhy: "Elle n’est gardée que pour cet onglet, et n’est envoyée à personne d’autre.",
  keyWrong: "Cette clé ne l’ouvre pas.",
  key: "Clé d’API",
  keyUse: "L’utiliser",
};

/** @type {Record<Language, Record<Word, string>>} */
export const WORDS = { en: EN, fr: FR };

/**
 * What an engine does while it starts, by the names that sive has for it.
 *
 * @type {Record<Language, Record<string, string>>}
 */
const PHASES = {
  en: {
    fetching: "is fetching its weights",
    starting: "is starting",
    loading: "is loading its weights",
    compiling: "is compiling",
    adapters: "is loading its adapters",
    probing: "is trying itself out",
    failed: "failed and starts again",
  },
  fr: {
    fetching: "télécharge ses poids",
    starting: "démarre",
    loading: "charge ses poids",
    compiling: "se compile",
    adapters: "charge ses adaptateurs",
    probing: "s’essaie",
    failed: "a échoué et redémarre",
  },
};

/** @param {Language} language @param {string} phase As sive calls it; an unknown one is shown as it is. */
export const doing = (language, phase) => PHASES[language][phase] ?? `: ${phase}`;

/** @param {string | null} kept What was chosen before @param {readonly string[]} preferred @returns {Language} */
export function language(kept, preferred) {
  if (kept === "fr" || kept === "en") return kept;
  const first = preferred.find((one) => /^(fr|en)\b/i.test(one));
  return first?.toLowerCase().startsWith("fr") ? "fr" : "en";
}

/** @param {Language} language @returns {(word: Word, given?: Record<string, unknown>) => string} */
export function speaking(language) {
  return (word, given = {}) =>
    WORDS[language][word].replace(/\{(\w+)\}/g, (whole, name) => String(given[name] ?? whole));
}

/** @param {Language} language @param {number} ms */
export function seconds(language, ms) {
  const digits = ms < 9950 ? 1 : 0;
  const shape = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(language, shape).format(ms / 1000);
}
