/** `/ready` of the gateway, apart from `/v1`: whoever only waits for a voice uses up nobody's questions. */

import handle from "./gateway.js";

export default handle;

export const config = { path: "/ready" };
