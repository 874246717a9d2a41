//! Delivery: what clients ask over HTTP and WebSocket, and how the frames reach their sockets.
//!
//! ```text
//!   sockets ─▶ accepting ─▶ listening ─▶ refusals ─▶ requests, conversation   deadlines: keep-alive, slow, wait, drain
//!                                                        │    └─▶ receipts, cancels ─▶ recorder
//!                                                        └─▶ viewing ─▶ jobs ─▶ replay threads
//!   sockets ◀─ sending ◀─ feed ◀──────────────────────────────────────────────── transform threads
//! ```
//!
//! - [`serve`] waits in one mio Poll a thread; [`event_loop`] has the rounds and their order.
//! - The modules of the picture say what follows from what. They act on the parts of a [`delivery::Delivery`].
//! - The parts own their state and know nothing of each other: `connections` (whose turn it is), `streams` (viewers and
//!   hubs), `history_reads` (who shares which), [`outbound`] (messages to other threads), `admission` (policies and
//!   limits), [`acceptor`] (the listener).
//! - Pure modules, which keep no socket, thread or clock: [`request`], [`route`], [`response`], [`message`],
//!   [`mod@format`], [`websocket`], [`outbox`], [`seam`], [`timer`], [`table`], [`backlog`], [`input`], [`budget`],
//!   `sharing`, `ack_tracker`, `held`, `viewer`.

mod accepting;
pub mod acceptor;
mod ack_tracker;
mod admission;
pub mod backlog;
pub mod body;
pub mod budget;
mod cancels;
pub mod close_code;
mod connection;
mod connections;
mod conversation;
mod deadlines;
pub mod delivery;
mod endings;
pub mod event_loop;
mod exchange;
pub mod format;
mod held;
mod history_reads;
pub mod http_error;
pub mod input;
mod listening;
pub mod message;
pub mod outbound;
pub mod outbox;
mod receipts;
mod refusals;
pub mod request;
mod requests;
pub mod response;
pub mod route;
pub mod seam;
mod sending;
pub mod serve;
mod sharing;
mod socket;
mod streams;
pub mod table;
pub mod timer;
mod viewer;
mod views;
pub mod websocket;
