//! One connection to Redis: sends commands, receives replies and pushes.
//!
//! The owner chooses how to wait: [`Link::receive`] waits in `poll(2)`; [`Link::try_receive`] never waits and suits
//! an event loop on [`Link::raw_fd`]. After any error except [`RedisError::Server`] the link is broken and returns
//! [`RedisError::Closed`] from then on.
//!
//! Limits: one reply and its nesting, see `resp`; pushes that are set aside, see `buffers`. The output buffer holds
//! the commands that the owner pushes between two flushes; the owner bounds them.

use std::borrow::Borrow;
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use ::redis::Cmd;

use super::ending::Ending;
use super::error::RedisError;
use super::pipeline::Pipeline;
use super::poll::{self, Ready};
use super::reply::Reply;
use super::resp::Scanner;
use super::target::Target;
use super::transport::Transport;

mod buffers;
mod guarded;
mod opening;
mod ranges;
mod typed;

use buffers::{BUFFER_KEPT_BYTES, Input, Pushes};
use opening::printable;
pub use ranges::Wanted;

/// How often a wait checks whether an ending was set.
const ENDING_LOOK: Duration = Duration::from_millis(200);
/// The most bytes of replies that are read while commands are still being sent.
const READ_AHEAD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One connection to Redis, used by one thread.
///
/// Every command must have exactly one reply that is not a push. SUBSCRIBE and similar commands, which reply by
/// pushes in RESP3, and `CLIENT REPLY` can therefore not be sent on a link.
#[expect(clippy::struct_excessive_bools, reason = "each is a state of the connection of its own")]
pub struct Link {
    transport: Transport,
    scanner: Scanner,
    input: Input,
    output: Vec<u8>,
    /// How many bytes of `output` are sent.
    sent: usize,
    outstanding: usize,
    pushes: Pushes,
    is_resp3: bool,
    is_broken: bool,
    response_timeout: Duration,
    /// Bytes read from the socket since the connection was opened, to distinguish a slow reply from none.
    received: u64,
    /// Whether the last read took everything that the socket had.
    has_emptied_socket: bool,
    ending: Ending,
}

/// How long to wait for a reply.
#[derive(Clone, Copy, Debug)]
enum Patience {
    /// As long as bytes keep arriving: a pause between two pieces must not exceed this.
    Progress(Duration),
    /// Until this time, even if bytes keep arriving.
    Until(Instant),
}

impl Patience {
    /// When to give up if nothing arrives; `None`: never.
    fn deadline(self) -> Option<Instant> {
        match self {
            // A deadline beyond the range of the clock is no deadline.
            Self::Progress(pause) => Instant::now().checked_add(pause),
            Self::Until(deadline) => Some(deadline),
        }
    }
}

impl Link {
    /// Connects, authenticates, names the connection (`CLIENT LIST` shows it) and selects the database, all within
    /// the target's connect timeout. Uses RESP3 if the server supports it, otherwise RESP2.
    ///
    /// The timeout does not bound the system's lookup of the host's name.
    ///
    /// # Errors
    /// [`RedisError::Server`] if Redis refuses the credentials or the database; otherwise why it cannot be reached.
    pub fn connect(target: &Target, client_name: &str) -> Result<Self, RedisError> {
        Self::connect_until(target, client_name, &Ending::default())
    }

    /// Connects; nobody waits on the connection beyond the ending.
    ///
    /// # Errors
    /// As [`Link::connect`].
    pub fn connect_until(target: &Target, client_name: &str, ending: &Ending) -> Result<Self, RedisError> {
        let deadline = Instant::now() + target.connect_timeout;
        let deadline = ending.bound(Some(deadline)).unwrap_or(deadline);
        let mut link = Self {
            transport: Transport::connect(target, deadline)?,
            scanner: Scanner::default(),
            input: Input::default(),
            output: Vec::new(),
            sent: 0,
            outstanding: 0,
            pushes: Pushes::default(),
            is_resp3: false,
            is_broken: false,
            response_timeout: target.connect_timeout,
            received: 0,
            has_emptied_socket: false,
            ending: ending.clone(),
        };
        link.introduce(target, &printable(client_name), deadline)?;
        link.response_timeout = target.response_timeout;
        Ok(link)
    }

    /// Whether the connection uses RESP3, so that pushes can arrive.
    #[must_use]
    pub const fn is_resp3(&self) -> bool {
        self.is_resp3
    }

    /// Encodes a command into the output buffer. Nothing is sent yet.
    pub fn push(&mut self, command: &Cmd) {
        command.write_packed_command(&mut self.output);
        self.outstanding += 1;
    }

    /// Encodes a pipeline's commands into the output buffer. Nothing is sent yet.
    pub fn push_all(&mut self, pipeline: &Pipeline) {
        self.output.extend_from_slice(pipeline.bytes());
        self.outstanding += pipeline.len();
    }

    /// Sends everything that was pushed. Waits at most the response timeout without progress, and reads meanwhile, so
    /// that the two sides do not wait for each other.
    ///
    /// # Errors
    /// [`RedisError::Timeout`], or why the connection failed.
    pub fn flush(&mut self) -> Result<(), RedisError> {
        self.check_usable()?;
        let result = self.send_all();
        self.remember_break(result)
    }

    /// Whether bytes were read that are not a whole reply yet, or that no command asked for.
    #[must_use]
    pub fn has_read_ahead(&self) -> bool {
        !self.input.bytes.is_empty()
    }

    /// Whether the last read from the socket took everything that it had. If not, an edge-triggered poll may never
    /// report the rest: receive before waiting.
    #[must_use]
    pub const fn has_emptied_socket(&self) -> bool {
        self.has_emptied_socket
    }

    /// The bytes of an incomplete reply: while they grow, the reply makes progress.
    #[must_use]
    pub fn read_ahead_bytes(&self) -> usize {
        self.input.bytes.len()
    }

    /// How long the server may be silent while replies are awaited.
    #[must_use]
    pub const fn response_timeout(&self) -> Duration {
        self.response_timeout
    }

    /// The number of replies to pushed commands that have not been received yet.
    #[must_use]
    pub const fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// The next reply if the buffer or the socket has it; `None` only after the socket had nothing more, so that an
    /// edge-triggered loop misses nothing. Pushes in between are set aside.
    ///
    /// If Redis closed the connection right after a reply, only the next call may detect that.
    ///
    /// # Errors
    /// [`RedisError::Closed`] at the end of the connection, or why it failed. An error reply is returned as a reply.
    pub fn try_receive(&mut self) -> Result<Option<Reply>, RedisError> {
        self.check_usable()?;
        let result = self.next_reply();
        self.remember_break(result)
    }

    /// Waits for the next reply with `poll(2)`. Pushed commands that were not flushed are sent first. A long reply
    /// may take any time, as long as more of it arrives within `timeout`.
    ///
    /// # Errors
    /// [`RedisError::Timeout`] if nothing arrived for that long: the link must be dropped then. Otherwise as
    /// [`Link::try_receive`].
    pub fn receive(&mut self, timeout: Duration) -> Result<Reply, RedisError> {
        self.wait_for(Patience::Progress(timeout), Self::try_receive)
    }

    /// Sends one command and waits for its reply, at most for the response timeout.
    ///
    /// # Errors
    /// [`RedisError::Server`] for an error reply, after which the link is still usable; otherwise as
    /// [`Link::receive`]. Also if replies to earlier commands are outstanding.
    pub fn call(&mut self, command: &Cmd) -> Result<Reply, RedisError> {
        self.begin_calls()?;
        self.push(command);
        self.flush()?;
        let reply = self.receive(self.response_timeout)?;
        match reply.error() {
            Some(error) => Err(RedisError::Server(error)),
            None => Ok(reply),
        }
    }

    /// Sends several commands at once and waits for all replies, at most for the response timeout without any
    /// progress. Error replies are among the returned replies.
    ///
    /// # Errors
    /// As [`Link::receive`]. Also if replies to earlier commands are outstanding.
    pub fn call_all(
        &mut self,
        commands: impl IntoIterator<Item: Borrow<Cmd>>,
    ) -> Result<Vec<Reply>, RedisError> {
        self.begin_calls()?;
        for command in commands {
            self.push(command.borrow());
        }
        self.receive_all()
    }

    /// As [`Link::call_all`], with a pipeline's commands.
    ///
    /// # Errors
    /// As [`Link::call_all`].
    pub fn call_pipeline(&mut self, pipeline: &Pipeline) -> Result<Vec<Reply>, RedisError> {
        self.begin_calls()?;
        self.push_all(pipeline);
        self.receive_all()
    }

    fn receive_all(&mut self) -> Result<Vec<Reply>, RedisError> {
        self.flush()?;
        (0..self.outstanding).map(|_| self.receive(self.response_timeout)).collect()
    }

    /// The oldest push message that was set aside while receiving.
    #[must_use]
    pub fn take_push(&mut self) -> Option<Reply> {
        self.pushes.take().map(Reply::from_scanned)
    }

    /// How many push messages were dropped because the owner did not take them in time.
    #[must_use]
    pub const fn pushes_lost(&self) -> u64 {
        self.pushes.lost
    }

    #[cfg(test)]
    pub(super) fn input_capacity(&self) -> usize {
        self.input.bytes.capacity()
    }

    /// The socket's descriptor, for polling it together with others. The link keeps ownership.
    ///
    /// While replies are outstanding, wait only after [`Link::try_receive`] returned `None`: the buffer may contain
    /// the next reply already.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.transport.raw_fd()
    }

    fn check_usable(&self) -> Result<(), RedisError> {
        if self.is_broken { Err(RedisError::Closed) } else { Ok(()) }
    }

    fn remember_break<T>(&mut self, result: Result<T, RedisError>) -> Result<T, RedisError> {
        self.is_broken |= result.as_ref().is_err_and(|error| !matches!(error, RedisError::Server(_)));
        result
    }

    /// A call takes the next reply as its own, so no earlier reply may be outstanding.
    fn begin_calls(&mut self) -> Result<(), RedisError> {
        self.check_usable()?;
        if self.outstanding > 0 {
            return self
                .remember_break(Err(RedisError::protocol("a call before earlier replies were received")));
        }
        Ok(())
    }

    fn call_until(&mut self, command: &Cmd, deadline: Instant) -> Result<Reply, RedisError> {
        self.push(command);
        self.flush()?;
        let reply = self.wait_for(Patience::Until(deadline), Self::try_receive)?;
        match reply.error() {
            Some(error) => Err(RedisError::Server(error)),
            None => Ok(reply),
        }
    }

    /// Waits until `attempt` returns something.
    fn wait_for<T>(
        &mut self,
        patience: Patience,
        mut attempt: impl FnMut(&mut Self) -> Result<Option<T>, RedisError>,
    ) -> Result<T, RedisError> {
        if !self.output.is_empty() {
            self.flush()?;
        }
        let (mut received, mut deadline) = (self.received, patience.deadline());
        loop {
            if let Some(found) = attempt(self)? {
                return Ok(found);
            }
            if std::mem::replace(&mut received, self.received) != self.received {
                deadline = patience.deadline();
            }
            let ready = self.wait_ready(Ready::READABLE, deadline).map_err(RedisError::from);
            if self.remember_break(ready)?.is_none() {
                return self.remember_break(Err(RedisError::Timeout));
            }
        }
    }

    /// Waits until the socket is ready, at most until the deadline or the ending.
    fn wait_ready(&self, wanted: Ready, deadline: Option<Instant>) -> io::Result<Option<Ready>> {
        loop {
            let (last, look) = (self.ending.bound(deadline), Instant::now() + ENDING_LOOK);
            let until = last.map_or(look, |last| last.min(look));
            let ready = poll::wait(self.raw_fd(), wanted, Some(until))?;
            if ready.is_some() || last.is_some_and(|last| Instant::now() >= last) {
                return Ok(ready);
            }
        }
    }

    fn next_reply(&mut self) -> Result<Option<Reply>, RedisError> {
        // Bytes may have arrived since the last read.
        let mut is_socket_empty = false;
        loop {
            while let Some(scanned) = self.scanner.scan(&self.input.bytes)? {
                let bytes = self.input.take(scanned.len);
                if scanned.is_push {
                    self.pushes.add(&bytes);
                    continue;
                }
                let reply = Reply::from_scanned(bytes);
                self.outstanding = self.outstanding.checked_sub(1).ok_or_else(|| unasked(&reply))?;
                self.take_trailing_pushes();
                return Ok(Some(reply));
            }
            if is_socket_empty || !self.fill()? {
                return Ok(None);
            }
            is_socket_empty = self.has_emptied_socket;
        }
    }

    /// After the last reply, sets aside the whole pushes behind it: the owner may wait on the socket next, which is
    /// not readable for bytes in the buffer. Other bytes are left to the next call that receives.
    fn take_trailing_pushes(&mut self) {
        while self.outstanding == 0
            && let Ok(Some(scanned)) = self.scanner.scan(&self.input.bytes)
            && scanned.is_push
        {
            let bytes = self.input.take(scanned.len);
            self.pushes.add(&bytes);
        }
    }

    /// Reads once from the socket; `false` if it has nothing now.
    fn fill(&mut self) -> Result<bool, RedisError> {
        self.input.make_room();
        loop {
            return match self.transport.read_into(&mut self.input.bytes) {
                Ok(0) => Err(RedisError::Closed),
                Ok(len) => {
                    self.received = self.received.wrapping_add(len as u64);
                    // A read that did not fill the buffer has emptied the socket.
                    self.has_emptied_socket = self.transport.is_plain() && self.input.has_room();
                    Ok(true)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.has_emptied_socket = true;
                    Ok(false)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error.into()),
            };
        }
    }

    fn send_all(&mut self) -> Result<(), RedisError> {
        let mut deadline = Instant::now().checked_add(self.response_timeout);
        loop {
            let sent_before = self.sent;
            if self.send_some()? {
                self.output.clear();
                self.output.shrink_to(BUFFER_KEPT_BYTES);
                self.sent = 0;
                return Ok(());
            }
            if self.sent > sent_before {
                deadline = Instant::now().checked_add(self.response_timeout);
            }
            let reads_ahead = self.input.bytes.len() < READ_AHEAD_BYTES_MAX;
            let wanted = if reads_ahead { Ready::EITHER } else { Ready::WRITABLE };
            let Some(ready) = self.wait_ready(wanted, deadline)? else {
                return Err(RedisError::Timeout);
            };
            if ready.readable && reads_ahead {
                self.fill()?;
            }
        }
    }

    /// Sends as much as the socket accepts; `true` if that was everything.
    fn send_some(&mut self) -> Result<bool, RedisError> {
        while self.sent < self.output.len() {
            match self.transport.write(&self.output[self.sent..]) {
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.transport.send_pending()?)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("fd", &self.raw_fd())
            .field("outstanding", &self.outstanding)
            .field("is_broken", &self.is_broken)
            .finish_non_exhaustive()
    }
}

/// The error for a reply that no command asked for: Redis sends one before it closes the connection, and gives the
/// reason nowhere else.
fn unasked(reply: &Reply) -> RedisError {
    match reply.error() {
        Some(error) => RedisError::Protocol(format!("an error that no command had: {error}").into()),
        None => RedisError::protocol("a reply that no command had"),
    }
}
