/** Nodes for what `markdown.mjs` read. Text only ever becomes text: there is no HTML to be had. */

/** @import {Block, Inline} from "./markdown.mjs" */

/**
 * An element with properties, attributes (`aria-…`, `data-…`, `role`) and children.
 *
 * @template {keyof HTMLElementTagNameMap} Name
 * @param {Name} name @param {Record<string, unknown>} [given] @param {(Node | string | null)[]} children
 * @returns {HTMLElementTagNameMap[Name]}
 */
export function element(name, given = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (key in made && !key.includes("-")) Reflect.set(made, key, value);
    else made.setAttribute(key, String(value));
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** The nodes of a text that grows: blocks that did not change keep their nodes. */
export class Rendering {
  /** @type {string[]} */
  #sources = [];

  /** @param {HTMLElement} place @param {string} seam What the mark of a resumed answer says. */
  constructor(place, seam) {
    this.place = place;
    this.seam = seam;
  }

  /** @param {Block[]} blocks @param {number} settled So many are as they were. */
  show(blocks, settled) {
    for (let at = Math.min(settled, this.#sources.length); at < blocks.length; at += 1) {
      if (this.#sources[at] === blocks[at].source) continue;
      const node = this.#block(blocks[at]);
      const old = this.place.children[at];
      if (old) old.replaceWith(node);
      else this.place.append(node);
      this.#sources[at] = blocks[at].source;
    }
    this.#sources.length = blocks.length;
    while (this.place.children.length > blocks.length) this.place.lastElementChild?.remove();
  }

  /** @param {Block} block @returns {HTMLElement} */
  #block(block) {
    switch (block.kind) {
      case "code":
        return element("pre", { tabIndex: 0 }, element("code", {}, block.text.replaceAll("\uE000", "")));
      case "rule":
        return element("hr");
      case "list":
        return element(
          block.ordered ? "ol" : "ul",
          {},
          ...block.items.map((item) => {
            const made = element("li", { dir: "auto", "data-depth": item.depth }, ...this.#inline(item.parts));
            if (block.ordered && item.depth === 0) made.value = parseInt(item.marker, 10);
            return made;
          }),
        );
      case "heading":
        // The page's own headings stand above: an answer may not open a new chapter of it.
        return element("p", { dir: "auto", className: "heading" }, ...this.#inline(block.parts));
      case "quote":
        return element("blockquote", { dir: "auto" }, ...this.#inline(block.parts));
      default:
        return element("p", { dir: "auto" }, ...this.#inline(block.parts));
    }
  }

  /** @param {Inline[]} parts @returns {(Node | string)[]} */
  #inline(parts) {
    return parts.map((part) => {
      switch (part.kind) {
        case "text":
          return part.text;
        case "code":
          return element("code", {}, part.text.replaceAll("\uE000", ""));
        case "seam":
          return element("span", { className: "seam", role: "img", "aria-label": this.seam, title: this.seam });
        case "link":
          return element(
            "a",
            { href: part.href, target: "_blank", rel: "noopener noreferrer nofollow" },
            ...this.#inline(part.parts),
          );
        default:
          return element(part.kind, {}, ...this.#inline(part.parts));
      }
    });
  }
}
