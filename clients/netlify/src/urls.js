/** Addresses as people write them. */

const LOCAL = /^(localhost|127(\.\d+){3}|\[::1\])(:\d+)?(\/|$)/;

/**
 * A base URL without a slash at its end: `https://` where no scheme is written, `http://` for this machine.
 *
 * @param {string} text
 * @returns {string}
 * @throws {TypeError} It is no address of an HTTP server.
 */
export function baseUrl(text) {
  const written = text.trim();
  const scheme = LOCAL.test(written) ? "http" : "https";
  const url = new URL(/^[a-z][a-z0-9+.-]*:\/\//i.test(written) ? written : `${scheme}://${written}`);
  const isPlain = !url.username && !url.password && !url.search && !url.hash;
  if (!/^https?:$/.test(url.protocol) || !isPlain) throw new TypeError("not the address of an HTTP server");
  return url.href.replace(/\/+$/, "");
}

/**
 * The gateways of a list, in order; one that is written up to its `/v1` means the same.
 *
 * @param {string} list Separated by commas or spaces.
 */
export function gatewayUrls(list) {
  const written = list.split(/[\s,]+/).filter(Boolean);
  return written.map((one) => baseUrl(one).replace(/\/v1$/, ""));
}

/**
 * The prefix of an old Space's API: empty, or with a slash before and none after it.
 *
 * @param {string | undefined} text
 */
export function apiPrefix(text) {
  const inner = (text ?? "/gradio_api").trim().replace(/^\/+|\/+$/g, "");
  return inner && `/${inner}`;
}
