/** Short-lived tokens for pages that ask the gateway themselves; the gateway's docs/configuration.md defines them. */

/** @param {Uint8Array} bytes */
const base64url = (bytes) => btoa(String.fromCharCode(...bytes)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

/**
 * A token with these claims.
 *
 * @param {string} secret @param {{iat: number, exp: number, id: string, models?: string[], origin?: string}} claims
 */
export async function mint(secret, claims) {
  const encoder = new TextEncoder();
  const signed = `sive1.${base64url(encoder.encode(JSON.stringify(claims)))}`;
  const key = await hmacKey(secret, "sign");
  const mac = await crypto.subtle.sign("HMAC", key, encoder.encode(signed));
  return `${signed}.${base64url(new Uint8Array(mac))}`;
}

/**
 * The `id` of a token of ours, expired or not; null when it is none.
 *
 * @param {string} secret @param {string} token
 */
export async function idOf(secret, token) {
  const [version, claims, mac, ...more] = token.slice(0, 4096).split(".");
  if (version !== "sive1" || !mac || more.length) return null;
  try {
    const encoder = new TextEncoder();
    const key = await hmacKey(secret, "verify");
    const isOurs = await crypto.subtle.verify("HMAC", key, bytes(mac), encoder.encode(`${version}.${claims}`));
    return isOurs ? JSON.parse(new TextDecoder().decode(bytes(claims))).id : null;
  } catch {
    return null;
  }
}

/** @param {string} text */
const bytes = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (letter) => letter.charCodeAt(0));

/** @param {string} secret @param {"sign" | "verify"} use */
function hmacKey(secret, use) {
  return crypto.subtle.importKey("raw", new TextEncoder().encode(secret), { name: "HMAC", hash: "SHA-256" }, false, [use]);
}
