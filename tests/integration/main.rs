//! The daemon's contract, tested from outside: each test starts its own redis-server and its own daemon,
//! and speaks to it as producers, clients and operators do. The subjects:

#![allow(clippy::unwrap_used, reason = "what is not there fails the test")]

#[allow(dead_code, reason = "the equipment is whole, whichever subjects use it")]
mod support;

/// An answer resumes at every entry, by every way to name one, with exactly the rest.
mod resume;

/// Fifty clients join a stream at full speed; each gets everything once and in order.
mod seam;

/// Entries and keys as people have them already.
mod flat;

/// Many live streams at once, of which Redis tells the reader.
mod many;

/// Answers one after another in a stream; late entries, retries and gaps.
mod generations;

/// Each native entry's frame, text and foreign objects unchanged, unreadable entries named.
mod formats;

/// The clients of other formats, as their makers wrote them.
mod clients;

/// Output in formats other than the native one, to the byte, and when there is nothing to send.
mod translations;

/// Entries as LLM providers send them: told natively, resumed anywhere, ended alike for all.
mod providers;

/// Models' output in unusual shapes: sent in every format, once, and never dropped.
mod said;

/// Entries removed before they could be sent are named: trimmed, begun anew, lost by Redis.
mod gaps;

/// Large entries that come while viewers are live.
mod large_live;

/// Nothing is passed over, even if someone trims a stream or meddles with the daemon's group.
mod unseen;

/// Redis killed, frozen, loading, full, emptied, broken in parts.
mod outage;

/// Several daemons on one Redis, and whose an instance id is.
mod instances;

/// A group's position is that of the entries on the sockets; a stream that nobody watches costs nothing.
mod acks;

/// An entry that cannot be decoded is kept once as a dead letter.
mod dead_letters;

/// Receipts: answers that clients acknowledged, and those that nobody took in time.
mod receipts;

/// The state that a newcomer is told at the end of an answer.
mod moment;

/// Producers that fall silent, and those that are given up.
mod abandoned;

/// The daemon's end, in order or not, and how clients go on.
mod drain;

/// A resume in a long history costs only the entries after its position.
mod checkpoints;

/// Large entries: bytes decide how much is read, not counts.
mod large;

/// Everything at once: faults drawn from a seed, over many streams, and viewers that come and go.
mod faults;

/// Crowds that come at once, each viewer with another `after`.
mod crowd;

/// The state so far as one JSON object.
mod state;

/// Names that nobody has written yet are waited for, and cost Redis nothing.
mod waiting;

/// One WebSocket for many streams.
mod multiplex;

/// The messages that a client may send on a WebSocket.
mod messages;

/// Requests that are refused at once: for their names, queries, methods or origins.
mod errors;

/// Threads are named by their role, as many as configured.
mod threads;

/// The sources keep the house's rules.
mod tidy;

/// Which files import which: no circles, and parts that are apart.
mod imports;

/// Clients that read slowly or not at all: bounded memory, nobody else disturbed, nothing lost.
mod slow;

/// Clients that break the rules of HTTP and WebSocket: the others notice nothing.
mod hostile;

/// Clients by the dozen that ask without end: live text goes on, and nothing grows.
mod floods;

/// Producers that write unreadable entries, or far too many: nothing else is lost.
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
mod seeing;

/// The log under floods of bad input and through outages.
mod logs;

/// The daemon as a systemd service: notifications, passed sockets, the unit.
mod systemd;

/// Exit statuses, the configuration and where it comes from, the rights that are needed.
mod command_line;

/// The commands for a terminal beside the daemon: `produce`, `tail`, `demo`.
mod terminal;

/// Commands that are told to end by a signal, or whose terminal is closed.
mod signals;

/// `produce` and the answers of models' servers: passed on, refused, broken off, cancelled.
mod upstream;

/// An answer other than an event stream is reported at once, in the server's words.
mod no_events;

/// The documents: their commands and programs, run as they stand there, and their links.
mod documents;

/// The guarantees to users: each test that is named for one exists.
mod guarantees;

/// Workers that share the requests in Redis: failures, cancelling, draining, death in mid-answer.
mod relay;

/// The browser client, served and in a real browser.
mod browser;

/// Recorded answers of real providers, where they are at hand.
mod fixtures;
