// Who waits, for what, and why.

import { post } from "./api.js";
import { keyed, make, onPress, role, setText, show } from "./dom.js";
import { lasting, nowS } from "./format.js";
import { attempt } from "./notices.js";

let known = [];

export function renderQueue(queue) {
  known = queue;
  show(role("queue-empty"), queue.length === 0);
  keyed(role("queue"), queue, (entry) => entry.id, makeRow, updateRow);
}

export function tickQueue() {
  for (const entry of known) {
    const row = role("queue").querySelector(`[data-key="${entry.id}"]`);
    if (row) updateRow(row, entry);
  }
}

function makeRow(entry) {
  const button = make("button", { type: "button", "data-action": "cancel",
    "aria-label": `Cancel request ${entry.id} for ${entry.model}` }, "Cancel");
  onPress(button, () => attempt(button, () => post("api/requests/cancel", { id: entry.id })));
  return make("li", { "data-request": entry.id }, make("strong", {}, entry.model),
    make("span", { class: "grow", "data-part": "why" }), make("span", { class: "time", "data-part": "time" }), button);
}

function updateRow(row, entry) {
  setText(row.querySelector('[data-part="why"]'), entry.reason);
  setText(row.querySelector('[data-part="time"]'), lasting(nowS() - entry.since));
}
