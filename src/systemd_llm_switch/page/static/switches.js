// The last switches, the newest first, each with a bar for how long it took.

import { keyed, make, role, setText, show } from "./dom.js";
import { clock, milliseconds, splitError } from "./format.js";

const MOST_ROWS = 10;

export function renderSwitches(switches) {
  const newest = [...switches].reverse().slice(0, MOST_ROWS);
  const longest = Math.max(1, ...newest.map((it) => it.stop_ms + it.load_ms));
  show(role("switches-empty"), newest.length === 0);
  show(role("switches-legend"), newest.length > 0);
  keyed(role("switches"), newest, (it) => it.at, makeRow, (row, it) => {
    row.querySelector(".bar .stop").style.width = `${(100 * it.stop_ms) / longest}%`;
    row.querySelector(".bar .load").style.width = `${(100 * it.load_ms) / longest}%`;
    setText(row.querySelector('[data-part="took"]'), milliseconds(it.stop_ms + it.load_ms));
  });
}

function makeRow(it) {
  const from = it.from.join(", ");
  const words = it.to === null ? `${from || "nothing"} unloaded` : from ? `${from} → ${it.to}` : it.to;
  const bar = make("span", { class: "bar", "aria-hidden": "true" }, make("span", { class: "stop" }), make("span", { class: "load" }));
  const row = make("li", { class: it.error ? "failed" : null }, make("time", {}, clock(it.at)),
    make("span", { class: "grow" }, words, bar), make("span", { class: "time", "data-part": "took" }));
  row.title = `stop ${milliseconds(it.stop_ms)}, load ${milliseconds(it.load_ms)}`;
  if (it.error) row.querySelector(".grow").append(make("span", { class: "why" }, splitError(it.error).reason));
  return row;
}
