//! Free loopback ports. They lie below the range from which the kernel assigns ports of outgoing connections, so that
//! a killed server finds its port free when it is restarted.

use std::net::TcpListener;
use std::ops::Range;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 10_000;
const COUNT: u32 = 22_000;

static HANDED_OUT: AtomicU32 = AtomicU32::new(0);

/// A port that was free just now and that no other test of this process gets.
pub(crate) fn free_port() -> u16 {
    for _ in 0..COUNT {
        let port = nth(HANDED_OUT.fetch_add(1, Ordering::Relaxed));
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {FIRST} on");
}

/// Consecutive ports that no other test of this process gets, for a program that chooses among them.
pub(crate) fn port_range(count: u16) -> Range<u16> {
    loop {
        let number = HANDED_OUT.fetch_add(count.into(), Ordering::Relaxed);
        let (first, last) = (nth(number), nth(number + u32::from(count) - 1));
        // After the last port comes the first one.
        if last >= first {
            return first..last + 1;
        }
    }
}

fn nth(number: u32) -> u16 {
    // Another run of the tests at the same time begins elsewhere.
    let offset = process::id().wrapping_mul(97);
    u16::try_from(FIRST + offset.wrapping_add(number) % COUNT).unwrap()
}

#[test]
fn ports_of_a_range_are_its_own() {
    let ranges: Vec<_> = (0..3).map(|_| port_range(100)).collect();
    let ports: std::collections::BTreeSet<u16> = ranges.into_iter().flatten().collect();
    assert_eq!(ports.len(), 300);
    assert!(ports.iter().all(|port| (10_000..32_000).contains(port)));
}
