/** Two languages that say the same, and the voices they present. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { voice } from "../../public/app/voices.mjs";
import { doing, language, seconds, speaking, WORDS } from "../../public/app/words.mjs";

const HTML = readFileSync(new URL("../../public/index.html", import.meta.url), "utf8");

test("everything is said in both languages, with the same blanks", () => {
  assert.deepEqual(Object.keys(WORDS.fr), Object.keys(WORDS.en));
  const blanks = (text) => (text.match(/\{\w+\}/g) ?? []).sort();
  for (const word of Object.keys(WORDS.en)) assert.deepEqual(blanks(WORDS.fr[word]), blanks(WORDS.en[word]), word);
});

test("every word that index.html names is there", () => {
  const named = [...HTML.matchAll(/data-(?:word|label)="(\w+)"/g)].map(([, word]) => word);
  assert.ok(named.length > 15);
  for (const word of named) assert.ok(word in WORDS.en, word);
});

test("the language is the one chosen, else the reader's, else English", () => {
  assert.equal(language("fr", ["en"]), "fr");
  assert.equal(language(null, ["fr-CA", "en"]), "fr");
  assert.equal(language(null, ["de", "fr", "en"]), "fr");
  assert.equal(language("xx", ["de"]), "en");
  assert.equal(language(null, []), "en");
});

test("what an engine does is said in the reader's words, and a new phase as it is called", () => {
  assert.equal(speaking("fr")("phase", { phase: doing("fr", "loading") }), "Le moteur charge ses poids.");
  assert.equal(doing("en", "dreaming"), ": dreaming");
});

test("blanks are filled with what is given, as text", () => {
  assert.equal(speaking("fr")("ask", { name: "$& <b>" }), "Interrogez $& <b>…");
  assert.equal(speaking("en")("left", {}), "About {seconds} s left.");
});

test("seconds are short, and spelled as the language has it", () => {
  assert.deepEqual([seconds("en", 2140), seconds("fr", 2140), seconds("en", 12_400)], ["2.1", "2,1", "12"]);
});

test("every portrait is in index.html, and an unknown model has a monogram", () => {
  for (const id of ["spinoza", "bergson", "kant", "local"]) {
    for (const speech of ["en", "fr"]) {
      const known = voice({ id }, speech);
      assert.ok(HTML.includes(`<symbol id="${known.portrait}"`), id);
      assert.ok(known.line && known.questions.length >= 2);
    }
  }
  const unknown = voice({ id: "org/nietzsche", parent: "Qwen2.5" }, "fr");
  assert.deepEqual([unknown.name, unknown.portrait, unknown.line], ["Nietzsche", "", "Qwen2.5"]);
  assert.equal(voice({ id: "constructor" }, "en").portrait, "");
});
