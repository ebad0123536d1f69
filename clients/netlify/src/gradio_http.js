/** Requests to a Gradio app, and what can be wrong with its replies. */

/** The app refuses or fails. `status`: of its reply, 502 when it fails later. */
export class GradioError extends Error {
  /** @param {string} message @param {number} [status] */
  constructor(message, status = 502) {
    super(message);
    this.status = status;
  }
}

/** @param {unknown} body @param {string | undefined} key @returns {RequestInit} */
export function posted(body, key) {
  return { method: "POST", headers: { "content-type": "application/json", ...authorization(key) }, body: JSON.stringify(body) };
}

/** @param {string | undefined} key @returns {Record<string, string>} */
export const authorization = (key) => (key ? { authorization: `Bearer ${key}` } : {});

/** What to wait for. @param {Response} reply @param {string} name @returns {Promise<string>} */
export async function eventId(reply, name) {
  if (!reply.ok) throw new GradioError(`the Space refuses ${name} with HTTP ${reply.status}`, reply.status);
  const { event_id: id } = await reply.json().catch(() => ({}));
  if (!id) throw new GradioError(`the Space has taken ${name} and gives no event to wait for`);
  return id;
}
