// Anthropic's Node SDK through the proxy.

import Anthropic from '@anthropic-ai/sdk';

import { failure, main, order } from './common.mjs';

const { url, model, tool, stream = false } = order;
const client = new Anthropic({ baseURL: url, apiKey: 'none', maxRetries: 0 });
const asked = [{ role: 'user', content: 'Rain in Oslo?' }];

const ask = (messages) => {
  const fields = { model, max_tokens: 99, tools: [tool], messages };
  return stream ? client.messages.stream(fields).finalMessage() : client.messages.create(fields);
};

await main({
  /** A call, and the answer to its result. */
  async round() {
    const { content, stop_reason: stop } = await ask(asked);
    const call = content.find(({ type }) => type === 'tool_use');
    const result = { type: 'tool_result', tool_use_id: call.id, content: '2 days of rain in Oslo.' };
    const answer = await ask([...asked, { role: 'assistant', content }, { role: 'user', content: [result] }]);
    return { input: call.input, stop, answer: answer.content[0].text };
  },

  fail: () => failure(() => ask(asked)),
});
