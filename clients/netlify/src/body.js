/** A request's body, up to a limit. */

/**
 * The bytes, or null when there are more; those are not read.
 *
 * @param {Request} request @param {number} maxBytes
 * @returns {Promise<Uint8Array<ArrayBuffer> | null>}
 */
export async function readBody(request, maxBytes) {
  if (Number(request.headers.get("content-length")) > maxBytes) return null;
  const parts = [];
  let size = 0;
  for await (const part of request.body ?? []) {
    size += part.byteLength;
    if (size > maxBytes) return null;
    parts.push(part);
  }
  const body = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    body.set(part, at);
    at += part.byteLength;
  }
  return body;
}
