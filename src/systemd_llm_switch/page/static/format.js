// Numbers and times as people read them.

let clockAheadMs = 0;

/** The server's clock, by the `Date` of an answer: it says since when something lasts. */
export function noteServerTime(date) {
  const ahead = Date.parse(date ?? "") - Date.now();
  clockAheadMs = Math.abs(ahead) > 2000 ? ahead : 0;
}

export const nowS = () => (Date.now() + clockAheadMs) / 1000;

const two = (number) => String(number).padStart(2, "0");

export function clock(at) {
  const time = new Date(at * 1000);
  return `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
}

/** A moment, with its day if that is not today. */
export function moment(at) {
  const time = new Date(at * 1000);
  const isToday = time.toDateString() === new Date().toDateString();
  const short = `${two(time.getHours())}:${two(time.getMinutes())}`;
  return isToday ? short : `${time.toLocaleDateString(undefined, { day: "numeric", month: "short" })} ${short}`;
}

/** Whole seconds, minutes, hours or days. */
export function lasting(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function milliseconds(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1) return "0";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.floor(ms / 60_000)} min ${two(Math.floor((ms % 60_000) / 1000))} s`;
}

export const count = (number) => (number === null || number === undefined ? "–" : number.toLocaleString("en"));

export const rate = (number) => (number === null || number === undefined ? "–" : number.toFixed(1));

export function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = number;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value >= 10 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** An error's own words, and the journal's lines behind them, each on a line of its own. */
export function splitError(message) {
  const [reason, lines = ""] = message.split(" Last journal lines: ");
  return { reason, lines: lines.split(" | ").join("\n") };
}
