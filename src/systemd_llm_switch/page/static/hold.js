// The hold: the VRAM kept free for something else.

import { post } from "./api.js";
import { action, allow, onPress, role, setText, show } from "./dom.js";
import { lasting, moment, nowS } from "./format.js";
import { announce, attempt } from "./notices.js";

let isOn = null;
let until = null;

export function setUpHold() {
  const form = role("hold");
  const hold = action("hold");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const { minutes, pause } = form.elements;
    const body = minutes.value === "" ? { wait: false } : { minutes: Number(minutes.value), wait: false };
    attempt(hold, () => post("api/hold", pause.checked ? { ...body, pause: true } : body));
  });
  onPress(action("release"), () => attempt(action("release"), () => post("api/release", {})));
}

export function renderHold(status) {
  if (isOn !== null && isOn !== status.on_hold) announce(status.on_hold ? "On hold" : "The hold is over");
  isOn = status.on_hold;
  until = status.hold_until;
  allow(action("release"), isOn);
  show(role("hold-banner"), isOn);
  tickHold();
}

export function tickHold() {
  if (!isOn) return;
  const end = until === null ? "until somebody releases it" : `until ${moment(until)}, ${lasting(until - nowS())} to go`;
  setText(role("hold-banner"), `On hold ${end}. Requests are refused, the VRAM is free.`);
}
