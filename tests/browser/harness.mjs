// The environment of the cases: a real redis-server and a real daemon as processes, a TCP proxy that cuts
// connections on request, and a headless Chromium. Everything is on loopback and ends with the case.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";

/** The deadline of every wait. Only a case that fails ever takes so long. */
export const PATIENCE_MS = 60_000;

const cleanups = [];

/** Something to be done when the case is over, last first. */
export function later(cleanup) { cleanups.push(cleanup); }

export async function cleanUp() {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
}

export const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));

/** Looks until there is something, and returns it. */
export async function waitFor(what, look) {
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`waited in vain for ${what}`);
    await sleep(10);
  }
}

/** Numbers that are the same in every run. `below(n)`: 0 to n - 1. */
export class Random {
  #state;
  constructor(seed) { this.#state = seed >>> 0; }
  below(bound) {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) % bound;
  }
  of(list) { return list[this.below(list.length)]; }
}

const PIECES = [
  "Hello", " ", ", ", "world", ".\n", "\n\n", "\r\n", "\t", "naïve ", "żółw", "😀", "👩", "\u200d", "👧", "🏳️", "🇩🇪", "𝒳", "שלום ",
  "مرحبا", "\u202e", "漢字", "\u2028", "\"", "\\", "\\n", "</pre>", "<b>&amp;", "\u0001", "data: ", "e\u0301", "", "id: 5-1",
];

/** A token of any script, with characters that break careless code. */
export function token(random) {
  return Array.from({ length: 1 + random.below(3) }, () => random.of(PIECES)).join("");
}

// ----- ports and processes -----

/** The ports of this case. Another case's server must not be met at one of them: it would be taken for our own. */
let [nextPort, endOfPorts] = process.env.LLM_BRIDGE_PORTS.split("..").map(Number);

/** A free port, below those of outgoing connections, so that a server finds it again after its death. */
export async function freePort() {
  for (;;) {
    if (nextPort >= endOfPorts) throw new Error(`no free port is left of LLM_BRIDGE_PORTS=${process.env.LLM_BRIDGE_PORTS}`);
    const port = nextPort++;
    const isFree = await new Promise(resolve => {
      const probe = net.createServer().once("error", () => resolve(false));
      probe.listen(port, "127.0.0.1", () => probe.close(() => resolve(true)));
    });
    if (isFree) return port;
  }
}

class Process {
  #child = null;
  log = "";

  spawn(command, options) {
    const child = spawn(command, options, { stdio: ["ignore", "pipe", "pipe"], env: { PATH: process.env.PATH } });
    child.stdout.on("data", data => { this.log += data; });
    child.stderr.on("data", data => { this.log += data; });
    child.over = new Promise(resolve => child.once("exit", resolve));
    child.once("error", error => { this.log += error; });
    this.#child = child;
  }

  get pid() { return this.#child.pid; }

  get isRunning() { return this.#child?.exitCode === null && this.#child.signalCode === null; }

  /** Ends it and waits until it is gone. */
  async end(signal = "SIGKILL") {
    if (!this.isRunning) return;
    this.#child.kill(signal);
    await this.#child.over;
  }
}

// ----- Redis -----

/** A connection that sends commands and reads their answers in order. */
class Redis {
  #socket;
  #received = Buffer.alloc(0);
  #waiting = [];

  static async connect(port) {
    const redis = new Redis();
    redis.#socket = net.connect(port, "127.0.0.1");
    redis.#socket.on("data", data => redis.#take(data));
    redis.#socket.on("error", error => redis.#waiting.splice(0).forEach(({ reject }) => reject(error)));
    await new Promise((resolve, reject) => redis.#socket.once("connect", resolve).once("error", reject));
    return redis;
  }

  close() { this.#socket.destroy(); }

  run(...words) {
    const parts = words.map(word => `$${Buffer.byteLength(String(word))}\r\n${word}\r\n`);
    this.#socket.write(`*${words.length}\r\n${parts.join("")}`);
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  #take(data) {
    this.#received = Buffer.concat([this.#received, data]);
    for (;;) {
      const found = this.#parse(0);
      if (!found) return;
      this.#received = this.#received.subarray(found.end);
      const { resolve, reject } = this.#waiting.shift();
      if (found.value instanceof Error) reject(found.value);
      else resolve(found.value);
    }
  }

  #parse(at) {
    const lineEnd = this.#received.indexOf("\r\n", at);
    if (lineEnd < 0) return null;
    const line = this.#received.toString("utf8", at + 1, lineEnd);
    const begin = lineEnd + 2;
    switch (String.fromCharCode(this.#received[at])) {
      case "+": return { value: line, end: begin };
      case "-": return { value: new Error(line), end: begin };
      case ":": return { value: Number(line), end: begin };
      case "$": {
        const end = begin + Number(line);
        if (Number(line) < 0) return { value: null, end: begin };
        return this.#received.length < end + 2 ? null : { value: this.#received.toString("utf8", begin, end), end: end + 2 };
      }
      default: {
        const value = [];
        let end = begin;
        for (let n = Number(line); n > 0; n--) {
          const found = this.#parse(end);
          if (!found) return null;
          value.push(found.value);
          end = found.end;
        }
        return { value, end };
      }
    }
  }
}

export async function startRedis() {
  const dir = mkdtempSync(path.join(tmpdir(), "llm-bridge-browser-"));
  later(() => rmSync(dir, { recursive: true, force: true }));
  const port = await freePort();
  const server = new Process();
  server.spawn("redis-server", ["--bind", "127.0.0.1", "--save", "", "--port", port, "--dir", dir].map(String));
  later(() => server.end());
  const redis = await waitFor("redis-server", async () => {
    if (!server.isRunning) throw new Error(`redis-server ended:\n${server.log}`);
    const connection = await Redis.connect(port).catch(() => null);
    // Checks that no other server uses the same port.
    if (!connection || (await connection.run("INFO", "server")).includes(`process_id:${server.pid}\r\n`)) return connection;
    connection.close();
    return null;
  });
  later(() => redis.close());
  redis.port = port;
  return redis;
}

// ----- the daemon -----

class Daemon extends Process {
  #options;

  constructor(redis, port, adminPort, settings) {
    super();
    this.port = port;
    const all = [
      `redis.url=redis://127.0.0.1:${redis.port}/0`, `listen.public=127.0.0.1:${port}`,
      `listen.admin=127.0.0.1:${adminPort}`, "listen.stats_socket=", ...settings,
    ];
    this.adminPort = adminPort;
    this.#options = ["serve", ...all.flatMap(setting => ["--set", setting])];
  }

  async start() {
    this.spawn(process.env.LLM_BRIDGE_BIN, this.#options);
    await waitFor("the daemon", async () => {
      if (!this.isRunning) throw new Error(`the daemon ended:\n${this.log}`);
      return (await fetch(`http://127.0.0.1:${this.adminPort}/readyz`).catch(() => null))?.status === 200;
    });
  }

  /** Waits until so many viewers have come since the start. */
  async viewers(count) {
    await waitFor(`${count} viewers`, async () => {
      const stats = await (await fetch(`http://127.0.0.1:${this.adminPort}/stats.json`)).json();
      return stats.counters.subscriptions >= count;
    });
  }
}

export async function startDaemon(redis, settings = []) {
  const daemon = new Daemon(redis, await freePort(), await freePort(), settings);
  later(() => daemon.end());
  await daemon.start();
  return daemon;
}

// ----- a producer -----

/** Writes a stream and knows the answer that every client must get. */
export class Producer {
  #seq = 0;
  /** Of the newest generation, by `choice channel`. */
  texts = new Map();

  constructor(redis, name) {
    const slash = name.indexOf("/");
    this.redis = redis;
    this.key = `llm:stream:${name.slice(0, slash)}:${name.slice(slash + 1)}`;
    this.controlKey = this.key.replace("llm:stream:", "llm:control:");
  }

  add(object) {
    return this.redis.run("XADD", this.key, "*", "data", JSON.stringify({ seq: this.#seq++, ...object }));
  }

  start(generation) {
    this.#seq = 0;
    this.texts = new Map();
    return this.add({ type: "start", generation });
  }

  delta(text, channel = "content", index = 0) {
    const key = `${index} ${channel}`;
    this.texts.set(key, (this.texts.get(key) ?? "") + text);
    return this.add({ type: "delta", text, ...(channel !== "content" && { channel }), ...(index && { index }) });
  }

  end(finish_reason = "stop") { return this.add({ type: "end", finish_reason }); }

  get text() { return this.texts.get("0 content") ?? ""; }

  /** Writes tokens, with pauses for the others to run, as long as `isWanted` says so. */
  async write(random, isWanted) {
    for (let n = 0; isWanted(n); n++) {
      await this.delta(token(random));
      if (random.below(3) === 0) await sleep(1);
    }
  }

  /** The control stream's first entry, as an object. */
  async cancelRequest() {
    const [[, fields]] = await waitFor("a request to cancel", async () => {
      const entries = await this.redis.run("XRANGE", this.controlKey, "-", "+");
      return entries.length ? entries : null;
    });
    return Object.fromEntries(fields.reduce((pairs, word, at) => (at % 2 ? pairs.at(-1).push(word) : pairs.push([word]), pairs), []));
  }
}

// ----- a proxy that cuts -----

/** Where the server's bytes can be cut so that whole frames are left: the ends of frames in `bytes`. */
function frameEnds(bytes, isWebSocket) {
  const ends = [];
  if (!isWebSocket) {
    for (let at = bytes.indexOf("\n\n"); at >= 0; at = bytes.indexOf("\n\n", at + 2)) ends.push(at + 2);
    return ends;
  }
  for (let at = 0; at + 2 <= bytes.length;) {
    const short = bytes[at + 1] & 0x7f;
    const head = short === 127 ? 10 : short === 126 ? 4 : 2;
    if (at + head > bytes.length) break;
    const length = short === 127 ? Number(bytes.readBigUInt64BE(at + 2)) : short === 126 ? bytes.readUInt16BE(at + 2) : short;
    at += head + length;
    if (at <= bytes.length) ends.push(at);
  }
  return ends;
}

/** Between browser and daemon, and the test page's server. Requests for streams are subject to what the case says; others pass. */
export class Proxy {
  #sockets = new Set();
  /** Called for each stream connection: after how many frames, and how many bytes more, it is cut; null: never. */
  plan = () => null;
  /** Answers every wish to speak WebSocket with 403, as some proxies do. */
  blocksWebSockets = false;
  /** Takes connections and hangs up at once. */
  isDown = false;
  /** Keeps back the server's bytes on existing connections. */
  isFrozen = false;
  cuts = 0;
  /** The first lines of the requests for streams. */
  requests = [];

  static async start(target) {
    const proxy = new Proxy();
    const server = net.createServer(client => proxy.#serve(client, target));
    proxy.port = await freePort();
    await new Promise(resolve => server.listen(proxy.port, "127.0.0.1", resolve));
    later(() => { proxy.cutAll(); server.close(); });
    return proxy;
  }

  get origin() { return `http://127.0.0.1:${this.port}`; }

  cutAll() { for (const socket of this.#sockets) socket.destroy(); }

  #serve(client, target) {
    if (this.isDown) return client.destroy();
    const server = net.connect(target, "127.0.0.1");
    for (const [socket, other] of [[client, server], [server, client]]) {
      this.#sockets.add(socket);
      socket.on("error", () => {});
      socket.on("close", () => { this.#sockets.delete(socket); other.destroy(); });
    }
    let pass = null;
    client.on("data", data => {
      const head = data.toString("latin1");
      if (head.startsWith("GET /test")) return client.end(`HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n${PAGE}`);
      const isStream = head.startsWith("GET /v1/streams/");
      const isWebSocket = /^upgrade: websocket\r$/im.test(head);
      if (isStream) {
        this.requests.push({ line: head.split("\r\n", 1)[0], isWebSocket });
        if (isWebSocket && this.blocksWebSockets) {
          return client.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        pass = this.#passer(client, isWebSocket);
      }
      server.write(data);
    });
    server.on("data", data => (pass ?? (data => client.write(data)))(data));
  }

  /** Passes the server's bytes on until it is time. */
  #passer(client, isWebSocket) {
    const plan = this.plan();
    let received = Buffer.alloc(0);
    let bodyAt = -1;
    let passed = 0;
    let isOver = false;
    return data => {
      if (this.isFrozen || isOver) return;
      if (plan === null) return client.write(data);
      received = Buffer.concat([received, data]);
      if (bodyAt < 0) bodyAt = received.indexOf("\r\n\r\n") + 4;
      if (bodyAt < 4) { bodyAt = -1; return; }
      const ends = frameEnds(received.subarray(bodyAt), isWebSocket).map(end => end + bodyAt);
      const isTime = ends.length >= plan.frames;
      const upTo = isTime ? Math.min(ends[plan.frames - 1] + plan.bytes, received.length) : received.length;
      if (!isTime) { client.write(received.subarray(passed)); passed = upTo; return; }
      isOver = true;
      this.cuts += 1;
      const rest = received.subarray(passed, Math.max(upTo, passed));
      client.write(rest, () => client.destroy());
    };
  }
}

// ----- the browser -----

const PAGE = `<!doctype html><meta charset="utf-8"><title>test</title><link rel="icon" href="data:,"><body><script type="module">
import * as bridge from "/llm-bridge.js";
const storage = new URLSearchParams(location.search).has("storage") ? sessionStorage : undefined;
const fast = { retry: { baseMs: 20, capMs: 100 } };
// Shows one stream in each way: appended piece by piece, assembled, iterated.
window.watch = (name, target, options = {}) => {
  const box = document.body.appendChild(document.createElement("pre"));
  const seen = { frames: [], events: [], iterated: "", closed: null };
  const answer = bridge.subscribe(target, { ...fast, storage, ...options });
  answer.on("generation", () => { box.textContent = ""; seen.events.push("generation"); });
  answer.on("delta", frame => { if (!frame.channel && !frame.index) box.append(frame.text); });
  answer.on("frame", frame => { if (frame.type !== "delta") seen.frames.push(frame); });
  answer.on("state", ({ state }) => seen.events.push(state));
  answer.on("reconnecting", ({ reason }) => seen.events.push("reconnecting " + reason));
  answer.on("closed", ({ reason, error }) => { seen.closed = { reason, code: error && error.code }; });
  if (options.iterates !== false) (async () => {
    for await (const frame of answer) {
      if (frame.type === "delta" && !frame.channel && !frame.index) seen.iterated += frame.text;
    }
  })().catch(() => {});
  window.views = { ...window.views, [name]: { answer, box, seen } };
};
window.look = name => {
  const { answer, box, seen } = window.views[name];
  return {
    shown: box.textContent, text: answer.text(), iterated: seen.iterated, frames: seen.frames, events: seen.events, closed: seen.closed,
    state: answer.state, streamState: answer.streamState, transport: answer.transport, lastId: answer.lastId, finish: answer.finish,
    complete: answer.complete, generation: answer.generation, toolCalls: [answer.toolCalls(0), answer.toolCalls(1)],
    texts: [0, 1].flatMap(choice => answer.channels(choice).map(channel => [choice + " " + channel, answer.text(channel, choice)])),
  };
};
window.bridge = bridge;
</script>`;

let browser = null;

/** Connects to the browser of the test run. Each tab has a context of its own, with its own storage. */
async function connectToBrowser() {
  const require = createRequire(path.join(process.env.BROWSER_MODULES, "package.json"));
  const { chromium } = require("playwright-core");
  browser = await chromium.connect(process.env.BROWSER_ADDRESS);
  later(async () => { await browser.close(); browser = null; });
}

/** A tab on the test page of an origin that serves the module. */
export class Tab {
  static page = PAGE;

  static async open(origin, query = "") {
    if (!browser) await connectToBrowser();
    const tab = new Tab();
    tab.page = await browser.newPage();
    tab.errors = [];
    tab.page.on("pageerror", error => tab.errors.push(String(error)));
    tab.address = `${origin}/test${query}`;
    await tab.load();
    return tab;
  }

  /** Anew, as a reload does; the module comes from the daemon, which must be there. */
  async load() {
    await this.page.goto(this.address);
    await this.page.waitForFunction(() => window.watch, null, { timeout: PATIENCE_MS });
  }

  watch(name, target, options) {
    return this.page.evaluate(([name, target, options]) => window.watch(name, target, options), [name, target, options]);
  }

  look(name) { return this.page.evaluate(name => window.look(name), name); }

  /** Waits until the view is as wanted and returns it. */
  until(name, what, isWanted) {
    let seen;
    return waitFor(`${name}: ${what}`, async () => {
      seen = await this.look(name);
      return isWanted(seen) ? seen : null;
    }).catch(error => {
      const { shown, text, iterated, texts, ...rest } = seen;
      const sizes = { shown: shown.length, text: text.length, iterated: iterated.length };
      throw new Error(`${error.message}; seen: ${JSON.stringify({ ...sizes, ...rest }).slice(0, 4000)}`);
    });
  }

  ended(name) { return this.until(name, "the end", seen => seen.closed); }
}

/** Compares bytes, and says where they part. */
export function expectSame(actual, expected, what) {
  const [a, b] = [Buffer.from(actual), Buffer.from(expected)];
  if (a.equals(b) && actual === expected) return;
  let at = 0;
  while (at < a.length && a[at] === b[at]) at += 1;
  const around = bytes => JSON.stringify(bytes.subarray(Math.max(0, at - 40), at + 40).toString());
  throw new Error(`${what}: ${a.length} bytes instead of ${b.length}, different at ${at}: ${around(a)} instead of ${around(b)}`);
}
