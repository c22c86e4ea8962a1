// Requests to the proxy, with the key of this tab if it has one.

import { noteServerTime } from "./format.js";

const KEY = "llm-switch.key";

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const keepKey = (key) => sessionStorage.setItem(KEY, key);
export const dropKey = () => sessionStorage.removeItem(KEY);

/** What the proxy refused, in its own words. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The key's bytes, one character each: fetch takes no others. */
const asHeader = (key) => String.fromCharCode(...new TextEncoder().encode(key));

/** The proxy's response to `path`, which is relative to the page. Throws Refusal for an error status. */
export async function ask(path, { body, signal, credentials = "omit" } = {}) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key !== null) headers.Authorization = `Bearer ${asHeader(key)}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
    cache: "no-store",
    credentials,
  });
  noteServerTime(response.headers.get("Date"));
  if (!response.ok) throw new Refusal(response.status, await reasonOf(response));
  return response;
}

export const read = async (path) => (await ask(path)).json();

export const post = async (path, body) => (await ask(path, { body })).json();

/** Opens a model's own page in a new tab. It cannot send a key: with one, the proxy gives this browser a pass first. */
export async function openUpstream(link) {
  const tab = window.open("about:blank", "_blank");
  try {
    await ask("api/upstream-pass", { body: {}, credentials: "same-origin" });
  } catch (error) {
    tab?.close();
    throw error;
  }
  if (tab) {
    tab.opener = null;
    tab.location.href = link;
  } else location.href = link;
}

async function reasonOf(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return text.slice(0, 500) || `status ${response.status}`;
  }
}
