// Runs one case by its name. The surroundings come from tests/integration/clients.rs: LLM_BRIDGE_BIN, the daemon's
// binary; CLIENT_MODULES, a directory with node_modules.

import { cleanUp } from "../browser/harness.mjs";
import * as openai from "./openai.mjs";
import * as aiSdk from "./ai-sdk.mjs";
import * as eventSource from "./event-source.mjs";

/** Longer than any wait within a case. */
const DEADLINE_MS = 150_000;

const cases = { ...openai, ...aiSdk, ...eventSource };
const name = process.argv[2];
if (!Object.hasOwn(cases, name)) {
  console.error(`no case ${name}; there are ${Object.keys(cases).join(", ")}`);
  process.exit(2);
}

const deadline = new Promise((_, reject) => setTimeout(() => reject(new Error("the case takes too long")), DEADLINE_MS).unref());
let status = 0;
try {
  await Promise.race([cases[name](), deadline]);
} catch (error) {
  console.error(error);
  status = 1;
}
await Promise.race([cleanUp(), new Promise(resolve => setTimeout(resolve, 20_000).unref())]);
process.exit(status);
