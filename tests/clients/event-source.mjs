// EventSource of the npm package reconnects by itself, with its last id, until it gets 204.

import { deepStrictEqual as expectEqual, ok } from "node:assert";

import { Proxy, expectSame, waitFor } from "../browser/harness.mjs";
import { answer, load, surroundings, write } from "./answer.mjs";

const { EventSource } = load("eventsource");

/** Reads a stream through connections that are cut, and returns everything that came, and how often it was cut. */
async function listen(format, seed) {
  const { daemon, producer } = await surroundings();
  const { entries, expected } = answer(seed);
  const proxy = await Proxy.start(daemon.port);
  // In the middle of the reasoning, of the content, and of the tool calls.
  const plans = [7, 9, 12];
  proxy.plan = () => (plans.length ? { frames: plans.shift(), bytes: 3 } : null);
  const events = [];
  const source = new EventSource(`${proxy.origin}/v1/streams/s1/m?after=0&format=${format}`);
  source.onmessage = ({ data, lastEventId }) => events.push({ data, lastEventId });
  await write(producer, entries);
  await waitFor("the end", () => source.readyState === EventSource.CLOSED).catch(error => {
    const told = { state: source.readyState, cuts: proxy.cuts, requests: proxy.requests, events: events.slice(-5) };
    throw new Error(`${error.message}: ${JSON.stringify(told, null, 1)}\n${daemon.log}`);
  });
  ok(proxy.cuts >= 2, `cut ${proxy.cuts} times`);
  return { events, expected };
}

export async function event_sources_read_chunks_over_cuts() {
  const { events, expected } = await listen("openai", 8);
  const chunks = events.filter(({ data }) => data !== "[DONE]").map(({ data }) => JSON.parse(data));
  const deltas = chunks.flatMap(chunk => chunk.choices).map(choice => choice.delta);
  expectSame(deltas.map(delta => delta.content ?? "").join(""), expected.content, "content");
  expectSame(deltas.map(delta => delta.reasoning_content ?? "").join(""), expected.reasoning, "reasoning");
  for (const [at, whole] of expected.arguments.entries()) {
    const pieces = deltas.flatMap(delta => delta.tool_calls ?? []).filter(call => call.index === at);
    expectSame(pieces.map(piece => piece.function.arguments).join(""), whole, `call ${at}`);
  }
  ok(events.every(({ lastEventId }) => lastEventId));
  expectEqual(events.at(-1).data, "[DONE]");
}

export async function event_sources_read_ui_messages_over_cuts() {
  const { events, expected } = await listen("ai-sdk", 9);
  const chunks = events.filter(({ data }) => data !== "[DONE]").map(({ data }) => JSON.parse(data));
  const text = type => chunks.filter(chunk => chunk.type === type).map(chunk => chunk.delta).join("");
  expectSame(text("text-delta"), expected.content, "content");
  expectSame(text("reasoning-delta"), expected.reasoning, "reasoning");
  const inputs = chunks.filter(chunk => chunk.type === "tool-input-available").map(chunk => chunk.input);
  expectEqual(inputs, expected.inputs);
  expectEqual(events.at(-1).data, "[DONE]");
}
