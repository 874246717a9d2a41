//! A simulated client: it sends requests, reads at its own speed, and decodes the frames in the bytes that it
//! receives.

use std::time::Duration;

use serde_json::Value;

use super::judge::{Ended, Judge, Wanted};
use super::streams::Stream;
use crate::deliver::memory_socket::ClientEnd;
use crate::model::After;

/// The kinds of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Server-sent events of one stream.
    Sse,
    /// A WebSocket of one stream.
    WebSocket,
    /// A WebSocket of many streams.
    Many,
    /// The JSON state of a stream.
    State,
    /// A `HEAD` request, which asks whether a stream exists.
    Head,
}

/// A client and its connection.
#[allow(clippy::struct_excessive_bools, reason = "four independent facts about one client")]
pub(super) struct Client {
    /// The index of its connection in the poll.
    pub(super) index: usize,
    pub(super) end: ClientEnd,
    pub(super) kind: Kind,
    /// The judges of its viewers: one, or one for each stream of a multiplexed connection.
    pub(super) viewers: Vec<Judge>,
    /// Bytes that it reads at once; 0 if it does not read.
    pub(super) read_size: usize,
    /// Whether it has left.
    pub(super) has_left: bool,
    /// Whether its answer has ended.
    pub(super) is_over: bool,
    /// Whether the instance drains.
    pub(super) is_draining: bool,
    has_head: bool,
    input: Vec<u8>,
    /// Its frames, if there is a trace.
    pub(super) trace: Option<Vec<String>>,
}

/// The frames in the bytes that were read; `Err` is the end of the frames.
type Frames = Vec<Result<Value, Ended>>;

impl Client {
    pub(super) const fn new(index: usize, end: ClientEnd, kind: Kind, read_size: usize) -> Self {
        Self {
            index,
            end,
            kind,
            viewers: Vec::new(),
            read_size,
            has_left: false,
            is_over: false,
            is_draining: false,
            has_head: false,
            input: Vec::new(),
            trace: None,
        }
    }

    // ----- sending -----

    /// Sends its first request.
    pub(super) fn send_request(&mut self, wanted: Option<Wanted>, streams: &[Stream]) {
        const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                               Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let (method, headers) = match self.kind {
            Kind::Sse => ("GET", "Accept: text/event-stream\r\n"),
            Kind::WebSocket | Kind::Many => ("GET", UPGRADE),
            Kind::State => ("GET", "Accept: application/json\r\n"),
            Kind::Head => ("HEAD", ""),
        };
        let path = match &wanted {
            None => "/v1/ws".to_owned(),
            Some(wanted) => {
                let follow = if wanted.follow { "&follow=1" } else { "" };
                format!(
                    "/v1/streams/{}?after={}&wait={}&batch_ms={}{follow}",
                    streams[wanted.stream].name,
                    after_parameter(wanted.after),
                    wanted.wait.as_secs(),
                    wanted.batch_ms,
                )
            }
        };
        self.viewers.extend(wanted.map(Judge::new));
        self.end.send(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes());
    }

    /// Subscribes to one more stream.
    pub(super) fn subscribe(&mut self, wanted: Wanted, streams: &[Stream]) {
        self.viewers.retain(|viewer| viewer.wanted.stream != wanted.stream);
        self.send_message(&format!(
            r#"{{"type":"subscribe","stream":"{}","after":"{}","follow":{},"wait":{},"batch_ms":{}}}"#,
            streams[wanted.stream].name,
            after_parameter(wanted.after),
            wanted.follow,
            wanted.wait.as_secs(),
            wanted.batch_ms,
        ));
        self.viewers.push(Judge::new(wanted));
    }

    /// Sends a message.
    pub(super) fn send_message(&self, text: &str) {
        self.send_frame(0x81, text.as_bytes());
    }

    /// Sends a frame, masked with zeros.
    fn send_frame(&self, opcode: u8, payload: &[u8]) {
        let mut bytes = vec![opcode];
        match u16::try_from(payload.len()) {
            Ok(len @ 0..126) => bytes.push(0x80 | u8::try_from(len).unwrap_or(0)),
            Ok(len) => {
                bytes.push(0x80 | 126);
                bytes.extend(len.to_be_bytes());
            }
            Err(_) => panic!("no message is so long"),
        }
        bytes.extend([0; 4]);
        bytes.extend(payload);
        self.end.send(&bytes);
    }

    /// Sends a close frame.
    pub(super) fn close(&self) {
        self.send_frame(0x88, &1000_u16.to_be_bytes());
    }

    // ----- reading -----

    /// Reads at most `most` bytes and judges their frames. Returns whether there were any bytes.
    pub(super) fn read(&mut self, most: usize, streams: &[Stream], now: Duration) -> bool {
        let bytes = self.end.take(most);
        self.input.extend(&bytes);
        let mut frames = Frames::new();
        if !self.has_head {
            self.take_head(&mut frames);
        }
        if self.has_head {
            match self.kind {
                Kind::Sse => self.take_events(&mut frames),
                Kind::WebSocket | Kind::Many => self.take_messages(&mut frames),
                Kind::State | Kind::Head => self.input.clear(),
            }
        }
        for frame in frames {
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{now:>9.3?} client {} has {frame:?}", self.index));
            }
            match frame {
                Ok(frame) => self.judge(&frame, streams, now),
                Err(ended) => self.end_all(ended, streams, now),
            }
        }
        if self.end.is_over() && !self.is_over {
            self.end_of_stream(streams, now);
        }
        !bytes.is_empty()
    }

    fn take_head(&mut self, frames: &mut Frames) {
        let Some(len) = self.input.windows(4).position(|window| window == b"\r\n\r\n") else { return };
        let head = String::from_utf8(self.input.drain(..len + 4).collect()).expect("a head is text");
        self.has_head = true;
        match (self.kind, head.get(9..12).expect("a status")) {
            (Kind::Sse, "200") | (Kind::WebSocket | Kind::Many, "101") => {}
            (Kind::State | Kind::Head, "200") | (Kind::Sse, "204") => frames.push(Err(Ended::Over)),
            (_, "404") => frames.push(Err(Ended::NotFound)),
            (_, "503") => frames.push(Err(Ended::Gone)),
            (kind, _) => panic!("{kind:?} is answered {head}"),
        }
    }

    fn take_events(&mut self, frames: &mut Frames) {
        while let Some(len) = self.input.windows(2).position(|window| window == b"\n\n") {
            let event = String::from_utf8(self.input.drain(..len + 2).collect()).expect("an event is text");
            let (mut id, mut data) = (None, None);
            for line in event.lines() {
                match line.split_once(": ") {
                    Some(("id", value)) => id = Some(value.to_owned()),
                    Some(("data", value)) => data = Some(value.to_owned()),
                    _ => assert!(line.is_empty() || line == ":", "{line}"),
                }
            }
            let Some(data) = data else { continue };
            let frame: Value = serde_json::from_str(&data).expect("an event is JSON");
            assert_eq!(frame["id"].as_str(), id.as_deref(), "{frame}");
            frames.push(Ok(frame));
        }
    }

    fn take_messages(&mut self, frames: &mut Frames) {
        while let Some((opcode, payload, len)) = frame(&self.input) {
            match opcode {
                0x81 => frames.push(Ok(serde_json::from_slice(payload).expect("a message is JSON"))),
                0x88 => {
                    let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                    frames.push(Err(match code {
                        Some(1000) if !self.has_left => Ended::Over,
                        Some(4404) => Ended::NotFound,
                        Some(1000 | 1001 | 1013 | 4408) => Ended::Gone,
                        _ => panic!("closed with {code:?}"),
                    }));
                }
                0x89 if !self.has_left => self.send_frame(0x8a, payload),
                0x89 => {}
                _ => panic!("opcode {opcode}"),
            }
            self.input.drain(..len);
        }
    }

    // ----- judging -----

    fn judge(&mut self, frame: &Value, streams: &[Stream], now: Duration) {
        let named = frame["stream"].as_str();
        let Some(viewer) = self.viewers.iter_mut().find(|viewer| {
            self.kind != Kind::Many || named == Some(streams[viewer.wanted.stream].name.as_str())
        }) else {
            // The frame must be an answer about a stream that is not subscribed to.
            let is_answer =
                matches!(frame["type"].as_str(), Some("status" | "pong" | "refused" | "cancel_requested"));
            return assert!(is_answer, "a frame of no subscription: {frame}");
        };
        let stream = &streams[viewer.wanted.stream];
        if frame["type"] == "unsubscribed" {
            let ended = match frame["reason"].as_str() {
                Some("ended") => Ended::Over,
                Some("not_found") => Ended::NotFound,
                _ => Ended::Gone,
            };
            return viewer.end(ended, stream, now);
        }
        let is_answer =
            matches!(frame["type"].as_str(), Some("pong" | "refused" | "acked" | "cancel_requested"));
        if !(is_answer && self.kind == Kind::Many) {
            viewer.take(frame, stream, now);
        }
    }

    fn end_all(&mut self, ended: Ended, streams: &[Stream], now: Duration) {
        self.is_over = true;
        let ended = if self.is_draining { Ended::Gone } else { ended };
        for viewer in &mut self.viewers {
            let is_document = matches!(self.kind, Kind::State | Kind::Head);
            let ended = if is_document && ended == Ended::Over { Ended::Gone } else { ended };
            viewer.end(ended, &streams[viewer.wanted.stream], now);
        }
    }

    /// Handles the end of a connection without a close frame.
    fn end_of_stream(&mut self, streams: &[Stream], now: Duration) {
        let may_end = self.has_left || self.is_draining || self.read_size == 0;
        let ended = match (self.kind, self.viewers.first()) {
            _ if may_end => Ended::Gone,
            (Kind::Sse, Some(viewer)) => {
                let stream = &streams[viewer.wanted.stream];
                let had = viewer.position.unwrap_or_default();
                let newest = stream
                    .log
                    .iter()
                    .rev()
                    .find(|written| written.pieces.iter().any(|piece| piece.at <= had));
                if !viewer.wanted.follow && newest.is_some_and(|newest| newest.is_end) {
                    Ended::Over
                } else {
                    Ended::NotFound
                }
            }
            (kind, _) => panic!("a connection of {kind:?} ends without a close frame"),
        };
        self.end_all(ended, streams, now);
    }

    // ----- leaving -----

    /// Leaves: resets the connection, or ends only its sending side.
    pub(super) fn leave(&mut self, is_abrupt: bool) {
        self.has_left = true;
        if is_abrupt {
            self.end.reset();
            self.input.clear();
        } else {
            self.end.finish();
        }
    }
}

/// Decodes the first frame of the server in the input: its first byte, its payload, and its whole length.
fn frame(input: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (&first, rest) = input.split_first()?;
    let (begin, len) = match *rest.first()? {
        127 => (10, usize::try_from(u64::from_be_bytes(*rest[1..].first_chunk()?)).ok()?),
        126 => (4, usize::from(u16::from_be_bytes(*rest[1..].first_chunk()?))),
        len => (2, usize::from(len)),
    };
    Some((first, input.get(begin..begin + len)?, begin + len))
}

fn after_parameter(after: After) -> String {
    match after {
        After::At(position) => position.to_string(),
        After::Last => "last".to_owned(),
        After::Tail => "$".to_owned(),
    }
}
