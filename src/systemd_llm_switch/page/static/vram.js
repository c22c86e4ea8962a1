// How much VRAM is in use: asked for when models come and go, since nobody reports it.

import { read } from "./api.js";
import { role, setText } from "./dom.js";

const SETTLE_MS = 1500; // a driver frees memory a moment after a process has ended

let known = null;
let timer = null;

/** Asks anew if a model's state has changed. */
export function renderVram(models) {
  const states = Object.values(models).map((model) => model.state).join();
  if (states === known) return;
  known = states;
  clearTimeout(timer);
  timer = setTimeout(ask, SETTLE_MS);
}

const gib = (bytes) => (bytes / 2 ** 30).toFixed(1);

async function ask() {
  try {
    const { cards } = await read("api/vram");
    const words = cards.map((card) => `${gib(card.used_bytes)} of ${gib(card.total_bytes)} GiB`);
    setText(role("vram"), `VRAM ${words.join(", ") || "not known"}`);
    role("vram").title = cards.map((card) => card.name).join(", ");
  } catch {
    setText(role("vram"), "VRAM not known");
  }
}
