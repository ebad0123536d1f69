/** The Markdown subset: what it reads, that growing changes nothing, and that nothing hostile gets through. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";

import { Document, inline, LONGEST_BLOCK, marked, parse } from "../../public/app/markdown.mjs";

/** Blocks as a short notation: kind and text. */
const brief = (blocks) => blocks.map((block) => [block.kind, block.text ?? plain(block.parts ?? block.items?.flatMap(({ parts }) => parts) ?? [])]);
const plain = (parts) => parts.map((part) => part.text ?? (part.kind === "seam" ? "|" : plain(part.parts))).join("");
const kinds = (text) => inline(text).map((part) => (part.kind === "text" ? part.text : `<${part.kind} ${part.text ?? plain(part.parts ?? [])}>`)).join("");

const SAMPLE = `# De la joie

La joie est le **passage** d'une *moindre* à une plus
grande \`perfection\`.

1. un
2. deux
   - dedans
   - encore

> Citation
> suite

---

\`\`\`python
def f():
    # not a heading

    return "x"
\`\`\`

- a
* b
fin de b

Voir [l'Éthique](https://example.org/e) ou https://example.org/x.
`;

test("each kind of block is read", () => {
  assert.deepEqual(brief(parse(SAMPLE)), [
    ["heading", "De la joie"],
    ["paragraph", "La joie est le passage d'une moindre à une plus\ngrande perfection."],
    ["list", "undeuxdedansencore"],
    ["quote", "Citation\nsuite"],
    ["rule", ""],
    ["code", "def f():\n    # not a heading\n\n    return \"x\""],
    ["list", "ab fin de b"],
    ["paragraph", "Voir l'Éthique ou https://example.org/x."],
  ]);
});

test("lists keep their numbers and their depth", () => {
  const [list] = parse("3. trois\n4. quatre\n   - dedans\n");
  assert.deepEqual([list.kind, list.ordered], ["list", true]);
  assert.deepEqual(list.items.map(({ depth, marker }) => [depth, marker]), [[0, "3."], [0, "4."], [1, "-"]]);
});

test("an answer that grows reads as one that came whole, wherever it is cut", () => {
  const whole = parse(SAMPLE);
  for (let at = 0; at <= SAMPLE.length; at += 1) {
    const document = new Document();
    document.append(SAMPLE.slice(0, at));
    assert.deepEqual(document.append(SAMPLE.slice(at)).blocks, whole, `cut at ${at}`);
  }
  const document = new Document();
  for (const letter of SAMPLE) document.append(letter);
  assert.deepEqual(document.append("").blocks, whole);
});

test("what is settled never changes, and the sources are the text again", () => {
  const document = new Document();
  const settled = [];
  for (const letter of SAMPLE) {
    const told = document.append(letter);
    assert.deepEqual(told.blocks.slice(0, settled.length), settled);
    settled.push(...told.blocks.slice(settled.length, told.settled));
  }
  assert.equal(document.append("").blocks.map(({ source }) => source).join(""), SAMPLE);
  assert.ok(settled.length >= 5);
});

test("a line that becomes something else takes the block before with it", () => {
  const document = new Document();
  document.append("one\n---");
  assert.deepEqual(brief(document.append(" two").blocks), brief(parse("one\n--- two")));
});

test("leading blank lines and a text of nothing but blank lines are no blocks", () => {
  assert.deepEqual(brief(parse("\n\n# A")), [["heading", "A"]]);
  assert.deepEqual(parse("\n \n"), []);
  assert.deepEqual(parse(""), []);
});

test("emphasis, code and links nest, and what is not closed stays as it was typed", () => {
  assert.equal(kinds("**a *b* c** `**d**` _e_"), "<strong a b c> <code **d**> <em e>");
  assert.equal(kinds("2 * 3 * 4, snake_case_name, **open, `open, [open](, * x *"), "2 * 3 * 4, snake_case_name, **open, `open, [open](, * x *");
  assert.equal(kinds("`` a`b ``"), "<code  a`b >");
  assert.equal(plain(inline("***both***")), "both");
});

test("links lead to the web or to mail, and nowhere else", () => {
  const hrefs = (text) => inline(text).filter(({ kind }) => kind === "link").map(({ href }) => href);
  assert.deepEqual(hrefs("[a](https://a.example/x?y=1) [b](mailto:b@example.org)"), ["https://a.example/x?y=1", "mailto:b@example.org"]);
  for (const bad of ["javascript:alert(1)", "JaVaScRiPt:alert(1)", "data:text/html,x", "vbscript:x", "file:///etc/passwd", "//evil.example", "/admin", "\u0001javascript:alert(1)", "java\tscript:alert(1)"]) {
    assert.deepEqual(hrefs(`[x](${bad})`), [], bad);
  }
  assert.deepEqual(hrefs("see https://example.org/a_(b), or http://x.example."), ["https://example.org/a_(b", "http://x.example/"]);
});

test("HTML is text", () => {
  assert.equal(kinds("<img src=x onerror=alert(1)> <script>x</script> &amp;"), "<img src=x onerror=alert(1)> <script>x</script> &amp;");
});

test("the mark of a resumed answer stands at the end of its word, and grows with the text", () => {
  assert.equal(marked("La joie est", [5]), "La joie\uE000 est");
  assert.equal(marked("La joie", [5]), "La joie");
  assert.equal(marked("La jo", [5]), "La jo");
  assert.equal(plain(inline(marked("un **grand saut** ici", [6]))), "un grand| saut ici");
  let before = "";
  for (let at = 0; at <= 14; at += 1) {
    const now = marked("aa bb cc dd ee".slice(0, at), [4, 9].filter((seam) => seam <= at));
    assert.ok(now.startsWith(before), `${now} after ${before}`);
    before = now;
  }
});

test("a model cannot write the mark itself", () => {
  assert.equal(marked("a\uE000b", []), "a\uFFFDb");
});

test("one line without end is cut into blocks, at spaces where there are some", () => {
  const blocks = parse("word ".repeat(5000));
  assert.ok(blocks.every(({ source }) => source.length <= LONGEST_BLOCK));
  assert.ok(blocks.every(({ source }) => source.endsWith(" ")));
  assert.ok(parse("x".repeat(20_000)).every(({ source }) => source.length <= LONGEST_BLOCK));
});

test("hostile nesting ends, and stays text", () => {
  for (const one of ["*", "_", "`", "[", "**_", "![](", "> ", "- ", "# ", "``", "*a **b "]) {
    const text = one.repeat(20_000 / one.length);
    assert.equal(parse(text).map(({ source }) => source).join(""), text);
  }
});

test("headings lose what closes them, and lines that end in a carriage return are read too", () => {
  const title = (line) => brief(parse(line))[0][1];
  assert.deepEqual(["# a #", "## a##  ", "# a # b", "# C#", "#  ##"].map(title), ["a", "a", "a # b", "C", ""]);
  assert.deepEqual(brief(parse("# a\r\n- b\r\n")), [["heading", "a"], ["list", "b\r"]]);
});

test("no line is read in time that grows with its square", () => {
  // In a process of its own, which can be ended: a million squared takes hours.
  const read = async (path) => {
    const { parse } = await import(path);
    const lines = [(n) => `# a${" ".repeat(n)}b`, (n) => `# a${"#".repeat(n)}b`, ...["#", "-", ">"].map((sign) => (n) => `${sign}${" ".repeat(n)}a\rb`)];
    for (const line of lines) if (parse(line(1_000_000)).length !== 1) throw new Error(line(3));
  };
  const call = `await (${read})(${JSON.stringify(new URL("../../public/app/markdown.mjs", import.meta.url))})`;
  const { status, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", call], { timeout: 30_000, encoding: "utf8" });
  assert.equal(status, 0, stderr || "it was not read within 30 s");
});
