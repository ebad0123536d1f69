/** Refusals, in the shape that every OpenAI client understands. */

/** What is told of an error. @param {string} message @param {number} status @param {string} code */
export function errorObject(message, status, code) {
  const type = status < 500 ? "invalid_request_error" : "server_error";
  return { error: { message, type, param: null, code } };
}

/** @param {number} status @param {string} code @param {string} message @param {Record<string, string>} [headers] */
export function refusal(status, code, message, headers = {}) {
  const body = JSON.stringify(errorObject(message, status, code));
  return new Response(body, {
    status,
    headers: { "content-type": "application/json", "cache-control": "no-store", ...headers },
  });
}
