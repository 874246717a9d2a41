//! Maps streams to threads.

use std::hash::Hasher;

use super::StreamName;

/// FNV-1a, 64 bit (Fowler, Noll, Vo): short, the same in every build, and it separates names that differ in one
/// digit.
#[derive(Clone, Copy, Debug)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl From<u64> for Fnv {
    /// Continues from the result of another hasher.
    fn from(reached: u64) -> Self {
        Self(reached)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        self.0 =
            bytes.iter().fold(self.0, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The index of the thread, of `count`, that a stream belongs to; stable while the daemon runs.
#[must_use]
pub fn shard(stream: &StreamName, count: usize) -> usize {
    let mut hash = Fnv::default();
    hash.write(stream.as_str().as_bytes());
    let mixed = hash.finish() ^ (hash.finish() >> 32);
    usize::try_from(mixed % count.max(1) as u64).unwrap_or(0)
}
