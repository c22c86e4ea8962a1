// The last requests: numbers and names, never what was asked or answered.

import { make, role, setText, show } from "./dom.js";
import { clock, count, milliseconds, rate } from "./format.js";

const MOST_ROWS = 50;

export function addRequest(it) {
  const table = role("requests");
  table.prepend(makeRow(it));
  while (table.rows.length > MOST_ROWS) table.deleteRow(-1);
  show(role("requests-empty"), false);
}

export function clearRequests() {
  role("requests").replaceChildren();
  show(role("requests-empty"), true);
}

export function renderRepairs(repairs) {
  const parts = Object.entries(repairs).map(([kind, number]) => `${kind} ${count(number)}`);
  setText(role("repairs"), parts.length ? `Repairs since the start: ${parts.join(", ")}` : "");
}

function makeRow(it) {
  const number = (text) => make("td", { class: "number" }, text);
  const cached = it.cached_tokens ? ` (${count(it.cached_tokens)})` : "";
  const status = make("td", {}, make("span", { class: it.status < 400 ? "good" : "bad" }, String(it.status)),
    it.error ? ` ${it.error}` : "");
  return make("tr", {}, make("td", {}, clock(it.at)), make("th", { scope: "row" }, it.model || "–"),
    make("td", {}, it.path.replace(/^\/v1\//, "")), status, number(milliseconds(it.queue_ms)),
    number(milliseconds(it.switch_ms)), number(milliseconds(it.first_token_ms)), number(milliseconds(it.backend_ms)),
    number(`${count(it.prompt_tokens)}${cached}`), number(count(it.completion_tokens)), number(rate(it.tokens_per_s)),
    number(it.repairs ? count(it.repairs) : "–"));
}
