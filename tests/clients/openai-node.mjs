// openai-node through the proxy.

import OpenAI from 'openai';
import { Agent, fetch as undiciFetch } from 'undici';

import { abortOnLine, failure, forEachModel, main, order, weather } from './common.mjs';

const { url, model, stream = false, prompt = 'Say hi.' } = order;
const client = new OpenAI({ baseURL: url, apiKey: 'none', maxRetries: 0 });
const messages = [{ role: 'user', content: prompt }];
const short = { max_tokens: 8, temperature: 0 };

const parameters = {
  type: 'object',
  properties: { city: { type: 'string', enum: ['Paris', 'Oslo'] }, days: { type: 'integer' } },
  required: ['city', 'days'],
  additionalProperties: false,
};
const tool = (name) => ({ type: 'function', function: { name, description: name, parameters } });

async function readStream(completion) {
  const seen = { text: '', finish: null, usage: null, chunks: 0 };
  for await (const chunk of completion) {
    seen.chunks += 1;
    seen.text += chunk.choices[0]?.delta.content ?? '';
    seen.finish ??= chunk.choices[0]?.finish_reason ?? null;
    seen.usage ??= chunk.usage ?? null;
  }
  return seen;
}

/** One turn of an agent; the streamed one is put together by the SDK. */
async function turn(fields) {
  const chat = client.chat.completions;
  const { choices } = stream ? await chat.stream(fields).finalChatCompletion() : await chat.create(fields);
  return choices[0];
}

await main({
  async chat() {
    const { choices, usage } = await client.chat.completions.create({ model, messages, ...short });
    return { text: choices[0].message.content, finish: choices[0].finish_reason, usage };
  },

  async stream() {
    const options = { stream: true, stream_options: { include_usage: true } };
    return readStream(await client.chat.completions.create({ model, messages, ...short, ...options }));
  },

  /** A named tool is forced, its result is answered. */
  async forced() {
    const tools = [tool('get_news'), tool('get_weather')];
    const tool_choice = { type: 'function', function: { name: 'get_weather' } };
    const fields = { model, tools, max_tokens: 64, temperature: 0 };
    const { message, finish_reason } = await turn({ ...fields, messages, tool_choice });
    const { id, type, function: called } = message.tool_calls[0];
    const result = { role: 'tool', tool_call_id: id, content: weather(JSON.parse(called.arguments)) };
    const after = [...messages, message, result, { role: 'user', content: 'Hi.' }];
    const { message: answer } = await turn({ ...fields, messages: after, tools: tools.slice(1), tool_choice: 'none' });
    const calls = [{ id, type, name: called.name, input: JSON.parse(called.arguments) }];
    return { calls, finish: finish_reason, text: answer.content };
  },

  /** The SDK's own loop of an agent: it parses, calls and replays. */
  async agent() {
    const inputs = [];
    const run = (input) => (inputs.push(input), weather(input));
    const { function: described } = tool('get_weather');
    const tools = [{ type: 'function', function: { ...described, function: run, parse: JSON.parse } }];
    const runner = client.chat.completions.runTools({ model, messages, tools, stream });
    return { text: await runner.finalContent(), inputs };
  },

  errors: () =>
    forEachModel((model) =>
      failure(async () => {
        const completion = await client.chat.completions.create({ model, messages, stream });
        return stream ? readStream(completion) : completion;
      }),
    ),

  async cancel() {
    const signal = abortOnLine();
    return failure(async () => {
      const completion = await client.chat.completions.create({ model, messages, stream }, { signal });
      const told = stream ? await readStream(completion) : completion;
      // Aborted once it has begun, the SDK ends a stream without a word; before, it throws APIUserAbortError.
      if (signal.aborted) throw new DOMException('aborted', 'AbortError');
      return told;
    });
  },

  /** Waits for a slow answer, with Node's own fetch or with undici's and other limits than its 300 s. */
  async wait() {
    const { standin, limit_s } = order;
    let patient = client;
    if (limit_s) {
      const dispatcher = new Agent({ headersTimeout: limit_s * 1000, bodyTimeout: limit_s * 1000 });
      patient = client.withOptions({ fetch: undiciFetch, fetchOptions: { dispatcher } });
    }
    const began = performance.now();
    const fields = { model, messages, standin, stream: true };
    const outcome = await failure(async () =>
      readStream(await patient.chat.completions.create(fields, { timeout: 3_600_000 })),
    );
    return { ...outcome, waited_s: (performance.now() - began) / 1000 };
  },
});
