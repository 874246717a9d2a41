//! llm-bridge delivers LLM tokens from Redis Streams to WebSocket and SSE clients: in order, resumable
//! at any entry, with nothing lost.
//!
//! # The path of a token
//!
//! ```text
//!  producer ──XADD──▶ Redis ─────XREAD────▶ reader-i ──▶ transform-j ──▶ deliver-k ──▶ client
//!                       │                   paced, acks   decode, order,  mio loop,     WebSocket
//!                       │                                 merge, encode   outboxes      or SSE
//!                       │◀── position, with next read ◀── AckWatermark ◀──┘
//!                       └──XRANGE──▶ replay-r ──▶ transform-j                (late, resumed, slow clients)
//! ```
//!
//! # Threads
//!
//! | thread | waits for | owns | module |
//! | --- | --- | --- | --- |
//! | `main` | signals, ended threads | the life of the process, systemd | [`daemon`] |
//! | `watcher` | requests, pushes of Redis | lease, names waited for, Redis' clock | [`watcher`] |
//! | `recorder` | its four queues | writes for others: cancel requests, ends, dead letters, receipts | [`recorder`] |
//! | `reader-i` | XREAD or pushes, commands | live streams that hash to it, their groups, acks | [`ingest::reader`] |
//! | `replay-r` | requests | a connection for history | [`ingest::replay`] |
//! | `transform-j` | its three queues | the state of the live streams that hash to it | [`transform::worker`] |
//! | `deliver-k` | its `Poll` | connections, viewers, outboxes, timers | [`deliver::event_loop`] |
//! | `admin` | HTTP | health, metrics, dashboard | [`observe::admin`] |
//! | `stats` | a Unix socket | | [`observe::stats_socket`] |
//!
//! Besides the daemon, `llm-bridge relay` is a process with threads of its own ([`relay`]), and the library's
//! [`produce::Writer`] has one for programs that write.
//!
//! The reader that reads a small live batch also processes it to the end: it works on the state of the transform and
//! the delivery thread while these sleep ([`inline_stage`]), because waking them would cost more than the work.
//! Larger batches, and those that find the next thread busy, go through the queues, and the threads work in parallel.
//!
//! # Invariants
//!
//! - **No thread waits for one downstream.** A delivery thread whose inbox is full is detached from the streams
//!   concerned and fetches them from history. Only replay threads and readers may wait for `transform`, which waits
//!   for nobody.
//! - **Any fault of a live stream sends its viewers to history**, which alone finds out what happened. A reader
//!   repairs nothing: it reports the stream as broken and forgets it.
//! - **Position and state cross the seam together** ([`message::Cursor`]): the id, the highest `seq`, the generation,
//!   how many entries were passed, and the progress of a provider's generation.
//! - **The cursor determines where a reader continues, not the group's position**; a client's position is its last
//!   id.
//! - **A frame is encoded once** and shared by reference, however many clients receive it.
//! - **Every queue and buffer has a limit** ([`queue`], `daemon::capacity`, `client.send_budget`), and the behaviour
//!   at the limit is decided, counted and documented.
//! - **A thread that ends makes the daemon stop**, in order. A thread that hangs is named in the log, and systemd's
//!   watchdog is no longer notified ([`pulse`]).
//!
//! Deliberately absent: an async runtime, state on disk, and any memory of streams beyond cursors. All state is in
//! Redis; the daemon can be killed at any time.
//!
//! `ingest`, `transform`, `deliver`, `watcher` and `recorder` never import each other: they share [`model`],
//! [`decode`], [`message`] and [`queue`], and only [`daemon`] knows them all.

// In reading order: the vocabulary,
pub mod model;
// JSON, and the formats of LLM providers,
mod json;
pub mod provider;
pub mod visible;
// decoding of entries, and the messages between threads,
pub mod decode;
pub mod message;
// channels, threads, stopping, replaceable settings and the log,
pub mod inline_stage;
pub mod log_filter;
pub mod log_limit;
pub mod pulse;
pub mod queue;
pub mod stop;
pub mod swap;
pub mod thread;
// Redis and what reads or writes it,
pub mod ingest;
pub mod recorder;
pub mod redis;
pub mod watcher;
// processing and delivery,
pub mod deliver;
pub mod security;
pub mod transform;
pub mod web;
// the process around them,
pub mod config;
pub mod daemon;
pub mod observe;
// and the programs: the command line, the library for producers, and the relay.
pub mod cli;
pub mod produce;
pub mod relay;
// For tests/fuzz.
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
// For the tests that need several of the parts above.
#[cfg(test)]
mod simulation;
