// The page: asks for a key if one is needed, follows the proxy's events, and hands each part what it shows.

import { dropKey, hasKey, keepKey, read } from "./api.js";
import { renderChoices, setUpChat } from "./chat.js";
import { action, onPress, role, setText, show } from "./dom.js";
import { Events } from "./events.js";
import { renderHold, setUpHold, tickHold } from "./hold.js";
import { addLine, fill, openJournal, renderSources } from "./log.js";
import { forgetRates, noteRate, renderModels, tickModels } from "./models.js";
import { notice } from "./notices.js";
import { renderQueue, tickQueue } from "./queue.js";
import { addRequest, clearRequests, renderRepairs } from "./requests.js";
import { renderSwitches } from "./switches.js";
import { renderVram } from "./vram.js";

const FIRST_REQUESTS = 50;
const CONNECTION = { waiting: "connecting", live: "live", lost: "not connected", paused: "paused" };

let isFilled = false;

const events = new Events(
  { status: showStatus, request: noteRequest, log: addLine },
  showConnection,
  askForKey,
);

function showStatus(status) {
  show(role("key"), false);
  show(role("seat"), true);
  renderModels(status.models, openJournal);
  renderQueue(status.queue);
  renderSwitches(status.switches);
  renderHold(status);
  renderRepairs(status.repairs);
  renderChoices(status.models);
  renderSources(status.models);
  renderVram(status.models);
  showConfig(status.config);
  show(role("metrics"), !hasKey()); // a link cannot send the key
  showTitle(status);
  if (!isFilled) fillHistory();
}

function noteRequest(request) {
  noteRate(request);
  addRequest(request);
}

/** What happened before the page was connected. */
async function fillHistory() {
  isFilled = true;
  fill();
  try {
    const requests = await read(`api/requests?limit=${FIRST_REQUESTS}`);
    clearRequests();
    forgetRates();
    requests.reverse().forEach(noteRequest);
  } catch (error) {
    notice(error.message);
  }
}

function showConnection(state, reason) {
  const node = role("connection");
  node.dataset.state = state;
  setText(node, reason ? `${CONNECTION[state]}: ${reason}` : CONNECTION[state]);
  if (state !== "live") isFilled = false;
}

function showConfig(config) {
  setText(role("config"), config.error ? `The last good config is in force. ${config.path}: ${config.error}` : `Config: ${config.path}`);
  role("config").classList.toggle("bad", Boolean(config.error));
}

function showTitle(status) {
  const ready = Object.entries(status.models).filter(([, model]) => model.state === "ready").map(([id]) => id);
  const words = status.on_hold ? "on hold" : ready.join(", ");
  const title = words ? `${words} · llm-switch` : "llm-switch";
  if (document.title !== title) document.title = title;
}

function askForKey() {
  setText(role("key-error"), hasKey() ? "This key is not valid." : "");
  dropKey();
  show(action("forget-key"), false);
  show(role("seat"), false);
  show(role("key"), true);
  role("key").elements.api_key.focus();
}

function setUpKey() {
  const form = role("key");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    keepKey(form.elements.api_key.value.trim());
    form.elements.api_key.value = "";
    show(action("forget-key"), true);
    events.start();
  });
  show(action("forget-key"), hasKey());
  onPress(action("forget-key"), () => {
    dropKey();
    location.reload();
  });
}

function tick() {
  tickModels();
  tickQueue();
  tickHold();
}

setUpKey();
setUpHold();
setUpChat();
setInterval(tick, 1000);
events.start();
