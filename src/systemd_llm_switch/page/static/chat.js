// The chat: one conversation with a model, to try it.

import { ask } from "./api.js";
import { action, allow, make, onPress, role, setText, show } from "./dom.js";
import { eventsOf } from "./events.js";
import { count, milliseconds, rate } from "./format.js";

const SAMPLE_TOOL = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Returns the weather of a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

const form = role("chat");
let messages = [];
let running = null; // the AbortController of the reply under way
let shown = null; // the reply on display

export function setUpChat() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  form.elements.prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
  });
  onPress(action("stop"), () => running?.abort());
  onPress(action("clear"), clear);
}

/** The choice of models; what was chosen stays chosen. */
export function renderChoices(models) {
  const select = form.elements.model;
  const ids = Object.keys(models);
  if ([...select.options].map((option) => option.value).join("\n") === ids.join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(...ids.map((id) => make("option", { value: id }, id)));
  const ready = ids.find((id) => models[id].state === "ready");
  select.value = ids.includes(chosen) ? chosen : (ready ?? ids[0] ?? "");
}

async function send() {
  const prompt = form.elements.prompt.value.trim();
  const model = form.elements.model.value;
  if (running || !prompt || !model) return;
  keepShown();
  form.elements.prompt.value = "";
  messages.push({ role: "user", content: prompt });
  const reply = { model, prompt, answer: "", reasoning: "", calls: [], began: performance.now() };
  const own = new AbortController();
  shown = reply;
  running = own;
  allow(action("send"), false);
  allow(action("stop"), true);
  display(reply);
  setText(role("chat-state"), `${model} is asked`);
  let words;
  try {
    await receive(reply, own.signal);
    words = summary(reply);
  } catch (error) {
    words = own.signal.aborted ? "Stopped." : `Failed: ${error.message}`;
  }
  if (running === own) finish(reply, words); // else a new conversation has begun
}

function finish(reply, words) {
  setIdle();
  setText(role("chat-state"), words);
  remember(reply);
}

function setIdle() {
  running = null;
  allow(action("send"), true);
  allow(action("stop"), false);
}

async function receive(reply, signal) {
  const body = { model: reply.model, messages, stream: true, stream_options: { include_usage: true } };
  if (form.elements.tool.checked) body.tools = [SAMPLE_TOOL];
  const response = await ask("v1/chat/completions", { body, signal });
  for await (const { data } of eventsOf(response)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    take(reply, chunk);
    display(reply);
  }
}

function take(reply, chunk) {
  reply.usage = chunk.usage ?? reply.usage;
  reply.timings = chunk.timings ?? reply.timings;
  const delta = chunk.choices?.[0]?.delta ?? {};
  if (delta.content || delta.reasoning_content || delta.tool_calls) reply.firstMs ??= performance.now() - reply.began;
  reply.answer += delta.content ?? "";
  reply.reasoning += delta.reasoning_content ?? "";
  for (const part of delta.tool_calls ?? []) {
    const call = (reply.calls[part.index ?? 0] ??= { id: "", name: "", arguments: "" });
    call.id ||= part.id ?? "";
    call.name += part.function?.name ?? "";
    call.arguments += part.function?.arguments ?? "";
  }
}

function display(reply) {
  show(role("reply"), true);
  setText(role("asked"), reply.prompt);
  setText(role("answer"), reply.answer);
  setText(role("reasoning"), reply.reasoning);
  show(role("thoughts"), reply.reasoning !== "");
  role("calls").replaceChildren(...reply.calls.map((call) => make("li", {}, make("strong", {}, call.name), " ", make("code", {}, call.arguments))));
}

function summary(reply) {
  const parts = [reply.model];
  if (reply.firstMs !== undefined) parts.push(`first token after ${milliseconds(reply.firstMs)}`);
  if (reply.usage?.completion_tokens) parts.push(`${count(reply.usage.completion_tokens)} tokens`);
  if (reply.timings?.predicted_per_second) parts.push(`${rate(reply.timings.predicted_per_second)} tokens/s`);
  if (reply.answer === "" && reply.calls.length === 0) parts.push("an empty answer");
  return parts.join(" · ");
}

/** A call is answered at once, so that the conversation can go on. */
function remember(reply) {
  const calls = reply.calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } }));
  if (!reply.answer && calls.length === 0) {
    messages.pop();
    return;
  }
  messages.push({ role: "assistant", content: reply.answer, ...(calls.length ? { tool_calls: calls } : {}) });
  for (const call of calls) messages.push({ role: "tool", tool_call_id: call.id, content: '{"weather": "sunny, 21 °C"}' });
}

/** The reply on display becomes one of the earlier turns. */
function keepShown() {
  if (!shown) return;
  const turn = make("div", { class: "turn" }, make("p", { class: "asked" }, shown.prompt), make("div", { class: "words" }, shown.answer));
  for (const call of shown.calls) turn.append(make("p", { class: "call" }, make("strong", {}, call.name), " ", make("code", {}, call.arguments)));
  role("turns").append(turn);
  shown = null;
}

function clear() {
  running?.abort();
  setIdle();
  messages = [];
  shown = null;
  role("turns").replaceChildren();
  show(role("reply"), false);
  setText(role("answer"), "");
  setText(role("chat-state"), "");
  form.elements.prompt.focus();
}
