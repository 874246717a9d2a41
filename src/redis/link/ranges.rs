//! Replies with entries, of which a link keeps only as many as it has room for ([`Sieve`](super::super::sieve)).

use ::redis::Cmd;

use super::{Link, Patience};
use crate::redis::error::RedisError;
use crate::redis::reply::Reply;
use crate::redis::shortened::Shortened;
use crate::redis::sieve::{RangeReply, Sieve};

/// The size of the buffer for a reply that is passed on as it arrives.
const SIFT_ROOM_BYTES: usize = 64 * 1024;

/// The room for the entries of a reply that is received without waiting, and the part that has arrived.
#[derive(Debug)]
pub struct Wanted {
    room: usize,
    is_range: bool,
    under_way: Option<Sieve>,
}

impl Wanted {
    /// For the reply to XREAD or XREADGROUP of one stream.
    #[must_use]
    pub const fn of_stream(room: usize) -> Self {
        Self { room, is_range: false, under_way: None }
    }

    /// For the reply to XRANGE or XREVRANGE.
    #[must_use]
    pub const fn of_range(room: usize) -> Self {
        Self { room, is_range: true, under_way: None }
    }
}

impl Link {
    /// The reply to EXEC of a transaction of XRANGE and XINFO STREAM. At most `room` bytes of entries are kept,
    /// however many arrive; `is_full`: the stream is described by `FULL`. Waits like [`Link::receive`] for the
    /// response timeout.
    ///
    /// # Errors
    /// As [`Link::receive`]; an error reply is [`RedisError::Server`].
    pub fn receive_range(&mut self, room: usize, is_full: bool) -> Result<RangeReply, RedisError> {
        self.receive_through(Sieve::new(room, is_full))
    }

    /// The replies to these two commands without a transaction around them, which were executed at different times.
    ///
    /// # Errors
    /// As [`Link::receive_range`].
    pub fn receive_range_apart(&mut self, room: usize, is_full: bool) -> Result<RangeReply, RedisError> {
        // For the sieve, both replies together are one.
        self.outstanding = self.outstanding.saturating_sub(1);
        self.receive_through(Sieve::of_two_replies(room, is_full)?)
    }

    /// Sends XRANGE or XREVRANGE, and keeps at most `room` bytes of entries.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub fn call_range(&mut self, command: &Cmd, room: usize) -> Result<RangeReply, RedisError> {
        self.call_through(command, Sieve::of_range(room)?)
    }

    /// Sends XREAD or XREADGROUP for one stream, and keeps at most `room` bytes of entries.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub fn call_stream(&mut self, command: &Cmd, room: usize) -> Result<RangeReply, RedisError> {
        self.call_through(command, Sieve::of_one_stream(room)?)
    }

    fn call_through(&mut self, command: &Cmd, sieve: Sieve) -> Result<RangeReply, RedisError> {
        self.begin_calls()?;
        self.push(command);
        self.flush()?;
        self.receive_through(sieve)
    }

    /// The reply to XRANGE or XREVRANGE among others. At most `room` bytes of entries are kept.
    ///
    /// # Errors
    /// As [`Link::receive`]; an error reply is [`RedisError::Server`].
    pub fn receive_bare_range(&mut self, room: usize) -> Result<RangeReply, RedisError> {
        self.receive_through(Sieve::of_range(room)?)
    }

    /// The reply to a command that reads entries of one stream, if it has arrived, as far as `wanted` keeps it. Does
    /// not wait; otherwise as [`Link::try_receive`].
    ///
    /// # Errors
    /// As [`Link::try_receive`]; an error reply is [`RedisError::Server`].
    pub fn try_receive_entries(&mut self, wanted: &mut Wanted) -> Result<Option<RangeReply>, RedisError> {
        self.check_usable()?;
        let mut sieve = match wanted.under_way.take() {
            Some(sieve) => sieve,
            None if wanted.is_range => Sieve::of_range(wanted.room)?,
            None => Sieve::of_one_stream(wanted.room)?,
        };
        let sifted = self.sift(&mut sieve);
        match self.remember_break(sifted)? {
            Some(()) => sieve.finish().map(Some),
            None => {
                wanted.under_way = Some(sieve);
                Ok(None)
            }
        }
    }

    /// Sends a command; strings in the reply that are longer than
    /// [`SHORT_STRING_BYTES_MAX`](crate::redis::SHORT_STRING_BYTES_MAX) are replaced by null.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub fn call_short(&mut self, command: &Cmd) -> Result<Reply, RedisError> {
        self.begin_calls()?;
        self.push(command);
        self.flush()?;
        let mut shortened = Shortened::default();
        self.wait_for(Patience::Progress(self.response_timeout), |link| {
            link.check_usable()?;
            let taken = link.shorten(&mut shortened);
            link.remember_break(taken)
        })?;
        let reply = shortened.finish();
        match reply.error() {
            Some(error) => Err(RedisError::Server(error)),
            None => Ok(reply),
        }
    }

    fn shorten(&mut self, shortened: &mut Shortened) -> Result<Option<()>, RedisError> {
        while !shortened.push(&mut self.input.bytes)? {
            self.input.bytes.reserve(SIFT_ROOM_BYTES);
            if !self.fill()? {
                return Ok(None);
            }
        }
        self.replied()
    }

    /// Records that a reply is complete.
    fn replied(&mut self) -> Result<Option<()>, RedisError> {
        let left = self.outstanding.checked_sub(1);
        self.outstanding = left.ok_or(RedisError::protocol("a reply without a command"))?;
        self.take_trailing_pushes();
        Ok(Some(()))
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

    /// Passes the bytes so far through the sieve; `None` while the reply is incomplete. Pushes before it are set
    /// aside.
    fn sift(&mut self, sieve: &mut Sieve) -> Result<Option<()>, RedisError> {
        loop {
            let is_push = !sieve.is_begun() && self.input.bytes.first() == Some(&b'>');
            if is_push && let Some(scanned) = self.scanner.scan(&self.input.bytes)? {
                let push = self.input.take(scanned.len);
                self.pushes.add(&push);
                continue;
            }
            if !is_push && sieve.push(&mut self.input.bytes)? {
                return self.replied();
            }
            self.input.bytes.reserve(SIFT_ROOM_BYTES);
            if !self.fill()? {
                return Ok(None);
            }
        }
    }
}
