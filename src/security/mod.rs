//! Admission checks: the names of this server, the origins of browsers, the rates and limits of clients.
//!
//! Everything here decides without I/O; the delivery threads call it before they serve. Tokens, TLS and encryption
//! are not supported yet.

pub mod host;
pub mod origin;
pub mod policies;
pub mod principal;
pub mod rate;
