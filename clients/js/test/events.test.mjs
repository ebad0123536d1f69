/** The event parser: whatever the cuts, the same events. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { EventParser } from "../sive.mjs";

const bytes = (text) => new TextEncoder().encode(text);

function parsed(...pieces) {
  const parser = new EventParser();
  return [...pieces.flatMap((piece) => parser.feed(piece)), ...parser.feed()];
}

const STREAM = "\uFEFF: waiting; pod: é 🌿\n\ndata: {\"a\":\r\ndata:  \"joie – 喜 🌿\"}\r\n\r\nevent: x\rid: 7\rdata:one\rdata: two\r\rdata\n\ndata: [DONE]\n\n";
const EVENTS = [
  { comment: "waiting; pod: é 🌿" },
  { data: "{\"a\":\n \"joie – 喜 🌿\"}" },
  { data: "one\ntwo" },
  { data: "" },
  { data: "[DONE]" },
];

test("comments, several data lines, and all three line ends are read", () => {
  assert.deepEqual(parsed(bytes(STREAM)), EVENTS);
});

test("a cut at any byte changes nothing", () => {
  const whole = bytes(STREAM);
  for (let at = 0; at <= whole.length; at += 1) {
    assert.deepEqual(parsed(whole.slice(0, at), whole.slice(at)), EVENTS, `cut at ${at}`);
  }
});

test("two cuts at any bytes change nothing", () => {
  const whole = bytes("data: é\r\n\r\n: ü\r\rdata: 🌿\n\n");
  const events = parsed(whole);
  assert.equal(events.length, 3);
  for (let one = 0; one <= whole.length; one += 1) {
    for (let two = one; two <= whole.length; two += 1) {
      assert.deepEqual(parsed(whole.slice(0, one), whole.slice(one, two), whole.slice(two)), events, `${one}, ${two}`);
    }
  }
});

test("bytes that come one by one are the same events", () => {
  assert.deepEqual(parsed(...Array.from(bytes(STREAM), (byte) => Uint8Array.of(byte))), EVENTS);
});

test("an event is told as soon as it is whole, not when the next begins", () => {
  const parser = new EventParser();
  assert.deepEqual(parser.feed(bytes("data: a\n")), []);
  assert.deepEqual(parser.feed(bytes("\n")), [{ data: "a" }]);
});

test("what is left when the stream ends is an event too", () => {
  assert.deepEqual(parsed(bytes("data: [DONE]")), [{ data: "[DONE]" }]);
});

test("fields that are no data, and spaces after the first, are left as they are", () => {
  assert.deepEqual(parsed(bytes("retry: 3\ndatum: x\ndata:  two spaces\n\n")), [{ data: " two spaces" }]);
});
