// Runs one case after the other, since to load the SDKs takes half a second of CPU time: an order a line on stdin, as
// {"script": "openai-node", "name": "chat", "url": …}, and its report a line on stdout.

import { createInterface } from 'node:readline';

import { take } from './common.mjs';

let count = 0;
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  take(order);
  try {
    await import(`./${order.script}.mjs?${(count += 1)}`); // anew for each order; what it imports stays
  } catch (error) {
    console.log(JSON.stringify({ crash: error.stack }));
  }
}
process.exit(0);
