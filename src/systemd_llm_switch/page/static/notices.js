// What the person should notice: refusals to read, and changes for those who listen.

import { make, role, setText } from "./dom.js";
import { splitError } from "./format.js";

const MOST_NOTICES = 4;

/** Shows a message until it is closed. */
export function notice(text) {
  const list = role("notices");
  const close = make("button", { type: "button", class: "quiet", "aria-label": "Close this message" }, "Close");
  const node = make("div", { class: "notice" }, make("p", {}, text), close);
  close.addEventListener("click", () => node.remove());
  list.append(node);
  while (list.children.length > MOST_NOTICES) list.firstElementChild.remove();
}

/** Says a change to a screen reader, politely. */
export function announce(text) {
  setText(role("news"), text);
}

/** Runs what a button asks for; the button rests meanwhile, and a refusal is shown. */
export async function attempt(button, run) {
  if (button.getAttribute("aria-busy") === "true") return;
  button.setAttribute("aria-busy", "true");
  try {
    const answer = await run();
    if (answer?.warning) notice(answer.warning);
  } catch (error) {
    notice(error.name === "TypeError" ? "The proxy does not answer." : splitError(error.message).reason);
  } finally {
    button.removeAttribute("aria-busy");
  }
}
