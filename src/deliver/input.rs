//! The bytes that were received from a client and not processed yet. Holds no memory when it is empty. Pure.

/// Bytes in the order in which they arrived.
#[derive(Debug, Default)]
pub struct Input {
    bytes: Vec<u8>,
    /// How many bytes at the front were processed. INVARIANT: fewer than there are, or 0.
    taken: usize,
}

impl Input {
    /// The bytes that were not processed yet.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// How many bytes were not processed yet.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// Whether all bytes were processed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The allocated memory, in bytes.
    #[must_use]
    pub const fn cost_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Removes `len` bytes from the front. There must be that many.
    pub fn advance(&mut self, len: usize) {
        self.taken += len;
        debug_assert!(self.taken <= self.bytes.len(), "more bytes were removed than there are");
        if self.taken >= self.bytes.len() {
            self.clear();
        }
    }

    /// Drops all bytes and frees the memory.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(
            steps in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..20), 0_usize..30), 0..60),
        ) {
            let (mut input, mut expected) = (Input::default(), Vec::new());
            for (bytes, len) in steps {
                input.push(&bytes);
                expected.extend(bytes);
                let len = len.min(expected.len());
                input.advance(len);
                expected.drain(..len);
                prop_assert_eq!(input.rest(), &expected[..]);
                prop_assert!(!input.is_empty() || input.cost_bytes() == 0 || len == 0);
            }
        }
    }
}
