//! Delivery: requests of clients over HTTP and WebSocket, and the frames on their way to the sockets.
//!
//! ```text
//!                    ┌───────────── event_loop: one round after another ──────────────┐
//!   sockets ────────▶│ accepting ─▶ reading ──▶ requests, conversation ─▶ refusals   │
//!                    │                                │   └▶ receipts, cancels ───────┼─▶ recorder
//!   other threads ──▶│ exchange ───────────┐          │                               │
//!   time ───────────▶│ deadlines ────────┐ │          │                               │
//!                    └───────────────────┼─┼──────────┼───────────────▲───────────────┘
//!                                        ▼ ▼          ▼               │ Effect: a viewer ends
//!                                        views: where each viewer stands, what it is sent next
//!                                           │ bytes            │ requests
//!   sockets ◀── sending ◀────────── connections            outbound ─▶ replay, transform, watcher
//! ```
//!
//! - [`event_loop`] is the only code that knows all parts. Its files are the sources of events, and carry out what
//!   follows from them; [`event_loop::serve`] waits in one mio `Poll` a thread.
//! - `views` has the viewers of all streams. Events go in; bytes and requests go to the two parts below it; whatever
//!   ends a viewer comes back as an effect.
//! - The other parts own their state and know nothing of each other: `connections` (sockets, and whose turn it is),
//!   `streams` (viewers by stream), `history_reads` (viewers by read), [`outbound`] (messages to other threads),
//!   `admission` (policies and limits), [`acceptor`] (the listener).
//! - Tests drive a whole thread without sockets and clocks through [`event_loop`]'s `stepped` and `memory_socket`: see
//!   `src/simulation`.
//! - Pure modules, which keep no socket, thread or clock: [`request`], [`route`], [`response`], [`message`],
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
