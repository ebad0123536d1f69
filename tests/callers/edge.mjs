/** The edge function in Deno, which is what Netlify runs it in: `deno run ... edge.mjs` prints where it listens. */

import handle, { config } from "../../clients/netlify/netlify/edge-functions/gateway.js";

const paths = config.path.map((path) => new URLPattern({ pathname: path }));

Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: ({ port }) => console.log(`http://127.0.0.1:${port}`) }, (request, info) => {
  if (!paths.some((path) => path.test(request.url))) return new Response("not found", { status: 404 });
  return handle(request, { ip: info.remoteAddr.hostname });
});
