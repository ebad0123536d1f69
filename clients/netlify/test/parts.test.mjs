/** The small parts, each alone. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { eventsOf, WholeEvents } from "../src/events.js";
import { Limiter, network } from "../src/limits.js";
import { apiPrefix, baseUrl, gatewayUrls } from "../src/urls.js";

for (const [written, meant] of [
  ["fjdaz-spinoza-nb.hf.space", "https://fjdaz-spinoza-nb.hf.space"],
  [" https://gw.example/ ", "https://gw.example"],
  ["http://gw.example//", "http://gw.example"],
  ["gw.example/v1/", "https://gw.example/v1"],
  ["localhost:8000", "http://localhost:8000"],
  ["127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"],
  ["[::1]:8000", "http://[::1]:8000"],
  ["localhost.example", "https://localhost.example"],
  ["127.example", "https://127.example"],
]) {
  test(`${JSON.stringify(written)} means ${meant}`, () => assert.equal(baseUrl(written), meant));
}

for (const wrong of ["", "https://", "ftp://h", "javascript:alert(1)", "https://user:pw@h", "https://h/?q", "https://h/#f", "a b"]) {
  test(`${JSON.stringify(wrong)} is no address`, () => assert.throws(() => baseUrl(wrong), TypeError));
}

test("gateways are listed in order, with or without their /v1", () => {
  assert.deepEqual(gatewayUrls("a.example/v1, https://b.example\nlocalhost:1/x/v1/"), ["https://a.example", "https://b.example", "http://localhost:1/x"]);
});

for (const [written, meant] of [[undefined, "/gradio_api"], ["", ""], ["/", ""], ["gradio_api", "/gradio_api"], ["/gradio_api/", "/gradio_api"], ["/v1", "/v1"]]) {
  test(`the prefix ${JSON.stringify(written)} means ${JSON.stringify(meant)}`, () => assert.equal(apiPrefix(written), meant));
}

test("events are whole however the bytes are cut, and however lines end", () => {
  for (const end of ["\n", "\r\n"]) {
    const text = [": ping", "", "event: complete", 'data: ["é—😀"]', "", "data: {\"a\":", "data: 1}", "", "data: [DONE]", "", ""].join(end);
    const bytes = new TextEncoder().encode(text);
    for (let cut = 0; cut <= bytes.length; cut++) {
      const whole = new WholeEvents();
      const parts = [whole.feed(bytes.subarray(0, cut)), whole.feed(bytes.subarray(cut))];
      assert.equal(parts.join(""), text);
      assert.deepEqual(parts.flatMap(eventsOf), [
        { name: "complete", payload: ["é—😀"] },
        { name: "", payload: { a: 1 } },
        { name: "", payload: null },
      ]);
    }
  }
});

test("half an event is kept back", () => {
  const whole = new WholeEvents();
  assert.equal(whole.feed(new TextEncoder().encode("data: 1\n\ndata: 2\n")), "data: 1\n\n");
  assert.equal(whole.feed(new TextEncoder().encode("\n")), "data: 2\n\n");
});

test("a bucket fills up again within a minute, one by one", () => {
  let now = 0;
  const limiter = new Limiter(() => now);
  const take = () => limiter.take("192.0.2.1", 3);
  assert.deepEqual([take(), take(), take(), take()], [0, 0, 0, 20]);
  now = 20_000;
  assert.deepEqual([take(), take()], [0, 20]);
  now = 300_000;
  assert.deepEqual([take(), take(), take(), take()], [0, 0, 0, 20]);
});

test("asking while there is none does not make the wait longer", () => {
  let now = 0;
  const limiter = new Limiter(() => now);
  for (; now < 60_000; now += 1000) limiter.take("a", 1);
  assert.equal(limiter.take("a", 1), 0);
});

test("the memory for visitors is bounded", () => {
  const limiter = new Limiter(() => 0);
  limiter.take("first", 1);
  for (let number = 0; number < 10_000; number++) limiter.take(`visitor ${number}`, 1);
  assert.equal(limiter.take("first", 1), 0, "the one that asked longest ago is forgotten");
  assert.notEqual(limiter.take("visitor 9999", 1), 0);
});

test("a /64 of IPv6 is one visitor", () => {
  assert.equal(network("2001:db8:1:2:3:4:5:6"), network("2001:db8:1:2::9"));
  assert.notEqual(network("2001:db8:1:2::9"), network("2001:db8:1:3::9"));
  assert.equal(network("::1"), "0:0:0:0");
  assert.equal(network("192.0.2.1"), "192.0.2.1");
});
