//! Delivery: what clients ask over HTTP and WebSocket, and how the frames reach their sockets.
//!
//! ```text
//!              serve: one mio Poll a thread ─▶ event_loop: rounds, timers     exchange: inbox, other threads
//!   sockets ─▶ requests ─▶ conversation            deadlines: keep-alive, slow, waiting, draining
//!                  └──────────┴─▶ streams (viewers, hubs) ─▶ jobs (history reads) ─▶ replay threads
//!                  └─▶ receipts (what clients have) ─▶ watcher
//!   sockets ◀─ outbox ◀─ feed (seam) ◀───────────────────────────────────────────── transform threads
//! ```
//!
//! Pure parts, which keep no socket, thread or clock: [`request`], [`route`], [`response`], [`message`], [`format`],
//! [`websocket`], [`outbox`], [`seam`], [`timer`], [`table`].

mod admission;
pub mod body;
mod cancels;
mod connection;
mod conversation;
mod deadlines;
pub mod event_loop;
mod exchange;
mod feed;
pub mod format;
mod jobs;
pub mod message;
pub mod outbox;
mod receipts;
pub mod request;
mod requests;
pub mod response;
pub mod route;
pub mod seam;
pub mod serve;
mod sharing;
mod streams;
pub mod table;
mod taking;
pub mod timer;
mod viewer;
pub mod websocket;
