//! The bytes that a client has sent and nobody has taken yet. Holds no memory when it is empty. Pure.

/// Bytes in the order in which they came.
#[derive(Debug, Default)]
pub struct Input {
    bytes: Vec<u8>,
    /// How many of the first were taken. INVARIANT: less than there are, or 0.
    taken: usize,
}

impl Input {
    /// The bytes not taken yet.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// How many bytes are not taken yet.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// Whether every byte was taken.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that are held.
    #[must_use]
    pub const fn cost_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Adds bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes `len` bytes off the front, of those that are there.
    pub fn advance(&mut self, len: usize) {
        self.taken += len;
        debug_assert!(self.taken <= self.bytes.len(), "only what is there can be taken");
        if self.taken >= self.bytes.len() {
            self.clear();
        }
    }

    /// Forgets everything, and gives the memory back.
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
