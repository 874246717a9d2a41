//! Admission checks: the names of this server, the origins of browsers, the rates and caps of clients.
//!
//! Everything here decides without I/O; the delivery loops ask before they serve. Tokens, TLS and
//! encryption are not here yet.

pub mod host;
pub mod origin;
pub mod policies;
pub mod principal;
pub mod rate;
