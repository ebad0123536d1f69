/** A turn's states: what each event makes of it, and that an end is an end. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { after, asked, boot, isDegraded, isOpen, messages, seams } from "../../public/app/chat.mjs";

const route = (backend, more = {}) => ({ kind: "route", route: { backend, degraded: false, resumed: false, truncated: false, dropped: [], ...more } });
const text = (said) => ({ kind: "text", text: said });
const FAILURE = { message: "gone", code: "stream_interrupted", status: 502 };

/** The turn after these events, one every 100 ms. */
const played = (...happenings) => happenings.reduce((turn, one, at) => after(turn, one, 1100 + at * 100), asked("?", 1000));

test("a turn is sending until the first text, then streaming, then done", () => {
  assert.equal(asked("?", 0).status, "sending");
  assert.equal(played(route("pod")).status, "sending");
  assert.equal(played(route("pod"), text("a")).status, "streaming");
  const done = played(route("pod"), text("a"), text("b"), { kind: "finish", reason: "stop" });
  assert.deepEqual([done.status, done.text, done.firstMs, done.tookMs, done.reason], ["done", "ab", 200, 400, "stop"]);
});

for (const [status, end] of Object.entries({ done: { kind: "finish", reason: "stop" }, stopped: { kind: "stop" }, error: { kind: "fail", failure: FAILURE } })) {
  test(`nothing that comes after ${status} changes anything, and the text is kept`, () => {
    const ended = played(text("kept"), end);
    assert.deepEqual([ended.status, ended.text, isOpen(ended)], [status, "kept", false]);
    for (const late of [text("late"), route("late"), { kind: "waiting", why: "late" }, { kind: "stop" }, { kind: "finish", reason: "x" }, { kind: "fail", failure: FAILURE }]) {
      assert.equal(after(ended, late, 9000), ended);
    }
  });
}

test("why nobody speaks is told until somebody does", () => {
  const waiting = played({ kind: "waiting", why: "engine: loading" });
  assert.deepEqual([waiting.status, waiting.waiting], ["sending", "engine: loading"]);
  assert.equal(after(waiting, text("a"), 2000).waiting, "");
});

test("who spoke is kept in order, and where each took over", () => {
  const turn = played(route("pod-a"), text("one "), route("pod-b", { resumed: true }), text("two "), route("local", { degraded: true, resumed: true }), text("three"));
  assert.deepEqual(turn.voices.map(({ backend, at }) => [backend, at]), [["pod-a", 0], ["pod-b", 4], ["local", 8]]);
  assert.deepEqual(seams(turn), [4, 8]);
  assert.equal(isDegraded(turn), true);
});

test("who was announced but said nothing has not spoken", () => {
  const turn = played(route("pod-a"), route("local", { degraded: true }), text("one"));
  assert.deepEqual(turn.voices.map(({ backend }) => backend), ["local"]);
  assert.deepEqual(seams(turn), []);
});

test("a question is asked with what was said before, without what failed without a word", () => {
  const turns = [played(text("a"), { kind: "stop" }), played({ kind: "fail", failure: FAILURE })];
  assert.deepEqual(messages(turns, "now"), [
    { role: "user", content: "?" },
    { role: "assistant", content: "a" },
    { role: "user", content: "now" },
  ]);
});

test("the phase of an engine that starts is read from what sive says, and from nothing else", () => {
  assert.deepEqual(boot("engine: the engine is not ready (loading for 12 s, about 40 s left)"), { phase: "loading", forS: 12, leftS: 40 });
  assert.deepEqual(boot("engine: the engine is not ready (failed for 2 s, it died and starts again)"), { phase: "failed", forS: 2, leftS: null });
  assert.equal(boot("pod-a: resting after 3 failures"), null);
  assert.equal(boot(""), null);
});
