/** The edge function in Deno, which is what Netlify runs it in: `deno run ... edge.mjs` prints where it listens. */

import * as gateway from "../../clients/netlify/netlify/edge-functions/gateway.js";
import * as ready from "../../clients/netlify/netlify/edge-functions/ready.js";

const functions = [gateway, ready].map(({ default: handle, config }) => ({ handle, path: new URLPattern({ pathname: config.path }) }));

Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: ({ port }) => console.log(`http://127.0.0.1:${port}`) }, (request, info) => {
  const found = functions.find(({ path }) => path.test(request.url));
  if (!found) return new Response("not found", { status: 404 });
  return found.handle(request, { ip: info.remoteAddr.hostname });
});
