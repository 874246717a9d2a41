//! Delivery: what clients ask over HTTP and WebSocket, and how the frames reach their sockets.
//!
//! The parts here are pure: they parse bytes, build bytes and keep queues, and leave sockets, threads
//! and the clock to their caller.

mod clients;
mod connection;
pub mod event_loop;
pub mod message;
pub mod outbox;
pub mod request;
pub mod response;
pub mod route;
pub mod seam;
mod streams;
pub mod table;
pub mod timer;
mod viewer;
pub mod websocket;
