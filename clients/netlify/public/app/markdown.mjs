/**
 * The Markdown that a model writes, as data: blocks with inline parts. Pure; `render.mjs` makes nodes of it.
 *
 * A safe subset, because there is nothing else in it: no HTML, no images, links only to the web and to mail.
 *
 * @typedef {{kind: "text" | "code", text: string} | {kind: "strong" | "em", parts: Inline[]}
 *   | {kind: "link", href: string, parts: Inline[]} | {kind: "seam"}} Inline
 * @typedef {{depth: number, marker: string, parts: Inline[]}} Item
 * @typedef {{kind: "paragraph" | "quote", parts: Inline[]} | {kind: "heading", level: number, parts: Inline[]}
 *   | {kind: "list", ordered: boolean, items: Item[]} | {kind: "code", text: string} | {kind: "rule"}} Content
 * @typedef {Content & {source: string}} Block `source`: the text it was read from.
 */

/** Longer blocks are cut in two, so that what is drawn anew for each word stays small. */
export const LONGEST_BLOCK = 4000;

const DEEPEST = 8;
const SEAM = "\uE000";

// Each of them reads a line in time that grows with its length alone: what is left of it is taken whole (`s`: it may
// hold a carriage return), and trimmed in code.
const HEADING = /^(#{1,6})\s+(.*)$/s;
const RULE = /^(?:(?:\s*\*){3,}|(?:\s*-){3,}|(?:\s*_){3,})\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/s;
const QUOTE = /^\s{0,3}>\s?(.*)$/s;
const FENCE = /^\s{0,3}(`{3,}|~{3,})/;

/**
 * Put a mark where an answer was resumed, at the end of that word, so that it breaks no markup.
 *
 * The mark travels through the text as a character that nobody may use. A text that grows only grows here too.
 *
 * @param {string} text @param {number[]} at Offsets, ascending.
 */
export function marked(text, at) {
  let out = "";
  let from = 0;
  for (const offset of at) {
    const to = offset + text.slice(offset).search(/\s|$/);
    if (to >= text.length) break;
    out += clean(text.slice(from, to)) + SEAM;
    from = to;
  }
  return out + clean(text.slice(from));
}

/** @param {string} text */
const clean = (text) => text.replaceAll(SEAM, "\uFFFD");

/** An answer that grows: what is settled is not read again. */
export class Document {
  /** @type {Block[]} */
  #settled = [];
  #rest = "";

  /**
   * @param {string} more
   * @returns {{blocks: Block[], settled: number}} All blocks, of which so many were settled before.
   */
  append(more) {
    const before = this.#settled.length;
    this.#rest += more;
    const open = parse(this.#rest);
    // The last line may still become something else, and then belong to the block before.
    for (const block of open.splice(0, Math.max(0, open.length - 2))) {
      this.#settled.push(block);
      this.#rest = this.#rest.slice(block.source.length);
    }
    return { blocks: [...this.#settled, ...open], settled: before };
  }
}

/** @param {string} text @returns {Block[]} Their sources are the text again. */
export function parse(text) {
  const lines = text.match(/[^\n]*\n|[^\n]+$/g) ?? [];
  /** @type {Block[]} */
  const blocks = [];
  let lead = "";
  for (let at = 0; at < lines.length; ) {
    const [content, count] = block(lines, at);
    let source = lines.slice(at, at + count).join("");
    at += count;
    while (at < lines.length && !lines[at].trim()) source += lines[at++];
    if (content) blocks.push({ ...content, source: lead + source });
    lead = content ? "" : lead + source;
  }
  return blocks;
}

/** @param {string[]} lines @param {number} at @returns {[Content | null, number]} What begins there, and its lines. */
function block(lines, at) {
  const line = bare(lines[at]);
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence[1]);
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: "heading", level: heading[1].length, parts: inline(titled(heading[2])) }, 1];
  if (RULE.test(line)) return [{ kind: "rule" }, 1];
  if (ITEM.test(line)) return list(lines, at);
  if (QUOTE.test(line)) {
    const count = run(lines, at, (next) => QUOTE.test(next));
    const inner = lines.slice(at, at + count).map((one) => bare(one).replace(QUOTE, "$1"));
    return [{ kind: "quote", parts: inline(inner.join("\n")) }, count];
  }
  if (!line.trim()) return [null, 1];
  return paragraph(lines, at);
}

/** A heading may be closed as it was opened. @param {string} text */
function titled(text) {
  const title = text.trim();
  let end = title.length;
  while (title[end - 1] === "#") end -= 1;
  return title.slice(0, end).trimEnd();
}

/** @param {string[]} lines @param {number} at @returns {[Content, number]} */
function paragraph(lines, at) {
  const count = run(lines, at, (next) => next.trim() !== "" && !BEGINS.some((begins) => begins.test(next)));
  const text = lines.slice(at, at + count).join("");
  if (text.length <= LONGEST_BLOCK || count > 1) {
    return [{ kind: "paragraph", parts: inline(text.trim()) }, count];
  }
  // One line without end: cut at a space, and look at the rest as if it stood on a line of its own.
  const space = text.lastIndexOf(" ", LONGEST_BLOCK);
  const cut = space > 0 ? space + 1 : LONGEST_BLOCK;
  lines.splice(at, 1, text.slice(0, cut), text.slice(cut));
  return [{ kind: "paragraph", parts: inline(text.slice(0, cut).trim()) }, 1];
}

const BEGINS = [FENCE, HEADING, ITEM, QUOTE, RULE];

/**
 * How many lines belong together; not more than a block may hold.
 *
 * @param {string[]} lines @param {number} at @param {(line: string) => boolean} belongs
 */
function run(lines, at, belongs) {
  let to = at + 1;
  for (let size = lines[at].length; to < lines.length && belongs(bare(lines[to])); to += 1) {
    size += lines[to].length;
    if (size > LONGEST_BLOCK) break;
  }
  return to - at;
}

/** @param {string[]} lines @param {number} at @param {string} mark @returns {[Content, number]} */
function code(lines, at, mark) {
  const isEnd = (/** @type {string} */ line) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
  let to = at + 1;
  while (to < lines.length && !isEnd(bare(lines[to]))) to += 1;
  const text = lines.slice(at + 1, to).join("");
  return [{ kind: "code", text: text.replace(/\n$/, "") }, Math.min(lines.length, to + 1) - at];
}

/** @param {string[]} lines @param {number} at @returns {[Content, number]} */
function list(lines, at) {
  const isOrdered = (/** @type {string} */ line) => /^\s*\d/.test(line);
  const ordered = isOrdered(lines[at]);
  const count = run(lines, at, (next) => {
    const item = ITEM.exec(next);
    if (item) return item[1].length > 1 || isOrdered(next) === ordered;
    return next.trim() !== "" && !FENCE.test(next) && !HEADING.test(next) && !QUOTE.test(next);
  });
  /** @type {{depth: number, marker: string, text: string}[]} */
  const items = [];
  for (const line of lines.slice(at, at + count).map(bare)) {
    const item = ITEM.exec(line);
    if (item) items.push({ depth: Math.min(3, item[1].length >> 1), marker: item[2], text: item[3] });
    else items[items.length - 1].text += ` ${line.trim()}`;
  }
  return [
    { kind: "list", ordered, items: items.map(({ text, ...item }) => ({ ...item, parts: inline(text) })) },
    count,
  ];
}

/** @param {string} line */
const bare = (line) => (line.endsWith("\n") ? line.slice(0, -1) : line);

const CODE = /(`+)([^`]|[^`].{0,600}?[^`])\1(?!`)/suy;
const LINK = /\[([^[\]]{1,300})\]\((\S{1,2000}?)\)/y;
const URL_ = /https?:\/\/[^\s<>"'`]{1,2000}[^\s<>"'`.,;:!?)\]*_]/y;
const MARKS = /[*_`[\uE000]|https?:\/\//g;
const WORD = /[\p{L}\p{N}]/u;

/**
 * @param {string} text @param {number} [depth]
 * @returns {Inline[]}
 */
export function inline(text, depth = 0) {
  /** @type {Inline[]} */
  const parts = [];
  let plain = "";
  const push = (/** @type {Inline} */ part) => {
    if (plain) parts.push({ kind: "text", text: plain });
    plain = "";
    parts.push(part);
  };
  let at = 0;
  for (const { index, 0: mark } of text.matchAll(MARKS)) {
    if (index < at) continue;
    plain += text.slice(at, index);
    const [part, length] = special(text, index, mark, depth);
    if (part) push(part);
    else plain += text.slice(index, index + length);
    at = index + length;
  }
  plain += text.slice(at);
  if (plain) parts.push({ kind: "text", text: plain });
  return parts;
}

/** @param {string} text @param {number} at @param {string} mark @param {number} depth @returns {[Inline | null, number]} What it begins, and its length */
function special(text, at, mark, depth) {
  if (mark === SEAM) return [{ kind: "seam" }, 1];
  if (depth >= DEEPEST) return [null, mark.length];
  if (mark === "`") {
    const code = match(CODE, text, at);
    if (code) return [{ kind: "code", text: code[2].replaceAll("\n", " ") }, code[0].length];
    return [null, /^`+/.exec(text.slice(at, at + 100))?.[0].length ?? 1];
  }
  if (mark === "[") {
    const link = match(LINK, text, at);
    const href = link && safe(link[2]);
    return href ? [{ kind: "link", href, parts: inline(link[1], DEEPEST) }, link[0].length] : [null, 1];
  }
  if (mark.startsWith("http")) {
    const url = match(URL_, text, at);
    const href = url && safe(url[0]);
    return href
      ? [{ kind: "link", href, parts: [{ kind: "text", text: url[0] }] }, url[0].length]
      : [null, mark.length];
  }
  return emphasis(text, at, mark, depth);
}

/** @param {string} text @param {number} at @param {string} mark @param {number} depth @returns {[Inline | null, number]} */
function emphasis(text, at, mark, depth) {
  const double = text[at + 1] === mark;
  const fence = double ? mark + mark : mark;
  const from = at + fence.length;
  // snake_case and 2 * 3 are no emphasis.
  const opens = from < text.length && !/\s/.test(text[from]) && !(mark === "_" && WORD.test(text[at - 1] ?? ""));
  const to = opens ? closing(text, from, fence) : -1;
  if (to < 0) return [null, fence.length];
  const parts = inline(text.slice(from, to), depth + 1);
  return [{ kind: double ? "strong" : "em", parts }, to + fence.length - at];
}

/** Emphasis does not span more: a model that forgets to close it costs nothing. */
const FARTHEST = 600;

/** @param {string} text @param {number} from @param {string} fence */
function closing(text, from, fence) {
  const end = Math.min(text.length, from + FARTHEST);
  for (let at = from + 1; at < end; at += 1) {
    if (text[at] !== fence[0]) continue;
    let length = 1;
    while (text[at + length] === fence[0]) length += 1;
    const closes = length === fence.length || length === 3;
    const after = text[at + length] ?? "";
    if (closes && !/\s/.test(text[at - 1]) && !(fence[0] === "_" && WORD.test(after))) {
      return at + length - fence.length;
    }
    at += length - 1;
  }
  return -1;
}

/** @param {RegExp} sticky @param {string} text @param {number} at */
function match(sticky, text, at) {
  sticky.lastIndex = at;
  return sticky.exec(text);
}

/** @param {string} address @returns {string | null} */
function safe(address) {
  try {
    const url = new URL(address);
    return ["https:", "http:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}
