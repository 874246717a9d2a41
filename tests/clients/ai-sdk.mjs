// The AI SDK's transport and its strict reader read `format=ai-sdk`.

import { deepStrictEqual as expectEqual, ok, rejects } from "node:assert";

import { expectSame, waitFor } from "../browser/harness.mjs";
import { USAGE, answer, load, surroundings, write } from "./answer.mjs";

const { AbstractChat, DefaultChatTransport, readUIMessageStream } = load("ai");

/** Reconnects as `useChat({ resume: true })` does; null where nothing is going on. */
const reconnect = (url, options = {}) =>
  new DefaultChatTransport({ prepareReconnectToStreamRequest: () => ({ api: url }), ...options }).reconnectToStream({ chatId: "s1" });

/** Reads to the end, or fails at the first chunk that is out of place. */
async function read(stream, message) {
  let last = message;
  for await (const seen of readUIMessageStream({ stream, message, terminateOnError: true })) last = seen;
  return last;
}

const textOf = (message, type) => message.parts.filter(part => part.type === type).map(part => part.text).join("");

function expectWhole(message, expected, what = "") {
  expectSame(textOf(message, "reasoning"), expected.reasoning, `reasoning ${what}`);
  expectSame(textOf(message, "text"), expected.content, `content ${what}`);
  const tools = message.parts.filter(part => part.type.startsWith("tool-"));
  const named = new Map(tools.map(part => [part.toolCallId, [part.type, part.state, part.input]]));
  expectEqual([...named].sort(), expected.inputs.map((input, at) => [`call_${at}`, [`tool-tool${at}`, "input-available", input]]));
  ok(message.parts.every(part => !part.type.startsWith("data-")), "what is transient is kept by nobody");
}

export async function ai_sdk_reads_an_answer_live_and_finished() {
  const { daemon, producer, url } = await surroundings();
  const { entries, expected } = answer(3, { choices: 2 });
  const response = fetch(url("format=ai-sdk&wait=30"));
  const waited = reconnect(url("format=ai-sdk&wait=30")).then(stream => read(stream));
  const merged = reconnect(url("format=ai-sdk&wait=30&batch_ms=20")).then(stream => read(stream));
  await daemon.viewers(3);
  await write(producer, entries);
  expectEqual((await response).headers.get("x-vercel-ai-ui-message-stream"), "v1");
  ok((await (await response).text()).endsWith("\ndata: [DONE]\n\n"));
  for (const message of [await waited, await merged, await read(await reconnect(url("format=ai-sdk&after=0")))]) {
    expectWhole(message, expected);
    expectEqual([message.id, message.metadata], ["g3", { topic: "tests", usage: USAGE }]);
    expectEqual(message.parts[0].type, "reasoning");
  }
}

export async function ai_sdk_resumes_at_every_id() {
  const { daemon, producer, url } = await surroundings();
  const { entries, expected } = answer(4);
  const recording = fetch(url("format=ai-sdk&wait=30")).then(response => response.text());
  await daemon.viewers(1);
  await write(producer, entries);
  const recorded = await recording;
  // Every id that a client may have, with the part of the answer that it has by then.
  const ids = new Set([...recorded.matchAll(/^id: (.*)$/gm)].map(([, id]) => id));
  ids.delete([...ids].at(-1));
  for (const id of ids) {
    const before = await read(streamOf(chunksUpTo(recorded, id)));
    const message = await read(await reconnect(url(`format=ai-sdk&after=${id}`)), before);
    expectWhole(message, expected, `after ${id}`);
    expectEqual(message.id, "g4");
  }
  // Every entry, for a client that has kept only its id.
  const all = await producer.redis.run("XRANGE", producer.key, "-", "+");
  for (const [at, [id]] of all.slice(0, -1).entries()) {
    const message = await read(await reconnect(url(`format=ai-sdk&after=${id}`)));
    const left = channel => entries.slice(at + 1).filter(entry => entry.type === "delta" && (entry.channel ?? "content") === channel);
    expectSame(textOf(message, "text"), left("content").map(entry => entry.text).join(""), `content after ${id}`);
    expectSame(textOf(message, "reasoning"), left("reasoning").map(entry => entry.text).join(""), `reasoning after ${id}`);
    const begun = entries.slice(0, at + 1).filter(entry => entry.type === "tool_call").length;
    const tools = message.parts.filter(part => part.type.startsWith("tool-"));
    expectEqual(tools.map(part => part.input), expected.inputs, `inputs after ${id}, ${begun} pieces`);
  }
}

/** The chunks of an event stream up to the last event with this id. */
function chunksUpTo(text, id) {
  const chunks = [];
  let whole = 0;
  for (const event of text.split("\n\n").slice(0, -1)) {
    const lines = event.split("\n");
    chunks.push(lines.filter(line => line.startsWith("data: ")).map(line => line.slice(6)).join("\n"));
    if (lines.includes(`id: ${id}`)) whole = chunks.length;
  }
  return chunks.slice(0, whole).map(data => JSON.parse(data));
}

const streamOf = chunks => new ReadableStream({
  start(controller) { for (const chunk of chunks) controller.enqueue(chunk); controller.close(); },
});

export async function ai_sdk_is_told_when_nothing_goes_on() {
  const { producer, url } = await surroundings();
  const { entries } = answer(5);
  expectEqual(await reconnect(url("format=ai-sdk")), null, "a name that nobody has written");
  await rejects(reconnect(url("format=ai-sdk&after=0")), /no such stream/);
  await write(producer, entries.slice(0, -1));
  const live = await reconnect(url("format=ai-sdk"));
  ok(live, "it goes on");
  const reading = read(live);
  await producer.add(entries.at(-1));
  await reading;
  expectEqual(await reconnect(url("format=ai-sdk")), null, "it is over");
  const [last] = (await producer.redis.run("XRANGE", producer.key, "-", "+")).at(-1);
  expectEqual(await reconnect(url(`format=ai-sdk&after=${last}`)), null, "nothing follows");
  ok(await reconnect(url("format=ai-sdk&after=last")), "who asks for it gets it");
}

/** The state that `useChat` keeps, without React. */
class Messages {
  status = "ready"; error = undefined;
  constructor(messages) { this.messages = messages; }
  pushMessage(message) { this.messages = [...this.messages, message]; }
  popMessage() { this.messages = this.messages.slice(0, -1); }
  replaceMessage(at, message) { this.messages = this.messages.with ? this.messages.with(at, message) : this.messages.map((old, n) => (n === at ? message : old)); }
  snapshot(value) { return structuredClone(value); }
}

class PlainChat extends AbstractChat {
  constructor({ messages, ...options }) { super({ ...options, state: new Messages(messages) }); }
}

export async function a_chat_that_is_loaded_again_goes_on() {
  const { producer, url } = await surroundings();
  const { entries, expected } = answer(6);
  const half = Math.floor(entries.length / 2);
  await write(producer, entries.slice(0, half));
  const notes = [];
  const open = () => new PlainChat({
    id: "s1", messages: [{ id: "q", role: "user", parts: [{ type: "text", text: "?" }] }], onData: part => notes.push(part),
    transport: new DefaultChatTransport({ prepareReconnectToStreamRequest: () => ({ api: url("format=ai-sdk") }) }),
  });
  const chat = open();
  const resumed = chat.resumeStream();
  await waitFor("the half that is there", () => chat.messages.at(-1).role === "assistant");
  expectEqual(chat.status, "streaming");
  await write(producer, entries.slice(half));
  await resumed;
  expectEqual([chat.status, chat.error, chat.messages.length], ["ready", undefined, 2]);
  expectWhole(chat.messages.at(-1), expected);
  ok(notes.some(part => part.type === "data-llm-bridge" && part.data.type === "custom"));
  // Loaded again when everything is complete: there is nothing to resume, and no error.
  const later = open();
  await later.resumeStream();
  expectEqual([later.status, later.error, later.messages.length], ["ready", undefined, 1]);
}

export async function a_chat_that_has_the_beginning_goes_on_behind_it() {
  const { producer, url } = await surroundings();
  const { entries, expected } = answer(10);
  const half = Math.floor(entries.length / 2);
  await write(producer, entries.slice(0, half));
  const [last] = (await producer.redis.run("XRANGE", producer.key, "-", "+")).at(-1);
  // Reads the answer up to that id and stores it, like a page that is left in the middle.
  const had = await fetch(url("format=ai-sdk"));
  const reader = had.body.getReader();
  let text = "";
  while (!text.includes(`id: ${last}\n`)) text += Buffer.from((await reader.read()).value).toString("latin1");
  await reader.cancel();
  const stored = await read(streamOf(chunksUpTo(Buffer.from(text, "latin1").toString(), last)));
  const chat = new PlainChat({
    id: "s1", messages: [{ id: "q", role: "user", parts: [{ type: "text", text: "?" }] }, stored],
    transport: new DefaultChatTransport({
      resumeStreamIsReplay: false, prepareReconnectToStreamRequest: () => ({ api: url(`format=ai-sdk&after=${last}`) }),
    }),
  });
  const resumed = chat.resumeStream();
  await write(producer, entries.slice(half));
  await resumed;
  expectEqual([chat.status, chat.error, chat.messages.length], ["ready", undefined, 2]);
  expectWhole(chat.messages.at(-1), expected);
}
