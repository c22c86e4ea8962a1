// The models: one card each, kept up to date in place.

import { hasKey, openUpstream, post } from "./api.js";
import { allow, keyed, make, onPress, role, setText, show } from "./dom.js";
import { bytes, count, lasting, moment, nowS, rate, splitError } from "./format.js";
import { announce, attempt } from "./notices.js";

const MOST_RATES = 5; // replies whose tokens a second are averaged
const WORDS = {
  stopped: "not loaded",
  starting: "loading",
  ready: "ready",
  draining: "finishing its requests",
  stopping: "stopping",
  failed: "failed",
};
const ANNOUNCED = new Set(["ready", "failed", "stopped"]);

const rates = new Map();
let known = {};

/** A finished request says how fast its model wrote. Shown at once: no other status may come after it. */
export function noteRate(request) {
  if (request.tokens_per_s === null) return;
  const list = rates.get(request.model) ?? [];
  list.push(request.tokens_per_s);
  rates.set(request.model, list.slice(-MOST_RATES));
  const card = [...role("models").children].find((it) => it.dataset.model === request.model);
  if (card) showRate(card, request.model);
}

/** The last requests are about to be noted from the beginning. */
export const forgetRates = () => rates.clear();

export function renderModels(models, openJournal) {
  known = models;
  keyed(role("models"), Object.entries(models), ([id]) => id, ([id]) => makeCard(id, openJournal), updateCard);
}

/** Once a second: what only grows older. */
export function tickModels() {
  for (const card of role("models").children) {
    const model = known[card.dataset.model];
    if (model) showTimes(card, model);
  }
}

const part = (card, name) => card.querySelector(`[data-part="${name}"]`);

function fact(name, label) {
  return make("div", {}, make("dt", {}, label), make("dd", { "data-part": name }, "–"));
}

function makeCard(id, openJournal) {
  const button = (name, label, more = {}) => make("button", { type: "button", "data-action": name, ...more }, label);
  const load = button("load", "Load", { class: "main", "aria-label": `Load ${id}` });
  const unload = button("unload", "Unload", { "aria-label": `Unload ${id}` });
  const forget = button("forget", "Forget", { "aria-label": `Forget the contexts of ${id}` });
  const journal = button("journal", "Journal", { class: "quiet", "aria-label": `Journal of ${id}` });
  const card = make("article", { class: "card", "data-model": id, "aria-label": id },
    make("header", {}, make("h3", {}, id), make("span", { class: "state", "data-part": "state" })),
    make("div", { class: "loading", "data-part": "loading", hidden: "" },
      make("progress", { "data-part": "progress", "aria-label": `Loading ${id}` }),
      make("span", { "data-part": "progress-words" })),
    make("dl", {}, fact("since", "Since"), fact("rate", "Tokens/s"), fact("context", "Context kept"),
      fact("running", "Running"), fact("waiting", "Waiting"), fact("load", "Last load")),
    make("details", { class: "error", "data-part": "error", hidden: "", open: "" },
      make("summary", {}, "Last error"), make("p", { "data-part": "reason" }),
      make("pre", { "data-part": "lines", tabindex: "0", "aria-label": `Journal lines of ${id}'s last start` })),
    make("div", { class: "line" }, load, unload, forget, journal,
      make("a", { "data-part": "ui", target: "_blank", rel: "noopener", hidden: "",
        href: `upstream/${encodeURIComponent(id)}/` }, "Web UI", make("span", { class: "unseen" }, ` of ${id}`))));
  const ui = part(card, "ui");
  ui.addEventListener("click", (event) => {
    if (!hasKey()) return;
    event.preventDefault();
    attempt(ui, () => openUpstream(ui.href));
  });
  onPress(load, () => attempt(load, () => post("api/load", { model: id, wait: false })));
  onPress(unload, () => attempt(unload, () => post("api/unload", { model: id, force: isDraining(card), wait: false })));
  onPress(forget, () => attempt(forget, () => forgetContexts(id)));
  onPress(journal, () => openJournal(id));
  return card;
}

const isDraining = (card) => card.dataset.state === "draining";

async function forgetContexts(id) {
  const { bytes: size } = await post("api/contexts/forget", { model: id });
  announce(`The contexts of ${id} are forgotten: ${bytes(size)}`);
}

function updateCard(card, [id, model]) {
  const before = card.dataset.state;
  if (before !== model.state) {
    card.dataset.state = model.state;
    if (before && ANNOUNCED.has(model.state)) announce(`${id}: ${WORDS[model.state]}`);
  }
  setText(part(card, "state"), WORDS[model.state] ?? model.state);
  setText(part(card, "running"), count(model.in_flight));
  setText(part(card, "waiting"), count(model.waiting));
  setText(part(card, "load"), model.last_load_s === null ? "–" : `${model.last_load_s.toFixed(1)} s`);
  showRate(card, id);
  showContext(card, model.contexts);
  showError(card, model);
  showTimes(card, model);
  const isUp = ["ready", "draining"].includes(model.state);
  allow(card.querySelector('[data-action="load"]'), ["stopped", "failed"].includes(model.state));
  const unload = card.querySelector('[data-action="unload"]');
  allow(unload, isUp || model.state === "starting");
  setText(unload, isDraining(card) ? "Unload now" : "Unload");
  unload.setAttribute("aria-label", isDraining(card) ? `Unload ${id} now, and end its requests` : `Unload ${id}`);
  show(part(card, "ui"), isUp);
}

function showRate(card, id) {
  const list = rates.get(id);
  setText(part(card, "rate"), list ? rate(list.reduce((sum, it) => sum + it, 0) / list.length) : "–");
}

function showContext(card, contexts) {
  const node = part(card, "context");
  const kept = contexts?.kept ?? 0;
  setText(node, kept ? `${count(contexts.tokens)} tokens, ${bytes(contexts.bytes)}` : contexts?.supported ? "none yet" : "off");
  node.title = contexts?.why ?? "";
  allow(card.querySelector('[data-action="forget"]'), kept > 0);
}

function showError(card, model) {
  const box = part(card, "error");
  show(box, Boolean(model.last_error));
  const { reason, lines } = splitError(model.last_error ?? "");
  setText(part(card, "reason"), reason);
  setText(part(card, "lines"), lines);
  show(part(card, "lines"), lines !== "");
}

function showTimes(card, model) {
  const since = model.loaded_since;
  setText(part(card, "since"), since && ["ready", "draining"].includes(model.state) ? `${moment(since)} (${lasting(nowS() - since)})` : "–");
  const isLoading = model.state === "starting";
  show(part(card, "loading"), isLoading);
  if (isLoading) showProgress(card, model);
}

/** How far a load is, by how long the last one took. */
function showProgress(card, model) {
  const bar = part(card, "progress");
  const elapsed = model.loading_since ? Math.max(0, nowS() - model.loading_since) : 0;
  if (model.last_load_s) {
    bar.max = model.last_load_s;
    bar.value = Math.min(elapsed, model.last_load_s * 0.98);
  } else bar.removeAttribute("value");
  const usual = model.last_load_s ? ` of about ${lasting(Math.ceil(model.last_load_s))}` : "";
  setText(part(card, "progress-words"), `${lasting(elapsed)}${usual}`);
}
