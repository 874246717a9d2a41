//! The life of the process: descriptors, signals, systemd.

pub mod limits;
pub mod signals;
pub mod systemd;
