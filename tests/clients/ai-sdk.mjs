// The Vercel AI SDK through the proxy.

import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, Output, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';

import { abortOnLine, failure, forEachModel, main, order, weather } from './common.mjs';

const { url, stream = false, prompt = 'Say hi.' } = order;
const provider = createOpenAICompatible({
  name: 'proxy',
  baseURL: url,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider(order.model);
const asked = { model, prompt, maxRetries: 0 };
const short = { maxOutputTokens: 8, temperature: 0 };

const inputSchema = z.object({ city: z.enum(['Paris', 'Oslo']), days: z.number().int() });

/** What either way of asking comes to; an error of a stream is thrown as a plain request's is. */
async function ask(fields) {
  const told = { ...asked, ...fields };
  let result;
  if (stream) {
    result = streamText({ ...told, onError: () => {} });
    for await (const part of result.fullStream) {
      if (part.type === 'error') throw part.error;
      if (part.type === 'abort') throw new DOMException('aborted', 'AbortError');
    }
  } else {
    result = await generateText(told);
  }
  const [text, reasoning, finish, steps] = [result.text, result.reasoningText, result.finishReason, result.steps];
  return { text: await text, reasoning: (await reasoning) ?? null, finish: await finish, steps: await steps, result };
}

/** An agent of two steps: calls, then words. */
async function twoSteps(names, fields) {
  const inputs = [];
  const execute = async (input) => (inputs.push(input), weather(input));
  const tools = Object.fromEntries(names.map((name) => [name, tool({ description: name, inputSchema, execute })]));
  const { text, steps } = await ask({ tools, stopWhen: stepCountIs(2), ...fields });
  const calls = steps[0].toolCalls.map(({ toolCallId, toolName, input, invalid }) => ({
    id: toolCallId,
    name: toolName,
    input,
    invalid: Boolean(invalid),
  }));
  return { calls, inputs, finish: steps[0].finishReason, text };
}

await main({
  async chat() {
    const { text, reasoning, finish, result } = await ask(short);
    const { inputTokens, outputTokens } = await result.usage;
    return { text, reasoning, finish, usage: { prompt_tokens: inputTokens, completion_tokens: outputTokens } };
  },

  forced: () =>
    twoSteps(['get_news', 'get_weather'], {
      toolChoice: { type: 'tool', toolName: 'get_weather' },
      prepareStep: ({ stepNumber, messages }) =>
        stepNumber > 0
          ? { toolChoice: 'none', activeTools: ['get_weather'], messages: [...messages, { role: 'user', content: 'Hi.' }] }
          : undefined,
      maxOutputTokens: 64,
      temperature: 0,
    }),

  agent: () => twoSteps(['get_weather'], {}),

  objects: () =>
    forEachModel(async (model) => {
      const output = Output.object({ schema: inputSchema });
      const { result } = await ask({ model: provider(model), output, maxOutputTokens: 64, temperature: 0 });
      return result.output;
    }),

  errors: () => forEachModel((model) => failure(() => ask({ model: provider(model) }))),

  cancel: () => failure(() => ask({ abortSignal: abortOnLine() })),
});
