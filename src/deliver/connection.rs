//! One client's connection: its socket, its state, and the bytes that wait to be sent to it.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::body::Body;
use super::close_code::CloseCode;
use super::http_error::HttpError;
use super::input::Input;
use super::outbox::{Chunk, Outbox, WriteOutcome};
use super::response::Reply;
use super::socket::Socket;
use super::viewer::{ClosedSubscription, Mark};
use super::websocket::{Decoder, close_frame};
use crate::message::Slot;
use crate::model::StreamName;
use crate::security::principal::Principal;

/// The cost, in bytes, of queued and held answers beyond which no more input of a client is processed.
const ANSWERS_BYTES_MAX: usize = 32 * 1024;
/// The longest body of a cancel request, in bytes.
pub(super) const CANCEL_BYTES_MAX: usize = 64 * 1024;
/// How long a client may take to close its side after we have closed ours.
const LINGER: Duration = Duration::from_secs(2);

/// The state of a connection.
#[derive(Debug)]
pub(super) enum Phase {
    /// Receiving the head of a request. The first `seen` bytes of the input were parsed and do not complete it.
    Head { since: Instant, seen: usize },
    /// Receiving the body of a request.
    Body { since: Instant, purpose: Purpose, reply: Reply, body: Body },
    /// The recorder has the request; its answer is awaited.
    Recording { reply: Reply },
    /// The requested stream is being looked up; the answer depends on the result.
    LookingUp { viewer: Slot, reply: Reply },
    /// Sending events.
    Sse { viewer: Slot },
    /// Exchanging WebSocket frames.
    WebSocket(Box<WebSocket>),
    /// Nothing more is added to the outbox. Once it is empty, the client has until `until` to close its side.
    Closing { until: Option<Instant> },
}

/// The purpose of a request with a body, with the parameters from its head.
#[derive(Debug)]
pub(super) enum Purpose {
    /// Cancels a stream: asks its producer to stop.
    Cancel(StreamName),
}

impl Purpose {
    /// The longest body of a request with this purpose, in bytes.
    pub(super) const fn body_bytes_max(&self) -> usize {
        match self {
            Self::Cancel(_) => CANCEL_BYTES_MAX,
        }
    }
}

/// A WebSocket's state.
#[derive(Debug)]
pub(super) struct WebSocket {
    pub(super) decoder: Decoder,
    pub(super) viewers: Viewers,
    /// The number of malformed or forbidden messages so far.
    pub(super) bad_messages: u32,
    /// The number of cancel requests that are not answered yet.
    pub(super) cancels_pending: u32,
    /// Closed subscriptions whose frames the client may still acknowledge. Used only if receipts are on.
    #[allow(
        clippy::box_collection,
        reason = "connections without closed subscriptions pay for a pointer only"
    )]
    pub(super) closed: Option<Box<VecDeque<ClosedSubscription>>>,
    /// When a ping was sent, if no bytes have been received since.
    pub(super) pinged_at: Option<Instant>,
    /// Since when a message has been incomplete.
    pub(super) begun_at: Option<Instant>,
}

impl WebSocket {
    pub(super) const fn new(viewers: Viewers) -> Self {
        let decoder = Decoder::new();
        Self {
            decoder,
            viewers,
            bad_messages: 0,
            cancels_pending: 0,
            closed: None,
            pinged_at: None,
            begun_at: None,
        }
    }
}

/// The known state of the client's side of a connection, in the order in which a client passes through the states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Peer {
    /// It may send more.
    Sending,
    /// It has finished sending; its last bytes may still be in the socket.
    Finishing,
    /// It has finished sending, and everything was read. It may still read, or be gone.
    Finished,
    /// It is gone; bytes that it sent may still be in the socket.
    Gone,
}

/// The viewers whose frames a WebSocket carries.
#[derive(Debug)]
pub(super) enum Viewers {
    /// The viewer of a single stream.
    One(Slot),
    /// The viewers of the streams that the client subscribed to.
    Many(HashMap<StreamName, Slot>),
}

/// A socket that accepts no more bytes although some wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocked {
    /// When the client last made progress, as far as is known.
    since: Instant,
    /// The number of written bytes that were not acknowledged then.
    unacknowledged: usize,
}

/// One client's connection.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "five independent facts about one socket")]
pub(super) struct Connection {
    pub(super) socket: Socket,
    /// The client that is charged for the connection's requests and named in records.
    pub(super) principal: Principal,
    pub(super) phase: Phase,
    /// Bytes that were read but not processed yet: a part of a request, or messages.
    pub(super) input: Input,
    /// The bytes of [`Connection::input_cost_bytes`] that the gauge and the budget include.
    pub(super) gauged_input: usize,
    /// The cost, in bytes, of answers that are held until their stream's `open` is sent.
    pub(super) held_bytes: usize,
    /// The state of the client's side.
    pub(super) peer: Peer,
    /// Whether the socket may have bytes that were not read.
    pub(super) unread: bool,
    /// Whether the connection is in the backlog, waiting for its turn to be read.
    pub(super) queued: bool,
    pub(super) outbox: Outbox<Mark>,
    /// The bytes of the outbox that the gauge includes.
    pub(super) gauged_bytes: usize,
    /// Set while the socket accepts no more bytes although some wait.
    pub(super) blocked: Option<Blocked>,
    pub(super) sent_at: Instant,
    /// When the last keep-alive was sent.
    pub(super) kept_alive_at: Option<Instant>,
    /// When the timer of this connection fires.
    pub(super) deadline: Option<Instant>,
    /// Whether the connection is queued to be written to.
    pub(super) dirty: bool,
    /// Viewers that resume reading history, in this order, once the outbox has room.
    pub(super) paused: VecDeque<Slot>,
    /// The bytes that outstanding history reads may add to the outbox.
    pub(super) promised: usize,
    /// The error with which the first request is answered, if the connection is refused. The request determines the
    /// form of the answer.
    pub(super) refusal: Option<Box<HttpError>>,
    /// Whether the connection was admitted, so that it counts towards `client.max_connections`.
    pub(super) is_admitted: bool,
    /// Whether the connection counts towards `limits.per_client`.
    pub(super) counted: bool,
}

/// The result of one read from a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// This many bytes were read.
    Some(usize),
    /// There is nothing to read now.
    Blocked,
    /// The client has finished sending.
    Ended,
    /// The connection is broken.
    Broken,
}

impl Connection {
    pub(super) fn new(socket: Socket, principal: Principal, now: Instant) -> Self {
        Self {
            socket,
            principal,
            phase: Phase::Head { since: now, seen: 0 },
            input: Input::default(),
            gauged_input: 0,
            held_bytes: 0,
            peer: Peer::Sending,
            unread: false,
            queued: false,
            outbox: Outbox::new(),
            gauged_bytes: 0,
            blocked: None,
            sent_at: now,
            kept_alive_at: None,
            deadline: None,
            dirty: false,
            paused: VecDeque::new(),
            promised: 0,
            refusal: None,
            is_admitted: true,
            counted: false,
        }
    }

    /// Adds bytes to the outbox.
    pub(super) fn send(&mut self, chunk: impl Into<Chunk<Mark>>) {
        self.outbox.push(chunk.into());
    }

    /// Adds the bytes of an answer to the outbox. While too many of these wait, no more input of the client is
    /// processed.
    pub(super) fn send_answer(&mut self, chunk: impl Into<Chunk<Mark>>) {
        self.outbox.push_answer(chunk.into());
    }

    /// Queues the head of an event stream for `viewer`. Returns `false` if the connection is not waiting for a lookup:
    /// its answer has begun already.
    pub(super) fn begin_events(&mut self, viewer: Slot, is_ui_message_stream: bool) -> bool {
        let Phase::LookingUp { reply, .. } = &self.phase else { return false };
        let mut head = Vec::new();
        reply.sse(&mut head, is_ui_message_stream);
        self.phase = Phase::Sse { viewer };
        self.input.clear();
        self.send(head);
        true
    }

    /// Writes waiting bytes to the socket, at most `bytes_max`, and passes the marks of the frames that were
    /// completely written to `written`. After an error the connection is over.
    pub(super) fn flush(
        &mut self,
        bytes_max: usize,
        now: Instant,
        mut written: impl FnMut(Mark),
    ) -> io::Result<WriteOutcome> {
        let before = self.outbox.len_bytes();
        let outcome = self.outbox.write_to(&mut self.socket, bytes_max, &mut written)?;
        let progressed = self.outbox.len_bytes() < before;
        if progressed {
            self.sent_at = now;
        }
        match outcome {
            WriteOutcome::Drained | WriteOutcome::Paused => self.blocked = None,
            WriteOutcome::Blocked if progressed || self.blocked.is_none() => {
                self.blocked =
                    Some(Blocked { since: now, unacknowledged: self.socket.unacknowledged_bytes()? });
            }
            WriteOutcome::Blocked => {}
        }
        if outcome == WriteOutcome::Drained && matches!(self.phase, Phase::Closing { .. }) {
            // An error means that the peer has closed the connection already.
            self.socket.end_sending().ok();
        }
        Ok(outcome)
    }

    /// Returns until when the client may make no progress while bytes wait for it; `None` if none wait.
    ///
    /// # Errors
    /// When the socket is broken.
    pub(super) fn slow_at(&mut self, slow_timeout: Duration, now: Instant) -> io::Result<Option<Instant>> {
        let Some(blocked) = &mut self.blocked else { return Ok(None) };
        let unacknowledged = self.socket.unacknowledged_bytes()?;
        if unacknowledged < blocked.unacknowledged {
            *blocked = Blocked { since: now, unacknowledged };
        }
        Ok(Some(blocked.since + slow_timeout))
    }

    /// Reads once into `buffer`.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> ReadOutcome {
        loop {
            return match self.socket.read(buffer) {
                Ok(0) => ReadOutcome::Ended,
                Ok(len) => ReadOutcome::Some(len),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => ReadOutcome::Blocked,
                Err(_) => ReadOutcome::Broken,
            };
        }
    }

    /// Adds bytes that were read to the input, except in phases that ignore it.
    pub(super) fn add_input(&mut self, bytes: &[u8]) {
        match &mut self.phase {
            Phase::Sse { .. } | Phase::Closing { .. } => return,
            Phase::WebSocket(websocket) => websocket.pinged_at = None,
            Phase::Head { .. } | Phase::Body { .. } | Phase::LookingUp { .. } | Phase::Recording { .. } => {}
        }
        self.input.push(bytes);
    }

    /// Whether there may be input to process, in memory or in the socket.
    pub(super) const fn has_unread(&self) -> bool {
        self.unread || !self.input.is_empty()
    }

    /// Whether the client's input is not processed for now: the answer to its request is not ready, or too many of its
    /// answers wait to be sent. On a multiplexed WebSocket all waiting bytes count, because each subscription adds
    /// frames.
    pub(super) fn must_wait(&self, send_budget: usize) -> bool {
        let answers = self.outbox.answers_cost_bytes() + self.held_bytes;
        match &self.phase {
            Phase::LookingUp { .. } | Phase::Recording { .. } => true,
            Phase::Sse { .. } | Phase::Closing { .. } => false,
            Phase::Head { .. } | Phase::Body { .. } => answers > ANSWERS_BYTES_MAX,
            Phase::WebSocket(websocket) => {
                let is_full = self.outbox.cost_bytes() > send_budget + ANSWERS_BYTES_MAX;
                answers > ANSWERS_BYTES_MAX || is_full && matches!(websocket.viewers, Viewers::Many(_))
            }
        }
    }

    /// The memory, in bytes, that holds the client's unprocessed input, its incomplete body or message, and answers
    /// that are not sent yet because their stream's `open` comes first.
    pub(super) fn input_cost_bytes(&self) -> usize {
        let begun = match &self.phase {
            Phase::WebSocket(websocket) => websocket.decoder.cost_bytes(),
            Phase::Body { body, .. } => body.cost_bytes(),
            _ => 0,
        };
        self.input.cost_bytes() + begun + self.held_bytes
    }

    /// Drops the input and begins closing: only the bytes in the outbox are still sent.
    pub(super) fn close(&mut self) {
        self.phase = Phase::Closing { until: None };
        self.input.clear();
    }

    /// Whether the connection can be removed: it is closing, its outbox is empty, and the client has finished sending.
    pub(super) fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. }) && self.peer >= Peer::Finished && self.outbox.is_empty()
    }

    /// Handles an outbox that has drained. If the connection is closing, returns the time by which the client must
    /// have closed its side.
    pub(super) fn drained(&mut self, now: Instant) -> Option<Instant> {
        match &mut self.phase {
            Phase::Closing { until } => Some(*until.get_or_insert(now + LINGER)),
            // The timeout of the next request begins when the last answer is sent.
            Phase::Head { since, .. } if self.input.is_empty() => {
                *since = now;
                None
            }
            _ => None,
        }
    }

    /// Queues a WebSocket close frame, then closes like [`Connection::close`].
    pub(super) fn close_websocket(&mut self, code: CloseCode, reason: &str) {
        self.send(close_frame(code.number(), reason));
        self.close();
    }

    /// Closes the connection of a client that does not read: drops all chunks that were not started, queues `frame`,
    /// and limits the time for sending the rest.
    pub(super) fn close_slow(&mut self, frame: Option<Bytes>, now: Instant) {
        self.outbox.drop_unstarted();
        if let Some(frame) = frame {
            self.send(frame);
        }
        self.close();
        self.phase = Phase::Closing { until: Some(now + LINGER) };
    }

    /// The viewers whose frames the connection carries, oldest first.
    pub(super) fn viewers(&self) -> Vec<Slot> {
        match &self.phase {
            Phase::LookingUp { viewer, .. } | Phase::Sse { viewer } => vec![*viewer],
            Phase::WebSocket(websocket) => match &websocket.viewers {
                Viewers::One(viewer) => vec![*viewer],
                Viewers::Many(viewers) => {
                    let mut viewers: Vec<_> = viewers.values().copied().collect();
                    viewers.sort_unstable_by_key(|viewer| viewer.generation);
                    viewers
                }
            },
            Phase::Head { .. } | Phase::Body { .. } | Phase::Recording { .. } | Phase::Closing { .. } => {
                Vec::new()
            }
        }
    }
}
