/** How much one visitor may ask. */

const MAX_VISITORS = 10_000;
const MINUTE_MS = 60_000;

/**
 * A bucket for each address, which fills up again within a minute.
 *
 * It lives in one instance of a function: Netlify runs as many as it likes and forgets them when it likes, so
 * this stops a stuck page or a bored visitor, and no attacker. Netlify's own `rateLimit` (in each function's
 * `config`) counts for the whole site.
 */
export class Limiter {
  /** @type {Map<string, {left: number, at: number}>} By address, the one that asked last at the end. */
  #buckets = new Map();

  /** @param {() => number} [now] Milliseconds. */
  constructor(now = Date.now) {
    this.now = now;
  }

  /**
   * Take one of so many a minute.
   *
   * @param {string} address @param {number} perMinute
   * @returns {number} 0, or the seconds after which there is one again.
   */
  take(address, perMinute) {
    const visitor = network(address);
    const now = this.now();
    const bucket = this.#buckets.get(visitor) ?? { left: perMinute, at: now };
    const left = Math.min(perMinute, bucket.left + ((now - bucket.at) * perMinute) / MINUTE_MS);
    this.#buckets.delete(visitor);
    this.#buckets.set(visitor, { left: left < 1 ? left : left - 1, at: now });
    if (this.#buckets.size > MAX_VISITORS) this.#forget();
    return left < 1 ? Math.ceil(((1 - left) * MINUTE_MS) / perMinute / 1000) : 0;
  }

  /** The visitor who asked longest ago. */
  #forget() {
    for (const [visitor] of this.#buckets) return this.#buckets.delete(visitor);
  }
}

/** A visitor has one IPv4 address, but a whole /64 of IPv6. @param {string} address */
export function network(address) {
  if (!address.includes(":") || address.includes(".")) return address;
  const [head, tail] = address.split("::");
  const groups = head.split(":").filter(Boolean);
  if (tail === undefined) return groups.slice(0, 4).join(":");
  const after = tail.split(":").filter(Boolean);
  const zeros = Array(Math.max(0, 8 - groups.length - after.length)).fill("0");
  return [...groups, ...zeros, ...after].slice(0, 4).join(":");
}
