// OpenAI's own client reads `format=openai`.

import { deepStrictEqual as expectEqual, ok, rejects } from "node:assert";

import { expectSame } from "../browser/harness.mjs";
import { USAGE, answer, load, surroundings, write } from "./answer.mjs";

const OpenAI = load("openai").default;

/** OpenAI's client, whose requests become a GET of a stream. */
const client = url => new OpenAI({ apiKey: "none", baseURL: "http://stream.invalid", maxRetries: 0, fetch: (_, { signal }) => fetch(url, { signal }) });

/** The result of the client's own accumulator for a stream. It throws where a part was not opened or not finished. */
async function complete(url) {
  const stream = client(url).chat.completions.stream({ model: "m", messages: [] });
  const reasoning = new Map();
  stream.on("chunk", chunk => {
    for (const { index, delta } of chunk.choices) reasoning.set(index, (reasoning.get(index) ?? "") + (delta.reasoning_content ?? ""));
  });
  const completion = await stream.finalChatCompletion();
  return { completion, reasoning };
}

/** Puts chunks together over several connections. Ids, types and names may come again, and are the same then. */
class Union {
  content = new Map(); reasoning = new Map(); calls = new Map(); finished = new Map(); usage = null;

  async read(url) {
    const roles = new Set();
    const opened = new Set();
    for await (const chunk of await client(url).chat.completions.create({ model: "m", messages: [], stream: true })) {
      if (chunk.usage) { this.usage = chunk.usage; expectEqual(chunk.choices, []); }
      for (const { index, delta, finish_reason } of chunk.choices) {
        if (delta.role) roles.add(index);
        ok(roles.has(index), "the first chunk of a choice carries its role");
        const add = (map, key, text) => map.set(key, (map.get(key) ?? "") + (text ?? ""));
        add(this.content, index, delta.content);
        add(this.reasoning, index, delta.reasoning_content);
        for (const call of delta.tool_calls ?? []) {
          const known = this.calls.get(call.index) ?? { arguments: "" };
          if (call.id) opened.add(call.index);
          ok(opened.has(call.index), "a call is opened before it goes on");
          if (known.id && call.id) expectEqual([known.id, known.name], [call.id, call.function.name]);
          Object.assign(known, call.id && { id: call.id, name: call.function.name, type: call.type });
          known.arguments += call.function.arguments;
          this.calls.set(call.index, known);
        }
        if (finish_reason) this.finished.set(index, finish_reason);
      }
    }
  }
}

function expectWhole({ completion, reasoning }, expected) {
  const { message, finish_reason } = completion.choices[0];
  expectSame(message.content, expected.content, "content");
  expectSame(reasoning.get(0), expected.reasoning, "reasoning");
  expectEqual(message.tool_calls.map(({ id, type, function: { name, arguments: text } }) => [id, type, name, JSON.parse(text)]),
    expected.inputs.map((input, at) => [`call_${at}`, "function", `tool${at}`, input]));
  expectEqual([finish_reason, completion.usage], ["stop", USAGE]);
  expectEqual([completion.model, completion.object], ["m", "chat.completion"]);
}

export async function openai_reads_an_answer_live_and_finished() {
  const { daemon, producer, url } = await surroundings();
  const { entries, expected } = answer(1, { choices: 2 });
  const live = complete(url("format=openai"));
  const merged = complete(url("format=openai&batch_ms=20"));
  await daemon.viewers(2);
  await write(producer, entries);
  for (const whole of [await live, await merged, await complete(url("format=openai"))]) {
    expectWhole(whole, expected);
    expectSame(whole.completion.choices[1].message.content, expected.other, "the other choice");
    expectEqual(whole.completion.choices[1].finish_reason, "stop");
  }
}

export async function openai_resumes_at_every_id() {
  const { producer, url } = await surroundings();
  const { entries, expected } = answer(2, { choices: 2 });
  await write(producer, entries);
  const all = await producer.redis.run("XRANGE", producer.key, "-", "+");
  // At every id except the last: a client that has everything gets 204, as checked at the end.
  for (const [at, [id]] of all.slice(0, -1).entries()) {
    const { completion } = await complete(url(`format=openai&after=${id}`));
    expectEqual([completion.choices[0].finish_reason, completion.usage], ["stop", USAGE]);
    const rest = new Union();
    await rest.read(url(`format=openai&after=${id}`));
    const left = entries.slice(at + 1).filter(entry => entry.type === "delta");
    const text = (channel, index) => left.filter(entry => (entry.channel ?? "content") === channel && (entry.index ?? 0) === index).map(entry => entry.text).join("");
    expectSame(rest.content.get(0), text("content", 0), `content after ${id}`);
    expectSame(rest.reasoning.get(0) ?? "", text("reasoning", 0), `reasoning after ${id}`);
    for (const [call, whole] of expected.arguments.entries()) {
      const pieces = entries.slice(at + 1).filter(entry => entry.type === "tool_call" && entry.call === call);
      expectSame(rest.calls.get(call)?.arguments ?? "", pieces.map(piece => piece.arguments).join(""), `call ${call} after ${id}`);
      ok(whole.endsWith(rest.calls.get(call)?.arguments ?? ""));
    }
  }
  expectEqual((await fetch(url(`format=openai&after=${all.at(-1)[0]}`))).status, 204);
}

export async function openai_throws_what_the_producer_said() {
  const { producer, url } = await surroundings();
  await write(producer, [{ type: "delta", text: "half" }, { type: "error", code: "upstream_timeout", message: "took too long" }]);
  await rejects(complete(url("format=openai")), error => error.message === "took too long" && error.code === "upstream_timeout");
}
