/** Asks for a key. */

import { part } from "./parts.mjs";

/** @param {boolean} isWrong The one before was refused. @returns {Promise<string>} */
export async function askKey(isWrong) {
  const door = part("door", HTMLDialogElement);
  const key = part("door-key", HTMLInputElement);
  part("door-wrong", HTMLElement).hidden = !isWrong;
  key.value = "";
  door.showModal();
  await new Promise((resolve) => door.addEventListener("close", resolve, { once: true }));
  return key.value.trim();
}
