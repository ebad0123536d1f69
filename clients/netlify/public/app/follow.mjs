/** Keeps the end of a growing text in view, until the reader looks elsewhere. */

const NEAR_PX = 64;
const UPWARDS = new Set(["PageUp", "ArrowUp", "Home"]);

export class Follow {
  isOn = true;
  #top = 0;
  #touchY = 0;

  /** @param {HTMLElement} log @param {HTMLButtonElement} latest Leads back to the end. */
  constructor(log, latest) {
    this.log = log;
    this.latest = latest;
    log.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    // Who begins to scroll up says so before anything has moved; else the next word would pull them down again.
    log.addEventListener("wheel", (event) => event.deltaY < 0 && this.#leave(), { passive: true });
    log.addEventListener("keydown", (event) => UPWARDS.has(event.key) && this.#leave());
    log.addEventListener("touchstart", (event) => (this.#touchY = event.touches[0].clientY), { passive: true });
    log.addEventListener("touchmove", (event) => event.touches[0].clientY > this.#touchY && this.#leave(), { passive: true });
    latest.addEventListener("click", () => this.toEnd());
  }

  /** The text has grown. */
  grown() {
    if (this.isOn) this.#down();
    else this.#show();
  }

  toEnd() {
    this.isOn = true;
    this.#down();
    this.#show();
  }

  #down() {
    this.log.scrollTop = this.log.scrollHeight;
    this.#top = this.log.scrollTop;
  }

  #leave() {
    if (this.log.scrollHeight <= this.log.clientHeight) return;
    this.isOn = false;
    this.#show();
  }

  #scrolled() {
    const top = this.log.scrollTop;
    if (top < this.#top - 2) this.isOn = false;
    // Only who came down by themselves: news of our own scrolling may come after somebody began to scroll up.
    if (this.#fromEnd() < NEAR_PX && top > this.#top) this.isOn = true;
    this.#top = top;
    this.#show();
  }

  #fromEnd() {
    return this.log.scrollHeight - this.log.clientHeight - this.log.scrollTop;
  }

  #show() {
    this.latest.hidden = this.isOn || this.#fromEnd() < NEAR_PX;
  }
}
