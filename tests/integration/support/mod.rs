//! The setup that all subjects share: a private redis-server, the daemon as a process, clients of each kind, a
//! producer, and transcripts that check themselves as they grow.
//!
//! Nothing here depends on the daemon's code: it is started as a process and used over its sockets.

pub(crate) mod activation;
pub(crate) mod authority;
pub(crate) mod command;
pub(crate) mod daemon;
pub(crate) mod descriptors;
pub(crate) mod documents;
pub(crate) mod held;
pub(crate) mod http;
pub(crate) mod node;
pub(crate) mod patience;
pub(crate) mod ports;
pub(crate) mod producer;
pub(crate) mod prometheus;
pub(crate) mod random;
pub(crate) mod raw;
pub(crate) mod redis;
pub(crate) mod roaming_client;
pub(crate) mod sse;
pub(crate) mod transcript;
pub(crate) mod upstream;
pub(crate) mod viewer;
pub(crate) mod websocket;
