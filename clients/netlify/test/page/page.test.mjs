/** The files of the page as they are: no HTML from strings, nothing inline, nothing from elsewhere, one client. */

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

const PUBLIC = new URL("../../public/", import.meta.url);
const read = (path) => readFileSync(new URL(path, PUBLIC), "utf8");
const MODULES = readdirSync(new URL("app/", PUBLIC)).map((name) => `app/${name}`);
const HTML = read("index.html");

test("text only ever becomes text", () => {
  for (const path of MODULES) {
    assert.doesNotMatch(read(path), /innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|\beval\b|new Function|setHTML/, path);
  }
});

test("nothing is inline, and nothing comes from another host", () => {
  assert.doesNotMatch(HTML, /\sstyle=|<style|\son\w+=|<script(?![^>]*\ssrc=)/);
  for (const path of ["index.html", "style.css", "icon.svg", ...MODULES]) {
    const addresses = read(path).match(/(?:src|href|url|import|from)\s*[=(]?\s*["'](?:https?:)?\/\/[^"']+/g) ?? [];
    assert.deepEqual(addresses, [], path);
  }
});

test("the policy allows the page's own files and nothing else", () => {
  const policy = /http-equiv="Content-Security-Policy" content="([^"]+)"/.exec(HTML)?.[1] ?? "";
  assert.match(policy, /default-src 'none'/);
  assert.doesNotMatch(policy, /unsafe|\*|data:/);
});

test("the page's client is the one of clients/js", () => {
  assert.equal(read("app/sive.mjs"), readFileSync(new URL("../../../js/sive.mjs", import.meta.url), "utf8"));
});

test("all modules are asked for at once", () => {
  const preloaded = [...HTML.matchAll(/(?:modulepreload" href|<script type="module" src)="([^"]+)"/g)].map(([, path]) => path);
  assert.deepEqual(preloaded.sort(), [...MODULES].sort());
});

test("all of it is at most 60 KB", () => {
  const sizes = ["index.html", "style.css", "icon.svg", ...MODULES].map((path) => gzipSync(read(path)).length + 500);
  const sum = sizes.reduce((one, other) => one + other, 0);
  assert.ok(sum <= 60_000, `${sum} bytes with heads`);
});
