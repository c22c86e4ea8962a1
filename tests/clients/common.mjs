// What the scripts share: their order from the command line, their report on stdout as one JSON object.
//   node SCRIPT CASE '{"url": "http://…/v1", "model": "…", …}'

import { createInterface } from 'node:readline';
import { fetch } from 'undici';

// Node 18's own fetch forgets the signal of a request at the next garbage collection, so an abort may be lost.
if (parseInt(process.versions.node) < 20) globalThis.fetch = fetch;

let [, , name, text = '{}'] = process.argv;
let isServing = false;
export let order = JSON.parse(text);

/** The next order, of a process that serves one after the other. */
export function take(next) {
  ({ name } = next);
  order = next;
  isServing = true;
}

/** Runs one of the cases and prints what it returns. */
export async function main(cases) {
  console.log(JSON.stringify(await cases[name]()));
  if (!isServing) process.exit(0); // stdin may still be open
}

/** What a person is shown of an error. */
export function describe(error) {
  return {
    error: error.constructor.name,
    message: error.message,
    status: error.status ?? error.statusCode ?? null,
    cause: error.cause?.code ?? null,
  };
}

/** Runs a call that must fail. */
export async function failure(call) {
  try {
    return { unexpected: await call() };
  } catch (error) {
    return describe(error);
  }
}

/** What comes of each of the models in turn. */
export async function forEachModel(call) {
  const outcomes = {};
  for (const model of order.models) outcomes[model] = await call(model);
  return outcomes;
}

/** A signal that aborts as soon as a line comes on stdin. */
export function abortOnLine() {
  const controller = new AbortController();
  createInterface({ input: process.stdin }).once('line', () => controller.abort());
  return controller.signal;
}

export const weather = ({ city, days }) => `${days} days of rain in ${city}.`;
