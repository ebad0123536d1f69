/** Asks as the page does, by its own client: `node page.mjs SITE CHAT_PATH MODEL QUESTION` prints the deltas as JSON. */

import { streamChat } from "../../clients/netlify/public/app/sive.mjs";

const [site, path, model, content] = process.argv.slice(2);
const browserless = globalThis.fetch;
// What a browser adds to each POST by itself.
globalThis.fetch = (url, init) => browserless(url, { ...init, headers: { ...init.headers, origin: site } });

const deltas = [];
let finish;
const asked = { url: `${site}/v1`, chatUrl: site + path, model, messages: [{ role: "user", content }], options: { temperature: 0 } };
for await (const text of streamChat({ ...asked, onFinish: (told) => (finish = told.reason) })) deltas.push(text);
console.log(JSON.stringify({ deltas, finish }));
