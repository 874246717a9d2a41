//! Delivery: what clients ask over HTTP and WebSocket, and how the frames reach their sockets.
//!
//! ```text
//!              serve: one mio Poll a thread ─▶ event_loop: rounds, timers     exchange: inbox, other threads
//!                                                             (delivery: the state that all of these act on)
//!   sockets ─▶ accepting ─▶ listening ─▶ admission ─▶ requests, conversation  deadlines: keep-alive, slow, wait, drain
//!                           (backlog: whose turn)        │    └─▶ receipts (what clients have) ─▶ recorder
//!                                                        └─▶ streams (viewers, hubs) ─▶ jobs (history reads) ─▶ replay
//!   sockets ◀─ sending ◀─ outbox ◀─ feed (seam) ◀───────────────────────────────────────── transform threads
//! ```
//!
//! Pure parts, which keep no socket, thread or clock: [`request`], [`route`], [`response`], [`message`], [`mod@format`],
//! [`websocket`], [`outbox`], [`seam`], [`timer`], [`table`], [`backlog`], [`input`], [`budget`].

mod accepting;
mod acceptor;
mod admission;
pub mod backlog;
pub mod body;
pub mod budget;
mod cancels;
mod connection;
mod connections;
mod conversation;
mod deadlines;
pub mod delivery;
pub mod event_loop;
mod exchange;
mod feed;
pub mod format;
mod held;
mod history_reads;
pub mod http_error;
pub mod input;
mod jobs;
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
mod streams;
pub mod table;
mod taking;
pub mod timer;
mod viewer;
mod viewing;
pub mod websocket;
