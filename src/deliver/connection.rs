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

/// Answers that may wait for a client, or be held for it, before it is heard further.
const ANSWERS_BYTES_MAX: usize = 32 * 1024;
/// The longest body of a request to cancel, in bytes.
pub(super) const CANCEL_BYTES_MAX: usize = 64 * 1024;
/// How long a client may take to close its side after we have closed ours.
const LINGER: Duration = Duration::from_secs(2);

/// The state of a connection.
#[derive(Debug)]
pub(super) enum Phase {
    /// Receiving the head of a request; `seen` bytes of the input were looked at in vain.
    Head { since: Instant, seen: usize },
    /// Receiving the body of a request.
    Body { since: Instant, purpose: Purpose, reply: Reply, body: Body },
    /// The request is with the recorder, which answers it in time.
    Recording { reply: Reply },
    /// The answer depends on a stream that is being looked up.
    Asked { viewer: Slot, reply: Reply },
    /// Sending events.
    Sse { viewer: Slot },
    /// Speaking WebSocket.
    WebSocket(Box<WebSocket>),
    /// Everything has been said: what waits is sent, then the client has until `until` to close its side.
    Closing { until: Option<Instant> },
}

/// The purpose of a request that has a body, with all that its head says of it.
#[derive(Debug)]
pub(super) enum Purpose {
    /// To ask the producer of a stream to stop.
    Cancel(StreamName),
}

impl Purpose {
    /// The longest body that such a request may have, in bytes.
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
    /// Messages that were malformed or forbidden.
    pub(super) bad_messages: u32,
    /// Requests to cancel that are yet to be answered.
    pub(super) cancels_asked: u32,
    /// Streams that have left it; none unless receipts are wanted.
    #[allow(clippy::box_collection, reason = "a pointer is all that it costs those who need none")]
    pub(super) closed: Option<Box<VecDeque<ClosedSubscription>>>,
    /// When a ping was sent that nothing has come back for.
    pub(super) pinged_at: Option<Instant>,
    /// Since when a message has been coming that has not come to its end.
    pub(super) begun_at: Option<Instant>,
}

impl WebSocket {
    pub(super) const fn new(viewers: Viewers) -> Self {
        let decoder = Decoder::new();
        Self {
            decoder,
            viewers,
            bad_messages: 0,
            cancels_asked: 0,
            closed: None,
            pinged_at: None,
            begun_at: None,
        }
    }
}

/// The state of the other side of a connection, as far as it is known. Each is further on than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Peer {
    /// It may send more.
    Sending,
    /// It sends nothing more beyond the bytes in the socket.
    Finishing,
    /// Everything that it has sent was read. It may read on, or be gone.
    Finished,
    /// It is gone; bytes that it has sent may still be in the socket.
    Gone,
}

/// The viewers whose frames a WebSocket carries.
#[derive(Debug)]
pub(super) enum Viewers {
    /// One stream's.
    One(Slot),
    /// Those of the streams that the client subscribed to.
    Many(HashMap<StreamName, Slot>),
}

/// One client.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "six independent facts about one socket")]
pub(super) struct Connection {
    pub(super) socket: Socket,
    /// The client in whose name it asks.
    pub(super) principal: Principal,
    pub(super) phase: Phase,
    /// Bytes read and not taken yet: part of a request, or messages whose turn is yet to come.
    pub(super) input: Input,
    /// Bytes of the input that the gauge and the budget count.
    pub(super) gauged_input: usize,
    /// Cost of the answers that wait for an `open`, in bytes.
    pub(super) held_bytes: usize,
    /// Whether the client still sends.
    pub(super) peer: Peer,
    /// Whether the socket may have something that was not read.
    pub(super) unread: bool,
    /// Whether it waits for its turn to be heard.
    pub(super) queued: bool,
    pub(super) outbox: Outbox<Mark>,
    /// Bytes of the outbox that the gauge counts.
    pub(super) gauged_bytes: usize,
    /// Since when the socket has taken nothing although something waits.
    pub(super) blocked_since: Option<Instant>,
    pub(super) sent_at: Instant,
    /// When the timer for this connection goes off.
    pub(super) deadline: Option<Instant>,
    /// Whether something was added that the socket was not offered yet.
    pub(super) dirty: bool,
    /// Viewers that go on from history when the outbox has drained, in their turn.
    pub(super) paused: VecDeque<Slot>,
    /// Bytes of the outbox that outstanding history reads may fill.
    pub(super) promised: usize,
    /// Why the connection is not served, until its first request says how to tell it.
    pub(super) refusal: Option<Box<HttpError>>,
    /// Whether this connection takes one of the places for clients.
    pub(super) placed: bool,
    /// Whether the client counts this connection as open.
    pub(super) counted: bool,
}

/// How reading went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// So many bytes are there.
    Some(usize),
    /// Nothing more now.
    Blocked,
    /// The client has closed its side.
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
            blocked_since: None,
            sent_at: now,
            deadline: None,
            dirty: false,
            paused: VecDeque::new(),
            promised: 0,
            refusal: None,
            placed: true,
            counted: false,
        }
    }

    /// Adds bytes to be sent.
    pub(super) fn send(&mut self, chunk: impl Into<Chunk<Mark>>) {
        self.outbox.push(chunk.into());
    }

    /// Adds bytes of an answer to what the client has asked or said: it is not heard further while many of these wait.
    pub(super) fn send_answer(&mut self, chunk: impl Into<Chunk<Mark>>) {
        self.outbox.push_answer(chunk.into());
    }

    /// An event stream begins: its head is sent, unless the connection has begun already.
    pub(super) fn begin_events(&mut self, viewer: Slot, is_ui_message_stream: bool) -> bool {
        let Phase::Asked { reply, .. } = &self.phase else { return false };
        let mut head = Vec::new();
        reply.sse(&mut head, is_ui_message_stream);
        self.phase = Phase::Sse { viewer };
        self.input.clear();
        self.send(head);
        true
    }

    /// Offers the socket what waits, up to `bytes_max`. An error means that the connection is over.
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
        self.blocked_since = match outcome {
            WriteOutcome::Drained | WriteOutcome::Paused => None,
            WriteOutcome::Blocked if progressed => Some(now),
            WriteOutcome::Blocked => self.blocked_since.or(Some(now)),
        };
        if outcome == WriteOutcome::Drained && matches!(self.phase, Phase::Closing { .. }) {
            // A socket that the peer has torn down meanwhile needs no more closing.
            self.socket.end_sending().ok();
        }
        Ok(outcome)
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

    /// Keeps what was read, where it means something.
    pub(super) fn take_in(&mut self, bytes: &[u8]) {
        match &mut self.phase {
            Phase::Sse { .. } | Phase::Closing { .. } => return,
            Phase::WebSocket(websocket) => websocket.pinged_at = None,
            Phase::Head { .. } | Phase::Body { .. } | Phase::Asked { .. } | Phase::Recording { .. } => {}
        }
        self.input.push(bytes);
    }

    /// Whether there may be something to be heard.
    pub(super) const fn has_unread(&self) -> bool {
        self.unread || !self.input.is_empty()
    }

    /// Whether the client is not heard now: an answer is looked for, or it has not read enough of its answers. Where
    /// what it says brings it frames too, as subscriptions do, these count as well.
    pub(super) fn must_wait(&self, send_budget: usize) -> bool {
        let answers = self.outbox.answers_cost_bytes() + self.held_bytes;
        match &self.phase {
            Phase::Asked { .. } | Phase::Recording { .. } => true,
            Phase::Sse { .. } | Phase::Closing { .. } => false,
            Phase::Head { .. } | Phase::Body { .. } => answers > ANSWERS_BYTES_MAX,
            Phase::WebSocket(websocket) => {
                let is_full = self.outbox.cost_bytes() > send_budget + ANSWERS_BYTES_MAX;
                answers > ANSWERS_BYTES_MAX || is_full && matches!(websocket.viewers, Viewers::Many(_))
            }
        }
    }

    /// The memory that is held for what the client has begun to send, and for what it is not told yet.
    pub(super) fn input_cost_bytes(&self) -> usize {
        let begun = match &self.phase {
            Phase::WebSocket(websocket) => websocket.decoder.cost_bytes(),
            Phase::Body { body, .. } => body.cost_bytes(),
            _ => 0,
        };
        self.input.cost_bytes() + begun + self.held_bytes
    }

    /// Nothing more will be said but what waits.
    pub(super) fn close(&mut self) {
        self.phase = Phase::Closing { until: None };
        self.input.clear();
    }

    /// Whether both sides have said everything, and all of it was sent.
    pub(super) fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. }) && self.peer >= Peer::Finished && self.outbox.is_empty()
    }

    /// Everything that waited was sent: when to look again at a connection that is over or asks no more.
    pub(super) fn drained(&mut self, now: Instant) -> Option<Instant> {
        match &mut self.phase {
            Phase::Closing { until } => Some(*until.get_or_insert(now + LINGER)),
            // The time for the next request begins with the end of the last answer.
            Phase::Head { since, .. } if self.input.is_empty() => {
                *since = now;
                None
            }
            _ => None,
        }
    }

    /// As [`Connection::close`], with a WebSocket close frame behind what waits.
    pub(super) fn close_websocket(&mut self, code: CloseCode, reason: &str) {
        self.send(close_frame(code.number(), reason));
        self.close();
    }

    /// As [`Connection::close_websocket`], giving up on what waits: the client does not take it.
    pub(super) fn close_slow(&mut self, frame: Option<Bytes>, now: Instant) {
        self.outbox.drop_unstarted();
        if let Some(frame) = frame {
            self.send(frame);
        }
        self.close();
        self.phase = Phase::Closing { until: Some(now + LINGER) };
    }

    /// The viewers whose frames the connection carries, in the order in which they came.
    pub(super) fn viewers(&self) -> Vec<Slot> {
        match &self.phase {
            Phase::Asked { viewer, .. } | Phase::Sse { viewer } => vec![*viewer],
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
