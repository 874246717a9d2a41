// Types of llm-bridge.js: what frames are, what a subscription does, and what its options mean.

/** `ms-n`, or `ms-n.k` for the frames of an entry before its last one. Keep it; it resumes exactly. */
export type EntryId = string;

/** `content` if absent. */
export type Channel = "content" | "reasoning" | "refusal" | (string & {});

export type Json = null | boolean | number | string | Json[] | { [member: string]: Json };

interface Entry {
  /** The last entry that the frame covers. */
  id: EntryId;
  seq?: number;
  /** How many entries were merged into the frame; absent when one. */
  count?: number;
  /** It was shown before this page was reloaded, and is read from `storage`. */
  restored?: true;
}

export interface OpenFrame {
  type: "open";
  stream: string;
  after: EntryId;
  state: "waiting" | "live" | "stalled" | "ended" | "failed";
}
export interface StartFrame extends Entry {
  type: "start";
  generation?: string;
  metadata?: { [member: string]: Json };
}
export interface DeltaFrame extends Entry {
  type: "delta";
  text: string;
  channel?: Channel;
  /** The choice; 0 if absent. */
  index?: number;
}
export interface ToolCallFrame extends Entry {
  type: "tool_call";
  index?: number;
  call?: number;
  call_id?: string;
  name?: string;
  /** A piece of JSON text. */
  arguments: string;
}
/** The generation is complete. */
export interface EndFrame extends Entry {
  type: "end";
  finish_reason?: string;
  usage?: { [member: string]: Json };
}
/** The generation failed. For failures of the connection see `closed`. */
export interface ErrorFrame extends Entry {
  type: "error";
  code: string;
  message?: string;
}
export interface CustomFrame extends Entry {
  type: "custom";
  data: { [member: string]: Json };
}
/** An entry that could not be decoded. */
export interface SkippedFrame extends Entry {
  type: "skipped";
  reason: "malformed" | "no_payload" | "too_large";
  /** The defect, the fields that the entry has, and those that were expected. */
  message?: string;
}
/** Entries that are no longer available. */
export interface GapFrame {
  type: "gap";
  /** Where the stream continues, if that is not clear from the next frame. */
  id?: EntryId;
  after: EntryId;
  next: EntryId | null;
  lost: number | null;
  reason: "trimmed" | "recreated" | "producer" | "failover";
}
export interface StatusFrame {
  type: "status";
  state: "waiting" | "live" | "degraded" | "stalled" | "draining";
}
/** A message of this client was not accepted; the connection stays open. */
export interface RefusedFrame {
  type: "refused";
  code: string;
  message: string;
}
export interface CancelRequestedFrame {
  type: "cancel_requested";
}

/** Any frame; `type` distinguishes them. */
export type Frame =
  | OpenFrame | StartFrame | DeltaFrame | ToolCallFrame | EndFrame | ErrorFrame | CustomFrame | SkippedFrame
  | GapFrame | StatusFrame | RefusedFrame | CancelRequestedFrame;

/** State of the connection. `paused`: closed on purpose, by `pause()` or because an iterator is slow. */
export type ConnectionState = "connecting" | "open" | "reconnecting" | "paused" | "closed";
/** The stream's state, as last reported by the server. */
export type StreamState = OpenFrame["state"] | StatusFrame["state"];
export type Transport = "websocket" | "sse";

/** A frame of each type, after the subscription has applied it, and events of the client itself. */
export type SubscriptionEvents = { [F in Frame as F["type"]]: F } & {
  /** Any frame, after the event of its own type. */
  frame: Frame;
  /** A generation begins, including the first: the text so far was cleared. Emitted before its first frame. */
  generation: { generation: string | null };
  state: { state: ConnectionState; previous: ConnectionState };
  reconnecting: {
    /** From 1; restarts after every frame with a new id. */
    attempt: number;
    delayMs: number;
    reason: "lost" | "unreachable" | "silent" | "draining" | "malformed" | "token";
    closeCode?: number;
    status?: number;
    message?: string;
  };
  /** The subscription has ended. `error` is null unless `reason` is `failed`. */
  closed: { reason: "ended" | "closed" | "failed"; error: LlmBridgeError | null };
};

export type ErrorCode =
  | "not_found" | "bad_request" | "forbidden" | "misdirected" | "unauthorized" | "refused" | "unreachable" | "too_large" | "closed"
  | (string & {});

export class LlmBridgeError extends Error {
  constructor(code: ErrorCode, message: string, detail?: { closeCode?: number; status?: number; cause?: unknown });
  readonly name: "LlmBridgeError";
  readonly code: ErrorCode;
  readonly closeCode?: number;
  readonly status?: number;
}

/** The parts of `Storage` that are used. */
export interface StateStorage {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
  removeItem(key: string): void;
}

export interface SubscribeOptions {
  /** Where to begin: an id, `0` (default; the whole stream), `last` (the newest generation), `$` (only new entries). */
  after?: EntryId | "0" | "last" | "$";
  /** Stay connected for later generations. */
  follow?: boolean;
  /** How many seconds to wait for a stream that does not exist yet. */
  wait?: number;
  /** The time over which the server may merge frames. */
  batchMs?: number;
  /**
   * The token, or a function that returns one. The function is called for every connection, again when the server
   * refuses a token, and before a JWT expires, so that a WebSocket can stay open. It should cache valid tokens.
   */
  token?: string | (() => string | Promise<string>);
  /**
   * `auto` (default): WebSocket, and SSE if none can be opened. The result is kept for ten minutes, unless a
   * WebSocket has worked with this server before.
   */
  transport?: Transport | "auto";
  /**
   * Where text and last id are kept over a reload, such as `sessionStorage`. After a reload the stored text is
   * emitted first, as merged frames with `restored`. An answer longer than `limits.storedChars` is not stored: it is
   * requested again from `after` on. Either way the text is complete.
   */
  storage?: StateStorage;
  /** Default: `llm-bridge:` and the stream's URL without its query. */
  storageKey?: string;
  /** Ends the subscription as `close()` does. */
  signal?: AbortSignal;
  /** For requests by `fetch`; default `same-origin`. */
  credentials?: RequestCredentials;
  retry?: {
    /** The longest first wait; default 250. Each wait is a random part of a bound that doubles. */
    baseMs?: number;
    /** The longest wait; default 10,000. */
    capMs?: number;
    /** After how many failures in a row to give up; default: never. */
    attempts?: number;
  };
  liveness?: {
    /** How long a connection may take until its first data; default 10,000. */
    connectMs?: number;
    /** After how much silence a ping is sent; default 20,000. */
    pingAfterMs?: number;
    /** How long the answer may take; default 10,000. */
    pongMs?: number;
    /** After how much silence an event stream is closed; the server sends comments every 15 s. Default 45,000. */
    sseSilenceMs?: number;
  };
  limits?: {
    /** A longer answer ends the subscription with `too_large`; default 64 Mi. */
    answerChars?: number;
    /** The maximum number of frames that wait in an iterator; default 1,024. See `Subscription`'s iterator. */
    queuedFrames?: number;
    /** Default 4 Mi characters. */
    queuedChars?: number;
    /** The longest answer that is kept in `storage`; default 1 Mi. */
    storedChars?: number;
  };
  /** Replacements of the global ones, for tests and old runtimes. */
  fetch?: typeof fetch;
  WebSocket?: typeof WebSocket;
}

/** A stream by its URL (absolute, or relative to the page), or by its name. */
export type Target = string | URL | {
  /** Default: the page's origin. A path in it is kept. */
  base?: string | URL;
  session: string;
  model: string;
};

export interface ToolCall {
  /** The choice. */
  index: number;
  /** The number within the choice. */
  call: number;
  id: string | null;
  name: string | null;
  /** JSON text, as far as it has arrived. */
  arguments: string;
}

export interface Result {
  reason: "ended" | "closed";
  /** The terminal frame of the newest generation, if it has arrived. */
  finish: EndFrame | ErrorFrame | null;
  lastId: EntryId | null;
  /** The text of choice 0 on `content`. */
  text: string;
}

export interface Subscription extends AsyncIterable<Frame> {
  readonly url: string;
  readonly state: ConnectionState;
  readonly streamState: StreamState | null;
  readonly transport: Transport | null;
  /** The id to resume after. */
  readonly lastId: EntryId | null;
  /** Belongs to the newest generation, as do the members below. */
  readonly generation: string | null;
  readonly metadata: { [member: string]: Json } | null;
  readonly finish: EndFrame | ErrorFrame | null;
  /** False if a `gap` reported that a part of it was lost. */
  readonly complete: boolean;
  text(channel?: Channel, choice?: number): string;
  channels(choice?: number): Channel[];
  toolCalls(choice?: number): ToolCall[];

  /**
   * Resolves when the stream has ended or `close()` was called; rejects with an `LlmBridgeError` when another
   * attempt would not help. It need not be awaited.
   */
  readonly done: Promise<Result>;

  /** Adds a listener; returns a function that removes it. Add listeners in the turn of `subscribe` to miss nothing. */
  on<T extends keyof SubscriptionEvents>(type: T, listener: (event: SubscriptionEvents[T]) => void): () => void;
  once<T extends keyof SubscriptionEvents>(type: T, listener: (event: SubscriptionEvents[T]) => void): () => void;
  off<T extends keyof SubscriptionEvents>(type: T, listener: (event: SubscriptionEvents[T]) => void): void;

  /**
   * The frames from now on. Ends with the subscription, throws if `done` rejects; leaving the loop ends only the
   * iterator. Waiting neighbours are merged as a server would merge them. Beyond `limits.queuedFrames` or
   * `.queuedChars` the connection is closed (`paused`) and resumed once half is read: nothing is lost, memory
   * stays bounded, and other listeners wait as well.
   */
  [Symbol.asyncIterator](): AsyncIterableIterator<Frame>;

  /** Asks the producer to stop, over the open WebSocket or by POST. Resolves once the request is accepted. */
  cancel(reason?: string): Promise<void>;
  /** Confirms that this client has everything up to `id`. False if the server is known not to support that. */
  ack(id?: EntryId): boolean;
  /** Closes the connection until `resume()`. */
  pause(): void;
  resume(options?: { transport?: Transport | "auto" }): void;
  close(): void;
}

export function subscribe(target: Target, options?: SubscribeOptions): Subscription;

/** The order of two ids: negative, 0 or positive. Throws a TypeError for a malformed one. */
export function compareIds(a: EntryId, b: EntryId): number;

/** A generation assembled from its frames, without any connection. */
export class Transcript {
  readonly generation: string | null;
  readonly metadata: { [member: string]: Json } | null;
  readonly finish: EndFrame | ErrorFrame | null;
  readonly complete: boolean;
  readonly chars: number;
  /** True if the frame began a generation. */
  apply(frame: Frame): boolean;
  text(channel?: Channel, choice?: number): string;
  channels(choice?: number): Channel[];
  toolCalls(choice?: number): ToolCall[];
  frames(id: EntryId): Frame[];
}

/** Two neighbouring frames merged into one if that changes no text; else null. */
export function mergeFrames(first: Frame, next: Frame): Frame | null;
export function backoffMs(attempt: number, retry?: { baseMs: number; capMs: number }, random?: () => number): number;
export function retryAfterMs(value: string | null, now?: number): number | null;
export function tokenExpiryMs(token: string): number | null;
export class EventStreamParser {
  constructor(onData: (data: string) => void, charsMax?: number);
  push(text: string): void;
}
