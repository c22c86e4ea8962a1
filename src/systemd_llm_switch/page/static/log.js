// The journal: the proxy's own lines and the units', as they come.

import { read } from "./api.js";
import { make, role } from "./dom.js";
import { clock } from "./format.js";
import { notice } from "./notices.js";

const MOST_LINES = 1000;
const FIRST_LINES = 200;
const PROXY = "\0proxy"; // no model is called so
const BATCH_MS = 100;

const select = document.querySelector('select[name="source"]');
let unitOf = {};
let pending = [];
let timer = null;

select.addEventListener("change", () => fill());

/** The choices: everything, the proxy, each model. */
export function renderSources(models) {
  unitOf = Object.fromEntries(Object.entries(models).map(([id, model]) => [id, model.unit]));
  const wanted = ["", PROXY, ...Object.keys(models)];
  const there = [...select.options].map((option) => option.value);
  if (wanted.join("\n") === there.join("\n")) return;
  const chosen = select.value;
  const label = (value) => (value === "" ? "everything" : value === PROXY ? "the proxy" : value);
  select.replaceChildren(...wanted.map((value) => make("option", { value }, label(value))));
  select.value = wanted.includes(chosen) ? chosen : "";
}

/** Shows one model's journal. */
export function openJournal(id) {
  select.value = id;
  fill();
  role("log").scrollIntoView({ block: "center" });
  role("log").focus({ preventScroll: true });
}

/** Asks for the last lines of what is chosen; what comes meanwhile follows them. */
export async function fill() {
  const chosen = select.value;
  const isUnit = chosen !== "" && chosen !== PROXY;
  pending = [];
  role("log").replaceChildren();
  try {
    const query = isUnit ? `&model=${encodeURIComponent(chosen)}` : "";
    const { lines } = await read(`api/logs?lines=${FIRST_LINES}${query}`);
    if (select.value !== chosen) return;
    const last = lines.at(-1)?.at ?? 0;
    pending = [...lines, ...pending.filter((line) => line.at > last)];
    flush();
  } catch (error) {
    notice(error.message);
  }
}

export function addLine(line) {
  if (!isChosen(line)) return;
  pending.push(line);
  timer ??= setTimeout(flush, BATCH_MS);
}

function isChosen(line) {
  const chosen = select.value;
  return chosen === "" || (chosen === PROXY ? line.unit === null : line.unit === unitOf[chosen]);
}

function flush() {
  clearTimeout(timer);
  timer = null;
  const list = role("log");
  const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 30;
  const lines = pending.slice(-MOST_LINES);
  pending = [];
  list.append(...lines.map(makeLine));
  while (list.children.length > MOST_LINES) list.firstElementChild.remove();
  if (isAtEnd) list.scrollTop = list.scrollHeight;
}

function makeLine(line) {
  const kind = line.priority <= 3 ? "bad" : line.priority === 4 ? "warn" : null;
  const source = line.unit === null ? "proxy" : line.unit.replace(/\.service$/, "");
  return make("div", { class: kind }, make("time", {}, clock(line.at)), make("span", { class: "unit" }, source),
    make("span", { class: "words" }, line.message));
}
