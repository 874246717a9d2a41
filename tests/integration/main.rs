//! The daemon's contract, tested from outside: each test starts its own redis-server and its own daemon, and talks to
//! it like producers, clients and operators do. The subjects:

#![allow(clippy::unwrap_used, reason = "what is not there fails the test")]

#[allow(dead_code, reason = "the equipment is whole, whichever subjects use it")]
mod support;

/// An answer can be resumed at every entry, by every way to name one, with exactly the rest.
mod resume;

/// Fifty clients join a stream at full speed; each gets everything once and in order.
mod seam;

/// Entries and keys with conventional names.
mod flat;

/// Many live streams at once, whose news Redis pushes to the reader.
mod many;

/// Several answers in one stream; late entries, retries and gaps.
mod generations;

/// Each native entry's frame; text and foreign objects unchanged; undecodable entries reported.
mod formats;

/// The original clients of other formats.
mod clients;

/// Output in formats other than the native one, to the byte, and when there is nothing to send.
mod transactions;
mod translations;

/// Entries as LLM providers send them: delivered as native frames, resumed anywhere, ended alike for all.
mod providers;

/// Models' output in unusual shapes: sent in every format, once, and never dropped.
mod model_output;

/// Entries removed before they could be sent are reported: trimmed, recreated, lost by Redis.
mod gaps;

/// Large entries that arrive while viewers are live.
mod large_live;

/// Nothing is skipped, even if another program trims a stream or uses the daemon's group.
mod unseen;

/// Redis killed, suspended, loading, full, emptied, partly broken.
mod outage;

/// Several daemons on one Redis, and the ownership of an instance id.
mod instances;

/// A group's position is that of the entries on the sockets; a stream without viewers costs nothing.
mod acks;

/// An entry that cannot be decoded is stored once as a dead letter.
mod dead_letters;

/// Receipts: answers that clients acknowledged, and those that no client acknowledged in time.
mod receipts;

/// The state that a new viewer gets at the end of an answer.
mod moment;

/// Producers that become silent, and those that are given up.
mod abandoned;

/// The daemon's end, in order or not, and how clients continue.
mod drain;

/// A resume in a long history costs only the entries after its position.
mod checkpoints;

/// Large entries: reads are bounded by bytes, not by counts.
mod large;

/// Everything at once: faults drawn from a seed, over many streams, and viewers that connect and leave.
mod faults;

/// Crowds that join at once, each viewer with another `after`.
mod crowd;

/// The state so far as one JSON object.
mod state;

/// Streams that do not exist yet are waited for, and cost Redis nothing.
mod waiting;

/// One WebSocket for many streams.
mod multiplex;

/// The messages that a client may send on a WebSocket.
mod messages;

/// Requests that are refused at once: for their names, queries, methods or origins.
mod errors;

/// Threads are named by their role, as many as configured.
mod threads;

/// The sources follow the house rules.
mod tidy;

/// Which files import which: no circles, and modules that are apart.
mod imports;

/// Clients that read slowly or not at all: bounded memory, nobody else affected, nothing lost.
mod slow;

/// Clients that violate HTTP and WebSocket: others are not affected.
mod hostile;

/// Dozens of clients that send requests endlessly: live text continues, and nothing grows.
mod floods;

/// Producers that write undecodable entries, or far too many: nothing else is lost.
mod entries;

/// Requests to stop: an accepted one is written, and one that cannot be written is refused.
mod cancels;

/// Clients and streams that come and go for a long time: clients that stay get everything, and nothing is left.
mod churn;

/// Limits of connections, rates and sizes; keeping connections alive.
mod limits;

/// Frames merged over a time that the client chooses.
mod batching;

/// The operators' view: probes, stats, metrics, the dashboard, the log.
mod observability;

/// The log under floods of bad input and through outages.
mod logs;

/// The daemon as a systemd service: notifications, passed sockets, the unit.
mod systemd;

/// Exit statuses, the configuration and its sources, the rights that are needed.
mod command_line;

/// The commands for a terminal besides the daemon: `produce`, `tail`, `demo`.
mod terminal;

/// Commands that are ended by a signal, or whose terminal is closed.
mod signals;

/// `produce` and the answers of models' servers: passed on, refused, broken off, cancelled.
mod upstream;

/// An answer other than an event stream is reported at once, with the server's message.
mod no_events;

/// The documents: their commands and programs, run unchanged, and their links.
mod documents;

/// The guarantees to users: each test that is named for one exists.
mod guarantees;

/// Workers that share the requests in Redis: failures, cancelling, draining, death in the middle of an answer.
mod relay;

/// The browser client, served and in a real browser.
mod browser;

/// Recorded answers of real providers, if there are any.
mod fixtures;
