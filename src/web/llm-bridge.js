// llm-bridge in a browser: reads one stream, reconnects by itself, and never loses or repeats a frame.
//
//   import { subscribe } from "/llm-bridge.js";
//   const answer = subscribe({ session: "s1", model: "gpt-4o" });
//   answer.on("delta", () => { output.textContent = answer.text(); });
//   await answer.done;
//
// The principle: every frame with content has an id, and `after=<last id>` requests exactly the rest. So
// the last id and the text up to it are one state, changed in one place (`#take`), and a connection can be
// lost at any moment.
//
// Transports: WebSocket; where none can be opened, Server-Sent Events read through `fetch` (an EventSource
// can set no Authorization header and hides the status of an answer).
//
// Bounds: an answer has at most `limits.answerChars` characters; an iterator holds at most `limits.queuedFrames`
// frames and `limits.queuedChars` characters, then the connection is closed until half of
// them are read: Redis holds the rest. At most one ping, one ack and one re-authorization are pending.
//
// Not supported: many streams over one connection (`/v1/ws`), formats other than `native`.
//
// No dependencies, no build step. Types: llm-bridge.d.ts. Works in any browser since 2021, in workers, and in
// Node from version 22 on.

const PROTOCOL = "llm-bridge.v1";
const DEFAULTS = {
  retry: { baseMs: 250, capMs: 10_000, attempts: Infinity },
  liveness: { connectMs: 10_000, pingAfterMs: 20_000, pongMs: 10_000, sseSilenceMs: 45_000 },
  limits: { answerChars: 64 * 1024 * 1024, queuedFrames: 1024, queuedChars: 4 * 1024 * 1024, storedChars: 1024 * 1024 },
};
/** How long to wait by default for a stream that does not exist yet, in seconds. */
const WAIT_DEFAULT_S = 30;
/** The longest wait that a `Retry-After` can ask for. */
const RETRY_AFTER_MAX_MS = 5 * 60_000;
/** The shortest wait after a server has reported that it is full. */
const FULL_FLOOR_MS = 1000;
/** How long no WebSocket is tried after one could not be opened. */
const BLOCKED_MS = 10 * 60_000;
/** The shortest time between two writes to the storage. */
const PERSIST_MS = 500;
/** How long to wait for the answer to a cancel over a WebSocket before the cancel is sent by POST. */
const CANCEL_ANSWER_MS = 10_000;
const REASON_BYTES_MAX = 1024;
/** Browsers store the duration of a timer in 32 bits. */
const TIMER_MAX_MS = 2 ** 31 - 1;
/** If a timer fires this late, the page was suspended; the network may well work. */
const SLEPT_MS = 2000;

/** WebSocket close codes and HTTP statuses after which another attempt is useless, with their error codes. */
const FINAL_CLOSE = new Map([[1008, "refused"], [4403, "forbidden"], [4404, "not_found"]]);
const FINAL_STATUS = new Map([[400, "bad_request"], [403, "forbidden"], [404, "not_found"], [405, "bad_request"],
  [421, "misdirected"]]);
const FULL_CLOSE = new Set([1013, 4429]);
/** Refusals that the server sends at once, in the order of the client's messages. */
const IN_ORDER = new Set(["unsupported", "unknown_type", "malformed", "bad_option", "bad_name"]);
const TERMINAL = new Set(["end", "error"]);
const BEGINS = new Set(["start", "delta", "tool_call", "custom"]);
const PARTS_OF_GENERATION = new Set([...BEGINS, ...TERMINAL, "skipped"]);
/** Frame types with an event of their own; others, which a later server may send, only cause the event `frame`. */
const WITH_EVENT = new Set([...PARTS_OF_GENERATION, "open", "gap", "status", "refused", "cancel_requested"]);

/** Why a subscription ended, or a request was refused. `code` is for programs. */
export class LlmBridgeError extends Error {
  constructor(code, message, detail = {}) {
    super(message, "cause" in detail ? { cause: detail.cause } : undefined);
    this.name = "LlmBridgeError";
    this.code = code;
    this.closeCode = detail.closeCode;
    this.status = detail.status;
  }
}

// ----- ids -----

/** An id's three numbers, or null if it is malformed. `ms` means `ms-0`. */
function parseId(id) {
  const found = typeof id === "string" ? /^(\d{1,20})(?:-(\d{1,20})(?:\.(\d{1,20}))?)?$/.exec(id) : null;
  return found && [BigInt(found[1]), BigInt(found[2] ?? 0), found[3] === undefined ? null : BigInt(found[3])];
}

/**
 * The order of two entry ids: negative, 0 or positive. `ms-n.1`, `ms-n.2`, … are the frames before the last one
 * of entry `ms-n`, so that they come before `ms-n` itself.
 */
export function compareIds(a, b) {
  const [left, right] = [parseId(a), parseId(b)];
  if (!left || !right) throw new TypeError(`not an entry id: ${left ? b : a}`);
  for (let at = 0; at < 3; at++) {
    if (left[at] === right[at]) continue;
    if (left[at] === null) return 1;
    if (right[at] === null) return -1;
    return left[at] < right[at] ? -1 : 1;
  }
  return 0;
}

// ----- a generation from its frames -----

/** The newest generation, assembled from its frames. Pure. */
export class Transcript {
  #texts = new Map();
  #calls = new Map();
  #isOver = true;
  #hasStart = false;
  #hasGap = false;
  /** The producer's id of the generation. */
  generation = null;
  metadata = null;
  /** The terminal frame, once it has arrived. */
  finish = null;
  /** False if a gap reported that a part of this generation was lost. */
  complete = true;
  /** The characters of all texts and arguments. */
  chars = 0;

  /** Applies a frame. Returns true if it is the first of a generation; everything older was cleared then. */
  apply(frame) {
    if (frame.type === "gap") this.#gap(frame);
    if (!PARTS_OF_GENERATION.has(frame.type)) return false;
    const begins = this.#isOver || this.#beginsNext(frame);
    // Entries lost before a `start` belonged to an earlier generation.
    if (begins) this.#clear(this.#hasGap && frame.type !== "start");
    this.#hasGap = false;
    if (frame.type === "start") {
      this.#hasStart = true;
      this.generation = frame.generation ?? null;
      this.metadata = frame.metadata ?? null;
    } else if (frame.type === "delta") {
      const key = `${frame.index ?? 0} ${frame.channel ?? "content"}`;
      this.#texts.set(key, (this.#texts.get(key) ?? "") + frame.text);
      this.chars += frame.text.length;
    } else if (frame.type === "tool_call") {
      this.#call(frame);
    } else if (TERMINAL.has(frame.type)) {
      this.finish = frame;
    }
    return begins;
  }

  #beginsNext(frame) {
    if (this.finish) return BEGINS.has(frame.type);
    return frame.type === "start" && (frame.generation == null || frame.generation !== this.generation);
  }

  #gap(frame) {
    if (frame.reason === "recreated") this.#isOver = true;
    else this.#hasGap = true;
    if (this.#hasGap && !this.#isOver) this.complete = false;
  }

  #clear(isIncomplete) {
    this.#texts = new Map();
    this.#calls = new Map();
    this.generation = this.metadata = this.finish = null;
    this.complete = !isIncomplete;
    this.chars = 0;
    this.#isOver = this.#hasStart = false;
  }

  #call(frame) {
    const [index, call] = [frame.index ?? 0, frame.call ?? 0];
    const key = `${index} ${call}`;
    const known = this.#calls.get(key) ?? { index, call, id: null, name: null, arguments: "" };
    const piece = frame.arguments ?? "";
    known.id = frame.call_id ?? known.id;
    known.name = frame.name ?? known.name;
    known.arguments += piece;
    this.chars += piece.length;
    this.#calls.set(key, known);
  }

  text(channel = "content", choice = 0) {
    return this.#texts.get(`${choice} ${channel}`) ?? "";
  }

  /** The channels that have text, in the order in which they first appeared. */
  channels(choice = 0) {
    const prefix = `${choice} `;
    return [...this.#texts.keys()].filter(key => key.startsWith(prefix)).map(key => key.slice(prefix.length));
  }

  toolCalls(choice = 0) {
    const calls = [...this.#calls.values()].filter(call => call.index === choice);
    return calls.sort((a, b) => a.call - b.call).map(call => ({ ...call }));
  }

  /** The generation as merged frames, as a server would send them. All except the terminal one have `id`. */
  frames(id) {
    if (this.#isOver) return [];
    const [generation, metadata] = [this.generation ?? undefined, this.metadata ?? undefined];
    const frames = this.#hasStart ? [{ type: "start", id, generation, metadata }] : [];
    for (const [key, text] of this.#texts) {
      const space = key.indexOf(" ");
      const [index, channel] = [Number(key.slice(0, space)), key.slice(space + 1)];
      frames.push({ type: "delta", id, ...(index && { index }), ...(channel !== "content" && { channel }), text });
    }
    for (const { id: callId, name, ...call } of this.#calls.values()) {
      frames.push({ type: "tool_call", id, ...call, ...(callId !== null && { call_id: callId }), ...(name !== null && { name }) });
    }
    if (this.finish) frames.push(this.finish);
    return frames;
  }
}

/** Two neighbouring frames merged into one if the protocol allows a server to merge them; else null. */
export function mergeFrames(first, next) {
  if (first.type !== next.type || (first.index ?? 0) !== (next.index ?? 0)) return null;
  let merged;
  if (first.type === "delta" && (first.channel ?? "content") === (next.channel ?? "content")) {
    merged = { ...first, text: first.text + next.text };
  } else if (first.type === "tool_call" && (first.call ?? 0) === (next.call ?? 0) && next.call_id == null && next.name == null) {
    merged = { ...first, arguments: (first.arguments ?? "") + (next.arguments ?? "") };
  } else {
    return null;
  }
  merged.id = next.id;
  if (next.seq === undefined) delete merged.seq;
  else merged.seq = next.seq;
  merged.count = (first.count ?? 1) + (next.count ?? 1);
  return merged;
}

// ----- waiting -----

/** Exponential backoff with full jitter: `attempt` counts from 0. */
export function backoffMs(attempt, { baseMs, capMs } = DEFAULTS.retry, random = Math.random) {
  return random() * Math.min(capMs, baseMs * 2 ** Math.min(attempt, 30));
}

/** `Retry-After` in milliseconds: seconds or a date; null if it is neither. */
export function retryAfterMs(value, now = Date.now()) {
  if (!value) return null;
  const ms = /^\s*\d+\s*$/.test(value) ? Number(value) * 1000 : Date.parse(value) - now;
  return Number.isNaN(ms) ? null : Math.min(Math.max(ms, 0), RETRY_AFTER_MAX_MS);
}

/** When a JWT expires, in milliseconds since 1970; null if that cannot be decoded. */
export function tokenExpiryMs(token) {
  try {
    const claims = JSON.parse(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")));
    return Number.isFinite(claims.exp) ? claims.exp * 1000 : null;
  } catch {
    return null;
  }
}

// ----- Server-Sent Events -----

/** Parses an event stream from pieces of text of any length, and passes on the `data` of each event. */
export class EventStreamParser {
  #line = "";
  #data = [];
  #afterCr = false;
  #chars = 0;

  constructor(onData, charsMax = DEFAULTS.limits.answerChars) {
    this.onData = onData;
    this.charsMax = charsMax;
  }

  push(text) {
    let at = 0;
    if (this.#afterCr && text[0] === "\n") at = 1;
    if (text) this.#afterCr = text.endsWith("\r");
    const ends = /\r\n|\r|\n/g;
    ends.lastIndex = at;
    for (let end = ends.exec(text); end; end = ends.exec(text)) {
      this.#take(this.#line + text.slice(at, end.index));
      this.#line = "";
      at = ends.lastIndex;
    }
    this.#line += text.slice(at);
    if (this.#line.length + this.#chars > this.charsMax) throw new RangeError("an event is too long");
  }

  #take(line) {
    if (line === "") {
      if (this.#data.length) this.onData(this.#data.join("\n"));
      this.#data = [];
      this.#chars = 0;
    } else if (line.startsWith("data:")) {
      const data = line.slice(line[5] === " " ? 6 : 5);
      this.#data.push(data);
      this.#chars += data.length;
    }
  }
}

// ----- connections: each calls `open`, `received`, `frame`, and once `over` -----

class WebSocketLink {
  kind = "websocket";
  isOpen = false;
  /** Whether the daemon's first frame has arrived. */
  hasReceivedFrame = false;
  #socket = null;

  constructor(env, url, token, events) {
    const protocols = token ? [PROTOCOL, `bearer.${token}`] : [PROTOCOL];
    try {
      this.#socket = new env.WebSocket(url, protocols);
    } catch (cause) {
      queueMicrotask(() => events.over({ wasOpen: false, cause }));
      return;
    }
    const socket = this.#socket;
    socket.onopen = () => { this.isOpen = true; events.open(); };
    socket.onmessage = event => { events.received(); if (typeof event.data === "string") events.frame(event.data); };
    socket.onclose = event => {
      const wasOpen = this.isOpen;
      this.isOpen = false;
      events.over({ wasOpen, closeCode: event.code, message: event.reason });
    };
  }

  send(message) {
    if (!this.isOpen || this.#socket.readyState !== 1) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  /** Drops the connection without waiting for the closing handshake, which a dead one would not answer. */
  close() {
    this.isOpen = false;
    if (!this.#socket) return;
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close(1000);
  }
}

class EventStreamLink {
  kind = "sse";
  isOpen = false;
  hasReceivedFrame = false;
  #abort = new AbortController();

  constructor(env, url, token, events, { credentials, charsMax }) {
    this.#read(env, url, token, events, credentials, charsMax).then(
      end => events.over(end),
      cause => events.over({ wasOpen: this.isOpen, cause }),
    ).finally(() => this.close());
  }

  async #read(env, url, token, events, credentials, charsMax) {
    const headers = { Accept: "text/event-stream", ...(token && { Authorization: `Bearer ${token}` }) };
    const request = { headers, credentials, cache: "no-store", signal: this.#abort.signal };
    const response = await env.fetch(url, request);
    const kind = response.headers.get("Content-Type") ?? "";
    if (response.status !== 200 || !kind.startsWith("text/event-stream")) return refusal(response);
    this.isOpen = true;
    events.open();
    const parser = new EventStreamParser(data => events.frame(data), charsMax);
    const decoder = new TextDecoder();
    const reader = response.body.getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return { wasOpen: true };
      events.received();
      parser.push(decoder.decode(value, { stream: true }));
    }
  }

  send() { return false; }

  close() {
    this.isOpen = false;
    this.#abort.abort();
  }
}

/** Reads the error from an HTTP error response. */
async function refusal(response) {
  const retryAfter = retryAfterMs(response.headers.get("Retry-After"));
  let error = {};
  try { error = (await response.json()).error ?? {}; } catch { /* Not sent by the daemon: only the status is known. */ }
  return { wasOpen: false, status: response.status, retryAfter, errorCode: error.code, message: error.message };
}

// ----- iterating -----

/** The frames for one `for await`. Neighbouring frames are merged while they wait. */
class Feed {
  #frames = [];
  #waiting = [];
  #end = null;

  constructor(owner) {
    this.owner = owner;
    this.chars = 0;
  }

  get length() { return this.#frames.length; }

  push(frame) {
    const waiting = this.#waiting.shift();
    if (waiting) return waiting.resolve({ value: frame, done: false });
    const last = this.#frames.at(-1);
    const merged = last && mergeFrames(last, frame);
    if (merged) this.#frames[this.#frames.length - 1] = merged;
    else this.#frames.push(frame);
    this.chars += charsOf(frame);
  }

  finish(error) {
    this.#end ??= { error };
    for (const waiting of this.#waiting.splice(0)) this.#settle(waiting);
  }

  #settle({ resolve, reject }) {
    const { error } = this.#end;
    this.#end = { error: null }; // An iterator throws once and ends.
    if (error) reject(error);
    else resolve({ value: undefined, done: true });
  }

  next() {
    if (this.#frames.length) {
      const value = this.#frames.shift();
      this.chars -= charsOf(value);
      this.owner.drained(this);
      return Promise.resolve({ value, done: false });
    }
    return new Promise((resolve, reject) => {
      if (this.#end) this.#settle({ resolve, reject });
      else this.#waiting.push({ resolve, reject });
    });
  }

  return() {
    this.#frames = [];
    this.chars = 0;
    this.finish(null);
    this.owner.drained(this, true);
    return Promise.resolve({ value: undefined, done: true });
  }

  [Symbol.asyncIterator]() { return this; }
}

function charsOf(frame) {
  return frame.text?.length ?? frame.arguments?.length ?? 0;
}

// ----- the stream's name and URL -----

function encodeModel(model) {
  // A literal last `/cancel` would be taken for the cancel request.
  return model.endsWith("/cancel") ? encodeURIComponent(model) : model.split("/").map(encodeURIComponent).join("/");
}

/** The stream's URL with its query. */
function resolveTarget(target) {
  const here = globalThis.location?.href;
  if (typeof target === "string" || target instanceof URL) {
    const url = new URL(target, here);
    url.protocol = url.protocol.replace(/^ws/, "http");
    url.hash = "";
    return url;
  }
  const { base, session, model } = target;
  if (typeof session !== "string" || typeof model !== "string") throw new TypeError("a stream has a session and a model");
  const url = new URL(base ?? new URL(here).origin, here);
  url.protocol = url.protocol.replace(/^ws/, "http");
  url.search = url.hash = "";
  url.pathname = `${url.pathname.replace(/\/$/, "")}/v1/streams/${encodeURIComponent(session)}/${encodeModel(model)}`;
  return url;
}

/** By origin: whether a WebSocket was ever opened, and until when none is tried. */
const reachability = new Map();

function reachabilityOf(origin) {
  if (!reachability.has(origin)) reachability.set(origin, { hasWorked: false, blockedUntil: 0 });
  return reachability.get(origin);
}

// ----- the subscription -----

class Subscription {
  #env;
  #options;
  #url;
  #listeners = new Map();
  #feeds = new Set();
  #transcript = new Transcript();
  #last = null;
  #gapSeen = "";
  #state = "connecting";
  #streamState = null;
  #link = null;
  #transport = null;
  #turn = 0;
  #attempt = 0;
  #isHeld = false;
  #hasRetriedToken = false;
  #notBefore = 0;
  #timers = new Map();
  #receivedAt = 0;
  #isPinging = false;
  /** Requests sent over this connection, in order: the server answers in the same order. */
  #asked = [];
  #ack = { wanted: null, sent: null, isUnderWay: false, isSupported: true };
  #cleanups = [];
  #settle;

  constructor(target, options) {
    this.#options = {
      ...options,
      retry: { ...DEFAULTS.retry, ...options.retry },
      liveness: { ...DEFAULTS.liveness, ...options.liveness },
      limits: { ...DEFAULTS.limits, ...options.limits },
    };
    this.#env = { fetch: options.fetch ?? ((...args) => globalThis.fetch(...args)), WebSocket: options.WebSocket ?? globalThis.WebSocket };
    this.#url = this.#withQuery(resolveTarget(target));
    this.done = new Promise((resolve, reject) => { this.#settle = { resolve, reject }; });
    this.done.catch(() => {}); // An application that ignores `done` gets no unhandled rejection.
    this.#listenToPage();
    // The caller can add listeners and iterators in the rest of this turn.
    queueMicrotask(() => { this.#restore(); if (this.#state !== "paused") void this.#connect(); });
  }

  #withQuery(url) {
    const { after, follow, wait, batchMs } = this.#options;
    const set = (key, value) => { if (value !== undefined) url.searchParams.set(key, value); };
    set("after", after);
    if (follow !== undefined) set("follow", follow ? 1 : 0);
    set("wait", wait);
    set("batch_ms", batchMs);
    return url;
  }

  // ----- public state -----

  get url() { return this.#url.href; }
  get state() { return this.#state; }
  get streamState() { return this.#streamState; }
  get transport() { return this.#transport; }
  get lastId() { return this.#last; }
  get generation() { return this.#transcript.generation; }
  get metadata() { return this.#transcript.metadata; }
  get finish() { return this.#transcript.finish; }
  get complete() { return this.#transcript.complete; }
  get #follows() { return this.#url.searchParams.get("follow") === "1"; }
  get #isClosed() { return this.#state === "closed"; }

  text(channel, choice) { return this.#transcript.text(channel, choice); }
  channels(choice) { return this.#transcript.channels(choice); }
  toolCalls(choice) { return this.#transcript.toolCalls(choice); }

  on(type, listener) {
    if (!this.#listeners.has(type)) this.#listeners.set(type, new Set());
    this.#listeners.get(type).add(listener);
    return () => this.off(type, listener);
  }

  once(type, listener) {
    const off = this.on(type, event => { off(); listener(event); });
    return off;
  }

  off(type, listener) { this.#listeners.get(type)?.delete(listener); }

  [Symbol.asyncIterator]() {
    const feed = new Feed({ drained: (feed, isOver = false) => this.#drained(feed, isOver) });
    if (this.#isClosed) feed.finish(this.#error ?? null);
    else this.#feeds.add(feed);
    return feed;
  }

  #error = null;

  /** A listener that throws does not stop the stream. */
  #emit(type, event) {
    for (const listener of [...(this.#listeners.get(type) ?? [])]) {
      try { listener(event); } catch (error) { report(error); }
    }
  }

  #setState(state) {
    if (this.#state === state || this.#isClosed) return;
    const previous = this.#state;
    this.#state = state;
    this.#emit("state", { state, previous });
  }

  // ----- timers: at most one per name -----

  #after(name, ms, act) {
    this.#stop(name);
    const timer = setTimeout(() => { this.#timers.delete(name); act(); }, Math.min(Math.max(ms, 0), TIMER_MAX_MS));
    this.#timers.set(name, timer);
  }

  #stop(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }

  // ----- connecting -----

  async #connect() {
    if (this.#isClosed || this.#link) return;
    const turn = ++this.#turn;
    this.#stop("reconnect");
    if (this.#state === "paused") this.#setState("reconnecting");
    let token;
    try {
      token = await this.#askToken();
    } catch (cause) {
      if (turn === this.#turn && !this.#isClosed) this.#retry({ reason: "token", cause });
      return;
    }
    if (turn === this.#turn && !this.#isClosed && !this.#link) this.#dial(this.#chooseTransport(), token);
  }

  async #askToken() {
    const { token } = this.#options;
    return typeof token === "function" ? await token() : token;
  }

  #chooseTransport() {
    const { transport = "auto" } = this.#options;
    if (transport !== "auto") return transport;
    if (!this.#env.WebSocket) return "sse";
    return reachabilityOf(this.#url.origin).blockedUntil > Date.now() ? "sse" : "websocket";
  }

  /** `isSuspect`: a WebSocket could not be opened just now. */
  #dial(kind, token, isSuspect = false) {
    const { liveness, limits, credentials = "same-origin" } = this.#options;
    const url = new URL(this.#url);
    if (this.#last !== null) url.searchParams.set("after", this.#last);
    // The end was received already: this only checks whether something follows.
    if (this.#isFinished) url.searchParams.set("wait", 0);
    let link = null;
    const ifCurrent = act => (...args) => { if (link !== null && this.#link === link) act(...args); };
    const events = {
      open: ifCurrent(() => this.#opened(link, token, isSuspect)),
      received: ifCurrent(() => { this.#receivedAt = now(); this.#isPinging = false; }),
      frame: ifCurrent(data => this.#receive(data)),
      over: ifCurrent(end => this.#over(link, end, token)),
    };
    this.#receivedAt = now();
    this.#isPinging = false;
    if (kind === "websocket") {
      url.protocol = url.protocol.replace(/^http/, "ws");
      link = new WebSocketLink(this.#env, url.href, token, events);
    } else {
      link = new EventStreamLink(this.#env, url.href, token, events, { credentials, charsMax: limits.answerChars });
    }
    this.#link = link;
    this.#transport = kind;
    // An event stream's head arrives once there is something to send; a WebSocket gets the status `waiting`.
    const waitS = kind === "sse" ? Number(url.searchParams.get("wait") ?? WAIT_DEFAULT_S) : 0;
    this.#after("connect", liveness.connectMs + waitS * 1000, () => {
      link.close();
      this.#over(link, { wasOpen: false, message: "no answer in time" }, token);
    });
  }

  #opened(link, token, isSuspect) {
    if (link.kind === "sse") this.#stop("connect");
    const known = reachabilityOf(this.#url.origin);
    if (isSuspect && !known.hasWorked) known.blockedUntil = Date.now() + BLOCKED_MS;
    // A proxy may accept a WebSocket and pass nothing through, so the timer `connect` runs until the first frame.
    this.#setState("open");
    this.#watch();
    if (link.kind === "websocket") this.#planAuth(token);
    // A connection that lasted as long as the longest pause counts as a success.
    this.#after("settled", this.#options.retry.capMs, () => this.#settled());
  }

  #settled() {
    this.#attempt = 0;
    this.#hasRetriedToken = false;
  }

  get #isFinished() { return this.#transcript.finish !== null && !this.#follows; }

  /** Handles the end of a connection, by its cause and by whether the answer is complete. */
  #over(link, end, token) {
    if (this.#link !== link) return;
    this.#drop();
    if (end.cause instanceof RangeError) return this.#fail("too_large", end.cause.message, end);
    const hasReceivedFrame = link.hasReceivedFrame || FULL_CLOSE.has(end.closeCode) || end.closeCode >= 4000;
    if (link.kind === "websocket" && !hasReceivedFrame && (this.#options.transport ?? "auto") === "auto") {
      // Blocked by a proxy, refused, or no server: plain HTTP works, or its status says which.
      return this.#dial("sse", token, !end.wasOpen);
    }
    const isComplete = end.status === 204 || (end.closeCode === 1000 && this.#isFinished);
    if (isComplete) return this.#end("ended", null);
    const code = FINAL_CLOSE.get(end.closeCode) ?? FINAL_STATUS.get(end.status);
    if (code === "not_found" && this.#isFinished) return this.#end("ended", null);
    if (code) return this.#fail(end.errorCode ?? code, end.message || words(code), end);
    if (end.closeCode === 4401 || end.status === 401) return this.#unauthorized(end);
    // An event stream that ends after a terminal frame was cut or is complete: another request shows which.
    if (link.kind === "sse" && end.wasOpen && this.#isFinished && this.#attempt === 0) {
      this.#attempt = 1;
      return void this.#connect();
    }
    this.#retry({ reason: end.wasOpen ? "lost" : "unreachable", ...end });
  }

  #unauthorized(end) {
    const canRenew = typeof this.#options.token === "function";
    if (!canRenew || this.#hasRetriedToken) return this.#fail("unauthorized", end.message || words("unauthorized"), end);
    this.#hasRetriedToken = true;
    void this.#connect();
  }

  #retry({ reason, closeCode, status, retryAfter = null, message, cause }) {
    const { retry } = this.#options;
    if (this.#attempt >= retry.attempts) {
      return this.#fail("unreachable", message || "no connection after all attempts", { closeCode, status, cause });
    }
    const floor = retryAfter ?? (FULL_CLOSE.has(closeCode) ? FULL_FLOOR_MS : 0);
    const delayMs = floor + backoffMs(this.#attempt, retry);
    this.#notBefore = Date.now() + floor;
    this.#attempt += 1;
    this.#setState("reconnecting");
    this.#emit("reconnecting", { attempt: this.#attempt, delayMs, reason, closeCode, status, message });
    // A listener may have closed the subscription.
    if (!this.#isClosed) this.#after("reconnect", delayMs, () => this.#connect());
  }

  /** Drops the connection, whatever its state. */
  #drop() {
    this.#turn += 1;
    for (const name of ["connect", "settled", "watch", "auth"]) this.#stop(name);
    this.#link?.close();
    this.#link = null;
    this.#ack.isUnderWay = false;
    for (const asked of this.#asked.splice(0)) asked.lost?.();
  }

  #leave(reason, cause) {
    this.#drop();
    this.#retry({ reason, message: cause?.message, cause });
  }

  // ----- detecting dead connections -----

  #watch() {
    const { pingAfterMs, sseSilenceMs } = this.#options.liveness;
    const silence = this.#link.kind === "websocket" ? pingAfterMs : sseSilenceMs;
    this.#lookAgain(silence - (now() - this.#receivedAt), silence);
  }

  #lookAgain(ms, silence) {
    const due = now() + ms;
    this.#after("watch", ms, () => {
      if (!this.#link) return;
      // The page was suspended: data that arrived meanwhile has not been delivered yet.
      if (now() - due > SLEPT_MS) return this.#lookAgain(SLEPT_MS, silence);
      if (now() - this.#receivedAt < silence) return this.#watch();
      this.#probe();
    });
  }

  /** Sends a ping, which must be answered in time. */
  #probe() {
    if (this.#link.kind === "sse" || this.#isPinging) return this.#leave("silent");
    if (!this.#ping()) return this.#leave("silent");
    this.#isPinging = true;
    this.#lookAgain(this.#options.liveness.pongMs, this.#options.liveness.pongMs);
  }

  #ping() {
    if (!this.#link?.send({ type: "ping" })) return false;
    this.#asked.push({ type: "ping" });
    return true;
  }

  /** Called when the network is back or the page is visible again. */
  #wake() {
    if (this.#isClosed || this.#state === "paused") return;
    if (this.#timers.has("reconnect")) {
      this.#after("reconnect", this.#notBefore - Date.now(), () => this.#connect());
    } else if (this.#link?.isOpen && this.#link.kind === "websocket" && !this.#isPinging) {
      this.#probe();
    } else if (this.#link?.isOpen && this.#link.kind === "sse") {
      this.#watch();
    }
  }

  #listenToPage() {
    const listen = (target, type, act) => {
      if (!target?.addEventListener) return;
      target.addEventListener(type, act);
      this.#cleanups.push(() => target.removeEventListener(type, act));
    };
    listen(globalThis, "online", () => this.#wake());
    listen(globalThis, "pageshow", () => this.#wake());
    listen(globalThis, "pagehide", () => this.#persist());
    listen(globalThis.document, "visibilitychange", () => {
      if (document.visibilityState === "visible") this.#wake();
      else this.#persist();
    });
    const { signal } = this.#options;
    if (signal?.aborted) queueMicrotask(() => this.close());
    listen(signal, "abort", () => this.close());
  }

  // ----- frames -----

  #receive(data) {
    let frame;
    try {
      frame = JSON.parse(data);
      if (typeof frame?.type !== "string") throw new TypeError("a frame without a type");
      if (frame.id != null && !parseId(frame.id)) throw new TypeError("a frame with a malformed id");
      if (frame.type === "delta" && typeof frame.text !== "string") throw new TypeError("a delta without text");
      if (frame.type === "tool_call" && typeof (frame.arguments ?? "") !== "string") throw new TypeError("a call with malformed arguments");
    } catch (cause) {
      // The daemon sends no such frame, so nothing after it can be trusted either.
      return this.#leave("malformed", cause);
    }
    this.#take(frame);
  }

  /** The only place where the state changes: id and text together. */
  #take(frame) {
    switch (frame.type) {
      case "open": this.#takeOpen(frame); break;
      case "status": this.#streamState = frame.state; break;
      case "gap": if (!this.#takeGap(frame)) return; break;
      case "pong": case "authorized": case "acked": case "cancel_requested": case "refused": this.#answered(frame); break;
      default: if (!this.#moveOn(frame)) return;
    }
    const begins = this.#transcript.apply(frame);
    if (this.#transcript.chars > this.#options.limits.answerChars) {
      return this.#fail("too_large", "the answer is longer than limits.answerChars");
    }
    if (TERMINAL.has(frame.type)) this.#streamState = frame.type === "end" ? "ended" : "failed";
    else if (begins) this.#streamState = "live";
    if (begins) this.#emit("generation", { generation: this.generation });
    this.#hand(frame);
    if (frame.type === "status" && frame.state === "draining" && this.#link) this.#leave("draining");
  }

  #takeOpen(frame) {
    this.#stop("connect");
    if (this.#link?.kind === "websocket") {
      Object.assign(reachabilityOf(this.#url.origin), { hasWorked: true, blockedUntil: 0 });
    }
    if (this.#last === null && parseId(frame.after)) this.#last = frame.after;
    if (this.#link) this.#link.hasReceivedFrame = true;
    this.#streamState = frame.state;
    this.#sendAck();
  }

  /** Returns false if the same gap was reported before the connection was lost. */
  #takeGap(frame) {
    const key = `${frame.reason} ${frame.after} ${frame.next}`;
    if (frame.reason === "recreated") this.#last = "0-0";
    else if (frame.id != null) this.#last = frame.id;
    const isNew = key !== this.#gapSeen;
    this.#gapSeen = key;
    return isNew;
  }

  /** Whether a frame is new. If so, its id becomes the last one. */
  #moveOn(frame) {
    if (frame.id == null) return true;
    if (this.#last !== null && compareIds(frame.id, this.#last) <= 0) {
      // A viewer that resumes after the end gets the terminal frame again: it counts as new only the first time.
      return TERMINAL.has(frame.type) && this.#transcript.finish === null;
    }
    this.#last = frame.id;
    this.#gapSeen = "";
    this.#settled();
    this.#planPersist();
    return true;
  }

  #hand(frame) {
    if (this.#isClosed) return; // A listener has just closed it.
    if (!["pong", "authorized", "acked"].includes(frame.type)) {
      for (const feed of this.#feeds) feed.push(frame);
    }
    if (WITH_EVENT.has(frame.type)) this.#emit(frame.type, frame);
    this.#emit("frame", frame);
    if ([...this.#feeds].some(feed => this.#isFull(feed, 1))) this.#pause();
  }

  // ----- slow iterators -----

  #isFull(feed, share) {
    const { queuedFrames, queuedChars } = this.#options.limits;
    return feed.length > queuedFrames * share || feed.chars > queuedChars * share;
  }

  #pause() {
    if (this.#isClosed || this.#state === "paused") return;
    this.#drop();
    this.#stop("reconnect");
    this.#setState("paused");
  }

  #drained(feed, isOver) {
    if (isOver) this.#feeds.delete(feed);
    this.#goOn();
  }

  #goOn() {
    const isWanted = this.#state === "paused" && !this.#isHeld;
    if (isWanted && ![...this.#feeds].some(feed => this.#isFull(feed, 0.5))) void this.#connect();
  }

  pause() {
    this.#isHeld = true;
    this.#pause();
  }

  resume({ transport } = {}) {
    if (transport !== undefined) this.#options.transport = transport;
    this.#isHeld = false;
    this.#attempt = 0;
    this.#goOn();
  }

  // ----- messages to the server -----

  /**
   * Finds the request that an answer belongs to. Acks and cancels are answered once they are stored, so answers to
   * other messages overtake theirs.
   */
  #answered(frame) {
    const answers = { pong: "ping", authorized: "auth", acked: "ack", cancel_requested: "cancel" };
    const find = type => this.#asked.findIndex(asked => asked.type === type);
    let at = find(answers[frame.type]);
    // Malformed and unknown messages are refused at once, in order; any other refusal most likely belongs to the cancel.
    if (frame.type === "refused") at = frame.code === "not_sent" ? find("ack") : IN_ORDER.has(frame.code) ? 0 : find("cancel");
    if (at < 0 && frame.type === "refused") at = 0;
    if (at < 0) return;
    const [asked] = this.#asked.splice(at, 1);
    if (frame.type === "refused") asked?.refused?.(frame);
    else asked?.taken?.(frame);
  }

  #ask(message, reactions) {
    if (!this.#link?.send(message)) return false;
    this.#asked.push({ type: message.type, ...reactions });
    return true;
  }

  ack(id = this.#last) {
    if (id === null || !parseId(id)) throw new TypeError(`not an entry id: ${id}`);
    if (!this.#ack.isSupported || this.#isClosed) return false;
    const known = this.#ack.wanted;
    if (known === null || compareIds(id, known) > 0) this.#ack.wanted = id;
    this.#sendAck();
    return true;
  }

  #sendAck() {
    const ack = this.#ack;
    if (ack.isUnderWay || !ack.isSupported || ack.wanted === null || ack.wanted === ack.sent) return;
    const id = ack.wanted;
    const reactions = {
      taken: () => { ack.isUnderWay = false; ack.sent = id; this.#sendAck(); },
      refused: ({ code }) => {
        ack.isUnderWay = false;
        if (code === "unsupported" || code === "unknown_type") ack.isSupported = false;
        ack.sent = id;
      },
    };
    if (this.#ask({ type: "ack", id }, reactions)) ack.isUnderWay = true;
  }

  cancel(reason) {
    if (this.#isClosed) return Promise.reject(new LlmBridgeError("closed", "the subscription is closed"));
    if (reason !== undefined && new TextEncoder().encode(reason).length > REASON_BYTES_MAX) {
      return Promise.reject(new RangeError(`a reason has at most ${REASON_BYTES_MAX} bytes`));
    }
    return new Promise((resolve, reject) => {
      let timer = 0;
      let isAnswered = false;
      const once = act => value => {
        if (isAnswered) return;
        isAnswered = true;
        clearTimeout(timer);
        act(value);
      };
      const post = once(() => this.#postCancel(reason).then(resolve, reject));
      const isAsked = this.#ask({ type: "cancel", reason }, {
        taken: once(() => resolve()),
        refused: once(({ code, message }) => reject(new LlmBridgeError(code, message))),
        lost: post,
      });
      if (isAsked) timer = setTimeout(post, CANCEL_ANSWER_MS);
      else post();
    });
  }

  async #postCancel(reason) {
    const url = new URL(this.#url);
    url.pathname += "/cancel";
    url.search = "";
    const send = async () => {
      const token = await this.#askToken();
      const headers = { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) };
      const { credentials = "same-origin" } = this.#options;
      const body = JSON.stringify(reason === undefined ? {} : { reason });
      return this.#env.fetch(url.href, { method: "POST", headers, body, credentials, keepalive: true });
    };
    let response = await send();
    if (response.status === 401 && typeof this.#options.token === "function") response = await send();
    if (response.ok) return;
    const { status, errorCode, message } = await refusal(response);
    throw new LlmBridgeError(errorCode ?? "refused", message ?? `the server answered ${status}`, { status });
  }

  /** Replaces a token before it expires, without a new connection. */
  #planAuth(token) {
    const expiry = typeof this.#options.token === "function" && token ? tokenExpiryMs(token) : null;
    if (expiry === null) return;
    const left = expiry - Date.now();
    // After nine tenths of the remaining time, or half a minute before the end if that is earlier, but not before
    // half of it.
    const ms = Math.max(left / 2, Math.min(left * 0.9, left - 30_000));
    this.#after("auth", ms, () => this.#renew(token));
  }

  async #renew(old) {
    const link = this.#link;
    let token;
    // Without a new token the server closes the connection when the old one expires; `#over` handles that.
    try { token = await this.#askToken(); } catch { return; }
    if (this.#link !== link || !token || token === old) return;
    this.#ask({ type: "auth", token }, { taken: () => this.#planAuth(token) });
  }

  // ----- storage, for reloads -----

  get #storageKey() {
    const { storageKey } = this.#options;
    return storageKey ?? `llm-bridge:${this.#url.origin}${this.#url.pathname}`;
  }

  #planPersist() {
    if (this.#options.storage && !this.#timers.has("persist")) this.#after("persist", PERSIST_MS, () => this.#persist());
  }

  /** Stores id and text as one value, so that the stored state is always consistent. */
  #persist() {
    const { storage, limits } = this.#options;
    if (!storage || this.#last === null) return;
    try {
      const isSmall = this.#transcript.chars <= limits.storedChars;
      const frames = isSmall ? this.#transcript.frames(this.#last) : [];
      const value = JSON.stringify({ v: 1, last: this.#last, complete: this.#transcript.complete, frames });
      if (isSmall && value.length <= 2 * limits.storedChars + 4096) storage.setItem(this.#storageKey, value);
      else storage.removeItem(this.#storageKey);
    } catch {
      // Full or forbidden. The older stored state is still valid.
    }
  }

  /** Emits the stored state as merged frames, so that a page needs no second way to show it. */
  #restore() {
    const { storage } = this.#options;
    if (!storage || this.#isClosed) return;
    try {
      const { v, last, complete, frames } = JSON.parse(storage.getItem(this.#storageKey) ?? "{}");
      if (v !== 1 || !parseId(last) || !Array.isArray(frames)) return;
      const transcript = new Transcript();
      for (const frame of frames) {
        transcript.apply(frame);
        if (complete === false && frame === frames[0]) transcript.apply({ type: "gap", reason: "trimmed" });
      }
      this.#transcript = transcript;
      this.#last = last;
      if (frames.length) this.#emit("generation", { generation: this.generation });
      for (const frame of frames) this.#hand({ ...frame, restored: true });
    } catch {
      // Not stored by this module: start as if there were nothing.
    }
  }

  // ----- the end -----

  close() { this.#end("closed", null); }

  #fail(code, message, detail) { this.#end("failed", new LlmBridgeError(code, message, detail)); }

  #end(reason, error) {
    if (this.#isClosed) return;
    this.#drop();
    this.#persist();
    this.#setState("closed");
    this.#error = error;
    for (const name of [...this.#timers.keys()]) this.#stop(name);
    for (const cleanup of this.#cleanups.splice(0)) cleanup();
    for (const feed of this.#feeds) feed.finish(error);
    this.#feeds.clear();
    this.#emit("closed", { reason, error });
    if (error) this.#settle.reject(error);
    else this.#settle.resolve({ reason, finish: this.finish, lastId: this.#last, text: this.text() });
  }
}

function now() { return globalThis.performance.now(); }

function report(error) {
  if (globalThis.reportError) globalThis.reportError(error);
  else setTimeout(() => { throw error; });
}

function words(code) {
  return {
    not_found: "there is no such stream",
    forbidden: "the token or the page's origin does not cover this stream",
    unauthorized: "the token is missing, bad or expired",
    misdirected: "the server does not answer to this host name",
  }[code] ?? "the server refused the request";
}

/** Reads a stream. See llm-bridge.d.ts for the options. */
export function subscribe(target, options = {}) {
  return new Subscription(target, options);
}
