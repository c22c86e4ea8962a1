// Server-sent events, read with fetch: EventSource cannot send a key.

import { ask, Refusal } from "./api.js";

const SILENCE_MS = 25_000; // the proxy sends a comment every ten seconds
const LONGEST_PAUSE_MS = 10_000;

/** Each event of a response's body, as {name, data}. `onBytes` is called whenever something came. */
export async function* eventsOf(response, onBytes = () => {}) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let name = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      onBytes();
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line === "") {
          if (data.length) yield { name: name || "message", data: data.join("\n") };
          name = "";
          data = [];
        } else if (line.startsWith("event:")) name = line.slice(6).trim();
        else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Follows the proxy's events while the tab can be seen, and connects again after a loss. */
export class Events {
  /** `handlers`: by event name; `onState` gets "live", "lost" or "paused" and a reason. */
  constructor(handlers, onState, onKeyRefused) {
    this.handlers = handlers;
    this.onState = onState;
    this.onKeyRefused = onKeyRefused;
    this.abort = null;
    this.pauseMs = 500;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stop("paused") : this.start()));
  }

  start() {
    if (this.abort || document.hidden) return;
    this.abort = new AbortController();
    this.run(this.abort);
  }

  stop(state) {
    this.abort?.abort();
    this.abort = null;
    this.onState(state, "");
  }

  async run(abort) {
    while (!abort.signal.aborted) {
      try {
        await this.follow(abort);
      } catch (error) {
        if (abort.signal.aborted) return;
        if (error instanceof Refusal && error.status === 401) {
          this.stop("lost");
          this.onKeyRefused();
          return;
        }
        this.onState("lost", error instanceof Refusal ? error.message : "the proxy does not answer");
      }
      await new Promise((resolve) => setTimeout(resolve, this.pauseMs));
      this.pauseMs = Math.min(this.pauseMs * 2, LONGEST_PAUSE_MS);
    }
  }

  async follow(abort) {
    const attempt = new AbortController();
    abort.signal.addEventListener("abort", () => attempt.abort());
    let timer = setTimeout(() => attempt.abort(), SILENCE_MS);
    const onBytes = () => {
      clearTimeout(timer);
      timer = setTimeout(() => attempt.abort(), SILENCE_MS);
    };
    try {
      const response = await ask("api/events", { signal: attempt.signal });
      for await (const { name, data } of eventsOf(response, onBytes)) {
        if (abort.signal.aborted) return;
        if (name === "status") {
          this.pauseMs = 500;
          this.onState("live", "");
        }
        this.handlers[name]?.(JSON.parse(data));
      }
      this.onState("lost", "the proxy ended the connection");
    } finally {
      clearTimeout(timer);
    }
  }
}
