// Runs one case by its folder and name. The surroundings come from the integration tests: LLM_BRIDGE_BIN, the daemon's
// binary; LLM_BRIDGE_PORTS, the ports that are this case's alone, such as 10000..10032; BROWSER_MODULES or CLIENT_MODULES,
// a directory with node_modules; BROWSER_ADDRESS, where browser/browser.mjs is listening.

import { cleanUp } from "./browser/harness.mjs";

/** Longer than any wait within a case. */
const DEADLINE_MS = 150_000;

const [folder, name] = process.argv.slice(2);
const cases = await import(`./${folder}/cases.mjs`);
if (!Object.hasOwn(cases, name)) {
  console.error(`no case ${name}; there are ${Object.keys(cases).join(", ")}`);
  process.exit(2);
}

const deadline = new Promise((_, reject) => setTimeout(() => reject(new Error("the case takes too long")), DEADLINE_MS).unref());
// A promise that fails before the case looks at it must not end this process: the daemon and Redis would be left running.
const unheard = new Promise((_, reject) => process.on("unhandledRejection", reject));
let status = 0;
try {
  await Promise.race([cases[name](), deadline, unheard]);
} catch (error) {
  console.error(error);
  status = 1;
}
await Promise.race([cleanUp(), new Promise(resolve => setTimeout(resolve, 20_000).unref())]);
process.exit(status);
