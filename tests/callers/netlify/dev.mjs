/**
 * A site in Netlify's own local runtime, offline: `node dev.mjs PLACE SITE` prints where it listens.
 *
 * PLACE has node_modules with @netlify/dev. Edge functions are left out, since they need Deno and a download.
 */

import { createServer } from "node:http";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pathToFileURL } from "node:url";

const [place, projectRoot] = process.argv.slice(2);
const { NetlifyDev } = await import(pathToFileURL(join(place, "node_modules/@netlify/dev/dist/main.js")).href);

const off = { enabled: false };
const site = new NetlifyDev({
  projectRoot,
  blobs: off,
  database: off,
  edgeFunctions: off,
  environmentVariables: off,
  geolocation: off,
  images: off,
  server: off,
});

const listener = createServer(async (incoming, outgoing) => {
  const hasBody = incoming.method === "POST";
  const request = new Request(new URL(incoming.url, `http://${incoming.headers.host}`), {
    method: incoming.method,
    headers: incoming.headers,
    ...(hasBody ? { body: Readable.toWeb(incoming), duplex: "half" } : {}),
  });
  const response = (await site.handle(request)) ?? new Response("not found", { status: 404 });
  outgoing.writeHead(response.status, Object.fromEntries(response.headers));
  if (!response.body) return outgoing.end();
  Readable.fromWeb(response.body).on("error", () => outgoing.destroy()).pipe(outgoing);
});
listener.listen(0, "127.0.0.1", async () => {
  await site.start();
  console.log(`http://127.0.0.1:${listener.address().port}`);
});
