//! Replies with entries, of which a link keeps only what there is room for ([`Sieve`](super::super::sieve)).

use super::{Link, Patience};
use crate::redis::error::RedisError;
use crate::redis::sieve::{RangeReply, Sieve};

/// Room for a reply that is passed on while it comes.
const SIFT_ROOM_BYTES: usize = 64 * 1024;

impl Link {
    /// The reply to EXEC of a transaction of XRANGE and XINFO STREAM, of which no more than `room` bytes of entries are
    /// kept, however many come; `is_full`: the stream is described by `FULL`. Waits like [`Link::receive`] for the
    /// response timeout.
    ///
    /// # Errors
    /// As [`Link::receive`]; an error reply is [`RedisError::Server`].
    pub fn receive_range(&mut self, room: usize, is_full: bool) -> Result<RangeReply, RedisError> {
        self.receive_through(Sieve::new(room, is_full))
    }

    /// The same for the two commands without a transaction around them, whose replies are of two moments.
    ///
    /// # Errors
    /// As [`Link::receive_range`].
    pub fn receive_range_apart(&mut self, room: usize, is_full: bool) -> Result<RangeReply, RedisError> {
        // Both replies together are one to the sieve.
        self.outstanding = self.outstanding.saturating_sub(1);
        self.receive_through(Sieve::of_two_replies(room, is_full)?)
    }

    fn receive_through(&mut self, mut sieve: Sieve) -> Result<RangeReply, RedisError> {
        let patience = Patience::Progress(self.response_timeout);
        self.wait_for(patience, |link| {
            link.check_usable()?;
            let sifted = link.sift(&mut sieve);
            link.remember_break(sifted)
        })?;
        sieve.finish()
    }

    /// Passes what there is through the sieve; `None` while the reply is incomplete.
    fn sift(&mut self, sieve: &mut Sieve) -> Result<Option<()>, RedisError> {
        loop {
            if sieve.push(&mut self.input.bytes)? {
                self.outstanding = self
                    .outstanding
                    .checked_sub(1)
                    .ok_or(RedisError::protocol("a reply without a command"))?;
                self.take_trailing_pushes();
                return Ok(Some(()));
            }
            self.input.bytes.reserve(SIFT_ROOM_BYTES);
            if !self.fill()? {
                return Ok(None);
            }
        }
    }
}
