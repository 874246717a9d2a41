//! llm-bridge delivers LLM tokens from Redis Streams to WebSocket and SSE clients: in order, resumable
//! at any entry, with nothing lost.
//!
//! # The way of a token
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
//! Beside the daemon, `llm-bridge relay` is a process with threads of its own ([`relay`]), and the library's
//! [`produce::Writer`] one for programs that write.
//!
//! A small live batch is worked on to its end by the reader that brings it: it takes a turn at the transform's and the
//! delivery thread's state while these sleep ([`inline_stage`]), because waking them would cost more than the work. Larger
//! ones, and whatever finds the next thread at work, go through the queues, and the threads work side by side.
//!
//! # Invariants
//!
//! - **Nobody downstream is waited for.** A delivery thread whose inbox is full is detached from the streams
//!   concerned and fetches them from history. Replay threads and readers may wait for `transform`, which waits
//!   for nobody.
//! - **Any fault of a live stream sends its viewers to history**, the one way that finds out what happened.
//!   A reader mends nothing: it reports the stream as broken and forgets it.
//! - **Position and state cross the seam together** ([`message::Cursor`]): the id, the highest `seq`, the
//!   generation, how many entries were passed, what a provider's entries have said that later ones build on.
//! - **The cursor is the truth, the group's position is not**; the client's last id is the truth about the client.
//! - **A frame is encoded once** and shared by reference, however many clients receive it.
//! - **Every queue and buffer has a bound** ([`queue`], `daemon::capacity`, `client.send_budget`), and what
//!   happens there is decided, counted and documented.
//! - **A thread that ends ends the daemon**, in order. One that hangs is named in the log, and systemd's watchdog is
//!   not fed any more ([`pulse`]).
//!
//! Deliberately absent: an async runtime, state on disk, and any memory of streams beyond cursors. Redis is
//! the memory; the daemon can be killed at any instant.
//!
//! `ingest`, `transform`, `deliver`, `watcher` and `recorder` never import each other: they meet in [`model`],
//! [`decode`], [`message`], [`queue`] and in [`daemon`], which alone knows them all.

// In reading order: the vocabulary,
pub mod model;
// what is said in it, and in the words of LLM providers,
mod json;
pub mod provider;
pub mod visible;
// what entries say, and what the threads tell each other,
pub mod decode;
pub mod message;
// the doors to channels, threads, stopping, exchanged settings and the log,
pub mod inline_stage;
pub mod log_filter;
pub mod log_limit;
pub mod pulse;
pub mod queue;
pub mod stop;
pub mod swap;
pub mod thread;
// Redis and what is read from it,
pub mod ingest;
pub mod recorder;
pub mod redis;
pub mod watcher;
// what is made of it and how it is delivered,
pub mod deliver;
pub mod security;
pub mod transform;
pub mod web;
// the process around them,
pub mod config;
pub mod daemon;
pub mod observe;
// and the programs: the command line, the producer that others can use, and the worker that answers requests.
pub mod cli;
pub mod produce;
pub mod relay;
// For tests/fuzz.
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
