// An answer with everything that the formats can express, the way it is written, and the result that every client must have.

import { createRequire } from "node:module";
import path from "node:path";

import { Producer, Random, sleep, startDaemon, startRedis, token } from "../browser/harness.mjs";

const require = createRequire(path.join(process.env.CLIENT_MODULES, "package.json"));

/** A package out of the directory that the lock file filled. */
export const load = name => require(name);

export const USAGE = { prompt_tokens: 3, completion_tokens: 40, total_tokens: 43 };
const INPUTS = [{ query: "naïve \"quotes\" 😀", limit: 3 }, { path: "/tmp/x", text: "line\nbreak \\ \u2028" }];

/** Text cut into pieces between characters. */
function pieces(text, random) {
  const characters = [...text];
  const cut = [];
  while (characters.length) cut.push(characters.splice(0, 1 + random.below(6)).join(""));
  return cut;
}

/** The entries of one answer: reasoning, content, two calls that take turns, content again, what no format knows, another choice. */
export function answer(seed, { choices = 1 } = {}) {
  const random = new Random(seed);
  const many = count => Array.from({ length: count }, () => token(random));
  const [reasoning, before, after] = [many(5), many(8), many(5)];
  const calls = INPUTS.map(input => pieces(JSON.stringify(input), random));
  const entries = [{ type: "start", generation: `g${seed}`, metadata: { topic: "tests" } }];
  const say = (text, members = {}) => entries.push({ type: "delta", text, ...members });
  for (const text of reasoning) say(text, { channel: "reasoning" });
  for (const text of before) say(text);
  say("own words", { channel: "notes" });
  entries.push({ type: "progress", step: 1 });
  for (let at = 0; at < Math.max(...calls.map(call => call.length)); at++) {
    calls.forEach((call, number) => {
      if (at >= call.length) return;
      const named = at === 0 && { id: `call_${number}`, name: `tool${number}` };
      entries.push({ type: "tool_call", call: number, ...named, arguments: call[at] });
    });
  }
  for (const text of after) {
    say(text);
    if (choices > 1) say(text, { index: 1 });
  }
  entries.push({ type: "end", finish_reason: "stop", usage: USAGE });
  const expected = {
    reasoning: reasoning.join(""), content: [...before, ...after].join(""), inputs: INPUTS,
    arguments: calls.map(call => call.join("")), other: after.join(""),
  };
  return { entries, expected };
}

/** A daemon with its Redis, and a producer for `s1/m`. */
export async function surroundings(settings) {
  const redis = await startRedis();
  const daemon = await startDaemon(redis, settings);
  const producer = new Producer(redis, "s1/m");
  return { daemon, producer, url: query => `http://127.0.0.1:${daemon.port}/v1/streams/s1/m?${query}` };
}

/** Writes entries, slowly enough that some come live and some together. */
export async function write(producer, entries, random = new Random(7)) {
  for (const entry of entries) {
    await producer.add(entry);
    if (random.below(3) === 0) await sleep(2);
  }
}
