// Cases without a browser: the module's pure parts, and its types as the compiler sees them.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { Random, token } from "./harness.mjs";

// Imported by a URL, because older versions of Node treat a `.js` file outside of a package as CommonJS.
const source = readFileSync(new URL("../../src/web/llm-bridge.js", import.meta.url));
const { backoffMs, compareIds, EventStreamParser, mergeFrames, retryAfterMs, tokenExpiryMs, Transcript } =
  await import(`data:text/javascript;base64,${source.toString("base64")}`);

export function ids_are_ordered_as_the_stream_is() {
  const inOrder = [
    "0-0", "1", "5-0.1", "5-0.2", "5-0.10", "5-0", "5-1.1", "5-1", "5-10", "10-0", "1763800000000-2", "1763800000000-10",
    "9007199254740992-1", "9007199254740993-0", "18446744073709551615-18446744073709551615",
  ];
  for (const [a, left] of inOrder.entries()) {
    for (const [b, right] of inOrder.entries()) assert.equal(Math.sign(compareIds(left, right)), Math.sign(a - b), `${left} ${right}`);
  }
  assert.equal(compareIds("7", "7-0"), 0);
  for (const bad of ["", "-", "5-", "5-1.", "x", "5.1", "5-1.2.3", "last", "$", null, 5]) assert.throws(() => compareIds("1-1", bad), TypeError);
}

/** A generation's frames, and how a server may merge them. */
function generation(random) {
  const frames = [{ type: "start", id: "1-0", generation: "g" }];
  for (let n = 1; n < 60; n++) {
    const id = `1-${n}`;
    const index = random.below(2);
    if (random.below(4)) frames.push({ type: "delta", id, text: token(random), ...(random.below(2) && { channel: "reasoning" }), ...(index && { index }) });
    else frames.push({ type: "tool_call", id, index, call: random.below(2), arguments: token(random), ...(random.below(3) === 0 && { call_id: `c${n}`, name: "f" }) });
  }
  return [...frames, { type: "end", id: "2-0", finish_reason: "stop" }];
}

function merged(frames, random) {
  const out = [];
  for (const frame of frames) {
    const both = out.length && random.below(3) ? mergeFrames(out.at(-1), frame) : null;
    if (both) out[out.length - 1] = both;
    else out.push(frame);
  }
  return out;
}

function transcriptOf(frames) {
  const transcript = new Transcript();
  for (const frame of frames) transcript.apply(frame);
  return transcript;
}

function shown(transcript) {
  const all = [0, 1].map(choice => ({
    texts: transcript.channels(choice).map(channel => [channel, transcript.text(channel, choice)]), calls: transcript.toolCalls(choice),
  }));
  return { all, generation: transcript.generation, finish: transcript.finish, complete: transcript.complete, chars: transcript.chars };
}

export function however_frames_are_merged_they_amount_to_the_same() {
  for (let seed = 0; seed < 200; seed++) {
    const random = new Random(seed);
    const frames = generation(random);
    const whole = shown(transcriptOf(frames));
    assert.deepEqual(shown(transcriptOf(merged(frames, random))), whole);
    const part = transcriptOf(frames.slice(0, 1 + random.below(frames.length)));
    assert.deepEqual(shown(transcriptOf(JSON.parse(JSON.stringify(part.frames("9-9"))))), shown(part));
    const counts = merged(frames, random).reduce((sum, frame) => sum + (frame.count ?? 1), 0);
    assert.equal(counts, frames.length);
  }
}

export function generations_follow_each_other_in_a_transcript() {
  const delta = text => ({ type: "delta", id: "1-1", text });
  const transcript = transcriptOf([delta("a"), { type: "end", id: "1-2" }]);
  assert.equal(transcript.text(), "a");
  assert.equal(transcript.apply({ type: "skipped", id: "1-3", reason: "malformed" }), false);
  assert.equal(transcript.apply({ type: "status", state: "live" }), false);
  assert.equal(transcript.text(), "a");
  assert.equal(transcript.apply(delta("b")), true);
  assert.deepEqual([transcript.text(), transcript.finish], ["b", null]);
  assert.equal(transcript.apply({ type: "start", id: "2-0", generation: "g" }), true);
  assert.equal(transcript.apply(delta("c")), false);
  assert.equal(transcript.apply({ type: "start", id: "2-2", generation: "g" }), false);
  assert.equal(transcript.text(), "c");
  transcript.apply({ type: "gap", after: "2-2", next: "2-5", lost: 2, reason: "producer" });
  assert.deepEqual([transcript.text(), transcript.complete], ["c", false]);
  transcript.apply({ type: "gap", after: "2-2", next: "1-0", lost: null, reason: "recreated" });
  assert.equal(transcript.text(), "c");
  assert.equal(transcript.apply(delta("d")), true);
  assert.equal(transcript.text(), "d");
}

export function event_streams_are_read_however_they_are_cut() {
  const events = ["{\"a\":1}", "😀\u2028שלום", "two\nlines", " leading", "x".repeat(500)];
  for (let seed = 0; seed < 300; seed++) {
    const random = new Random(seed);
    const eol = random.of(["\n", "\r\n", "\r"]);
    const lines = events.flatMap(data => [": comment", "id: 5-1", ...data.split("\n").map(line => `data: ${line}`), "event: x", "", "id: 6", ""]);
    const text = lines.map(line => line + eol).join("");
    const got = [];
    const parser = new EventStreamParser(data => got.push(data));
    for (let at = 0; at < text.length;) {
      const end = at + 1 + random.below(seed % 2 ? 3 : 40);
      parser.push(text.slice(at, end));
      at = end;
    }
    assert.deepEqual(got, events);
  }
  const small = new EventStreamParser(() => {}, 100);
  assert.throws(() => small.push(`data: ${"x".repeat(200)}`), RangeError);
}

export function waits_grow_within_their_bound() {
  const retry = { baseMs: 250, capMs: 10_000 };
  for (const [attempt, most] of [[0, 250], [1, 500], [5, 8000], [6, 10_000], [1e9, 10_000]]) {
    assert.equal(backoffMs(attempt, retry, () => 1), most);
    assert.equal(backoffMs(attempt, retry, () => 0), 0);
  }
  const at = Date.parse("Tue, 24 Nov 2026 00:00:00 GMT");
  for (const [value, ms] of [
    ["3", 3000], [" 0 ", 0], ["Tue, 24 Nov 2026 00:00:07 GMT", 7000], ["Tue, 24 Nov 2020 00:00:07 GMT", 0], ["99999999", 300_000],
    ["soon", null], ["", null], [null, null],
  ]) assert.equal(retryAfterMs(value, at), ms, value);
}

export function expiry_is_read_where_it_can_be() {
  const jwt = claims => `e30.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.c2ln`;
  assert.equal(tokenExpiryMs(jwt({ exp: 1_763_800_000, sub: "ü?>~" })), 1_763_800_000_000);
  for (const opaque of [jwt({}), jwt({ exp: "soon" }), "opaque", "a.b.c", "", "..", "e30.bnVsbA.x"]) assert.equal(tokenExpiryMs(opaque), null);
}

export function the_types_fit_an_application() {
  const here = path.dirname(fileURLToPath(import.meta.url));
  const compiler = path.join(process.env.BROWSER_MODULES, "node_modules/typescript/bin/tsc");
  const options = ["--noEmit", "--strict", "--exactOptionalPropertyTypes", "--noUncheckedIndexedAccess", "--target", "es2022",
    "--module", "es2022", "--moduleResolution", "bundler", "--lib", "es2022,dom,dom.iterable"];
  try {
    execFileSync(process.execPath, [compiler, ...options, path.join(here, "example.ts")], { encoding: "utf8" });
  } catch (error) {
    throw new Error(`tsc: ${error.stdout}${error.stderr}`);
  }
}
