//! The bytes that a link has read: those of an incomplete reply, and pushes until the owner takes them.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// The least room for a read from the socket, in bytes.
const READ_ROOM_BYTES: usize = 16 * 1024;
/// The most push messages that are set aside.
const PUSHES_MAX: usize = 65_536;
/// The most bytes of push messages that are set aside.
const PUSH_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Buffers above this size are freed once they are empty.
pub(super) const BUFFER_KEPT_BYTES: usize = 256 * 1024;

/// Bytes that were read and are not a whole reply yet. It grows to the size of a reply and frees the memory
/// afterwards.
#[derive(Debug, Default)]
pub(super) struct Input {
    pub(super) bytes: BytesMut,
    /// Whether it has grown beyond [`BUFFER_KEPT_BYTES`].
    is_large: bool,
}

impl Input {
    pub(super) fn make_room(&mut self) {
        if self.bytes.capacity() - self.bytes.len() < READ_ROOM_BYTES {
            // Doubling keeps the copying linear in the size of a big reply.
            self.bytes.reserve(self.bytes.len().max(READ_ROOM_BYTES));
            self.is_large |= self.bytes.capacity() > BUFFER_KEPT_BYTES;
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.bytes.len() < self.bytes.capacity()
    }

    /// Takes bytes from the front.
    pub(super) fn take(&mut self, len: usize) -> Bytes {
        let taken = self.bytes.split_to(len).freeze();
        if self.bytes.is_empty() && self.is_large {
            *self = Self::default();
        }
        taken
    }
}

/// Push messages in order of arrival; at the limits the oldest are dropped.
#[derive(Debug, Default)]
pub(super) struct Pushes {
    queue: VecDeque<Bytes>,
    bytes: usize,
    pub(super) lost: u64,
}

impl Pushes {
    pub(super) fn add(&mut self, push: &[u8]) {
        // A copy, because pushes are small and a slice would keep the whole read buffer.
        self.queue.push_back(Bytes::copy_from_slice(push));
        self.bytes += push.len();
        while self.queue.len() > PUSHES_MAX || self.bytes > PUSH_BYTES_MAX {
            self.lost += u64::from(self.take().is_some());
        }
    }

    pub(super) fn take(&mut self) -> Option<Bytes> {
        let push = self.queue.pop_front()?;
        self.bytes -= push.len();
        Some(push)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_pushes_go_at_the_bounds() {
        let mut pushes = Pushes::default();
        for n in 0..PUSHES_MAX + 3 {
            pushes.add(n.to_string().as_bytes());
        }
        assert_eq!((pushes.queue.len(), pushes.lost), (PUSHES_MAX, 3));
        assert_eq!(pushes.take().unwrap(), "3");
        let mut large = Pushes::default();
        for _ in 0..3 {
            large.add(&vec![0; PUSH_BYTES_MAX / 2]);
        }
        assert_eq!((large.queue.len(), large.bytes, large.lost), (2, PUSH_BYTES_MAX, 1));
        while large.take().is_some() {}
        assert_eq!(large.bytes, 0);
    }
}
