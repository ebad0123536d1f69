/** What is kept in the browser: it survives broken entries, a full disk, another tab, and no storage at all. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { after, asked } from "../../public/app/chat.mjs";
import { PREFIX, storage, Store } from "../../public/app/store.mjs";

/** A browser's storage as far as the page uses it, with room for so many characters. */
class Kept {
  constructor(room = Infinity) {
    this.room = room;
    this.map = new Map();
  }
  get length() {
    return this.map.size;
  }
  key(at) {
    return [...this.map.keys()][at] ?? null;
  }
  getItem(key) {
    return this.map.get(key) ?? null;
  }
  setItem(key, value) {
    const size = [...this.map].reduce((sum, [name, text]) => sum + (name === key ? 0 : name.length + text.length), key.length + value.length);
    if (size > this.room) throw new DOMException("full", "QuotaExceededError");
    this.map.set(key, value);
  }
  removeItem(key) {
    this.map.delete(key);
  }
}

const turn = (question) => after(after(asked(question, 0), { kind: "text", text: "answer" }, 1), { kind: "finish", reason: "stop" }, 2);
const conversation = (id, changedMs = 1, ...turns) => ({ id, model: "kant", changedMs, turns });

test("what is put is got, last changed first", () => {
  const store = new Store(new Kept());
  store.put(conversation("a", 1, turn("?")));
  store.put(conversation("b", 2, turn("!")));
  assert.deepEqual(store.all().map(({ id }) => id), ["b", "a"]);
  assert.deepEqual(store.get("a"), conversation("a", 1, turn("?")));
  store.remove("a");
  assert.equal(store.get("a"), null);
});

test("what cannot be read is passed over and left alone", () => {
  const kept = new Kept();
  const broken = ["{", "null", "[]", "7", "{\"id\": \"other\"}", "{\"id\": \"x5\", \"model\": \"m\", \"turns\": 3}"];
  broken.forEach((text, at) => kept.setItem(`${PREFIX}x${at}`, text));
  kept.setItem("another page's", "thing");
  const store = new Store(kept);
  store.put(conversation("a", 1, turn("?")));
  assert.deepEqual(store.all().map(({ id }) => id), ["a"]);
  assert.equal(kept.length, broken.length + 2);
});

test("a turn of another shape is left out of a conversation that is whole otherwise", () => {
  const kept = new Kept();
  kept.setItem(`${PREFIX}a`, JSON.stringify(conversation("a", 1, { question: 1 }, null, turn("?"))));
  assert.deepEqual(new Store(kept).get("a").turns, [turn("?")]);
});

test("an answer that was under way when it was kept has stopped", () => {
  const store = new Store(new Kept());
  store.put(conversation("a", 1, after(asked("?", 0), { kind: "text", text: "half" }, 1)));
  const [{ status, text }] = store.get("a").turns;
  assert.deepEqual([status, text], ["stopped", "half"]);
});

test("without room nothing is lost of what was kept before", () => {
  const store = new Store(new Kept(2000));
  assert.equal(store.put(conversation("a", 1, turn("?"))), true);
  assert.equal(store.put(conversation("a", 2, turn("?".repeat(3000)))), false);
  assert.equal(store.get("a").changedMs, 1);
});

test("two tabs that keep their own conversations keep both", () => {
  const kept = new Kept();
  const [one, other] = [new Store(kept), new Store(kept)];
  one.put(conversation("a", 1, turn("?")));
  other.put(conversation("b", 2, turn("!")));
  one.put(conversation("a", 3, turn("?"), turn("??")));
  assert.deepEqual(other.all().map(({ id, turns }) => [id, turns.length]), [["a", 2], ["b", 1]]);
});

test("the export is all of it", () => {
  const store = new Store(new Kept());
  store.put(conversation("a", 1, turn("?")));
  assert.deepEqual(JSON.parse(store.exported()).conversations, store.all());
});

test("where storage is switched off the page remembers as long as it lives", () => {
  for (const open of [() => { throw new DOMException("denied", "SecurityError"); }, () => null]) {
    const store = new Store(storage(open));
    store.put(conversation("a", 1, turn("?")));
    assert.equal(store.all().length, 1);
    store.remove("a");
    assert.equal(store.all().length, 0);
  }
});
