//! Delivery: serves clients over HTTP and WebSocket, and sends them the frames of their streams.
//!
//! ```text
//!                    ┌───────────── event_loop: one round after another ──────────────┐
//!   sockets ────────▶│ accepting ─▶ reading ──▶ requests, conversation ─▶ refusals   │
//!                    │                                │   └▶ receipts, cancels ───────┼─▶ recorder
//!   other threads ──▶│ exchange ───────────┐          │                               │
//!   time ───────────▶│ deadlines ────────┐ │          │                               │
//!                    └───────────────────┼─┼──────────┼───────────────▲───────────────┘
//!                                        ▼ ▼          ▼               │ Effect: a viewer ends
//!                                        views: the position of each viewer, and its next frames
//!                                           │ bytes            │ requests
//!   sockets ◀── sending ◀────────── connections            outbound ─▶ replay, transform, watcher
//! ```
//!
//! - [`event_loop`] is the only code that knows all parts. Each of its files handles one source of events, and carries
//!   out the effects on the other parts. [`event_loop::serve`] waits in one mio `Poll` per thread.
//! - `views` holds the viewers of all streams. It receives events, and passes bytes and requests to the two parts
//!   below it. The end of a viewer is returned as an effect.
//! - The other parts own their state and do not know each other: `connections` (sockets, and the order in which they
//!   are served), `streams` (viewers by stream), `history_reads` (viewers by read), [`outbound`] (messages to other
//!   threads), `admission` (policies and limits), [`acceptor`] (the listener).
//! - Tests run a whole thread without sockets and clocks through `stepped` of [`event_loop`] and `memory_socket`: see
//!   `src/simulation`.
//! - Pure modules, which use no socket, thread or clock: [`request`], [`route`], [`response`], [`message`],
//!   [`mod@format`], [`websocket`], [`outbox`], [`seam`], [`timer`], [`table`], [`backlog`], [`input`], [`budget`],
//!   [`body`], `sharing`, `ack_tracker`, `held`, `viewer`.

pub mod acceptor;
mod ack_tracker;
mod admission;
pub mod backlog;
pub mod body;
pub mod budget;
pub mod close_code;
mod connection;
mod connections;
pub mod event_loop;
pub mod format;
mod held;
mod history_reads;
pub mod http_error;
pub mod input;
#[cfg(test)]
pub(crate) mod memory_socket;
pub mod message;
pub mod outbound;
pub mod outbox;
pub mod request;
pub mod response;
pub mod route;
pub mod seam;
mod sharing;
mod socket;
mod streams;
pub mod table;
pub mod timer;
mod viewer;
mod views;
pub mod websocket;
mod write_queue;
