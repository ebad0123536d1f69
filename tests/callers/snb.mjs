/** Calls the drop-in as an old site does: `node snb.mjs PHILOSOPHER CONTEXT MESSAGE` prints what it was told, as JSON. */

import { callSNB, streamSNB } from "../../clients/netlify/src/prompts.js";

const asked = process.argv.slice(2);
const told = [];
const after = (/** @type {any} */ error) => ({ name: error.name, message: error.message, text: error.text });
try {
  const streamed = await streamSNB(...asked, { onDelta: (delta, text) => told.push([delta, text]) });
  console.log(JSON.stringify({ told, streamed, whole: await callSNB(...asked) }));
} catch (error) {
  console.log(JSON.stringify({ told, error: after(error) }));
}
