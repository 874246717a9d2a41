//! Delivery: what clients ask over HTTP and WebSocket, and how the frames reach their sockets.
//!
//! The parts here are pure: they parse bytes, build bytes and keep queues, and leave sockets, threads
//! and the clock to their caller.

pub mod message;
pub mod outbox;
pub mod request;
pub mod response;
pub mod route;
pub mod seam;
pub mod timer;
pub mod websocket;
