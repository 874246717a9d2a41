//! Free loopback ports. They lie below the range from which the kernel takes the ports of outgoing
//! connections, so that a server which is killed finds its port free when it is started again.

use std::net::TcpListener;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 10_000;
const COUNT: u32 = 22_000;

static HANDED_OUT: AtomicU32 = AtomicU32::new(0);

/// A port that was free a moment ago and that no other test of this process gets.
pub(crate) fn free_port() -> u16 {
    // Another run of the tests at the same time begins elsewhere.
    let offset = process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let number = HANDED_OUT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(FIRST + offset.wrapping_add(number) % COUNT).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {FIRST} on");
}
