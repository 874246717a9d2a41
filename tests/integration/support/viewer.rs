//! A viewer of one stream, over WebSocket or SSE, that records all frames.

use std::net::{SocketAddr, TcpStream};

use serde_json::json;

use super::sse::SseClient;
use super::transcript::{Ending, Frame, Transcript};
use super::websocket::{Incoming, WebSocketClient};

/// The ways to view a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    WebSocket,
    Sse,
}

/// Both, for tests that hold for every viewer.
pub(crate) const KINDS: [Kind; 2] = [Kind::WebSocket, Kind::Sse];

enum Connection {
    WebSocket(WebSocketClient),
    Sse(SseClient),
}

/// A connected viewer.
pub(crate) struct Viewer {
    connection: Connection,
    /// The frames so far.
    pub(crate) transcript: Transcript,
    /// The ids that the client acknowledged and got an answer for.
    pub(crate) acked: Vec<String>,
}

/// The target of a stream's resource; `query` is empty or without its question mark.
pub(crate) fn target(stream: &str, query: &str) -> String {
    let mark = if query.is_empty() { "" } else { "?" };
    format!("/v1/streams/{stream}{mark}{query}")
}

impl Viewer {
    /// Connects. With SSE only the request is sent: the response is read on demand.
    pub(crate) fn open(public: SocketAddr, kind: Kind, stream: &str, query: &str) -> Self {
        let target = target(stream, query);
        let connection = match kind {
            Kind::WebSocket => Connection::WebSocket(WebSocketClient::connect(public, &target)),
            Kind::Sse => Connection::Sse(SseClient::open(public, &target, &[])),
        };
        Self { connection, transcript: Transcript::default(), acked: Vec::new() }
    }

    /// Like `open`, for a server that may not run, or drains.
    pub(crate) fn try_open(public: SocketAddr, kind: Kind, stream: &str, query: &str) -> Option<Self> {
        let target = target(stream, query);
        let connection = match kind {
            Kind::WebSocket => Connection::WebSocket(WebSocketClient::try_connect(public, &target)?),
            Kind::Sse => Connection::Sse(SseClient::try_open(public, &target, &[]).ok()?),
        };
        Some(Self { connection, transcript: Transcript::default(), acked: Vec::new() })
    }

    /// A second handle of the socket, to cut the connection from elsewhere.
    pub(crate) fn socket(&self) -> TcpStream {
        match &self.connection {
            Connection::WebSocket(client) => client.socket(),
            Connection::Sse(client) => client.socket(),
        }
    }

    /// An SSE viewer that resumes like an EventSource.
    pub(crate) fn reconnect_sse(public: SocketAddr, stream: &str, query: &str, last_event_id: &str) -> Self {
        let headers = [("Last-Event-ID", last_event_id)];
        let connection = Connection::Sse(SseClient::open(public, &target(stream, query), &headers));
        Self { connection, transcript: Transcript::default(), acked: Vec::new() }
    }

    /// The WebSocket below, to send messages. Panics for SSE.
    pub(crate) fn websocket(&mut self) -> &mut WebSocketClient {
        match &mut self.connection {
            Connection::WebSocket(client) => client,
            Connection::Sse(_) => panic!("no WebSocket"),
        }
    }

    /// The next frame, `None` when the answer has ended.
    pub(crate) fn next(&mut self) -> Option<&Frame> {
        assert_eq!(self.transcript.ending, None, "the answer has ended");
        loop {
            let received = match &mut self.connection {
                Connection::WebSocket(client) => receive_websocket(client),
                Connection::Sse(client) => receive_sse(client),
            };
            match received {
                Ok((text, event_id)) => {
                    let frame = Frame::new(text);
                    if frame.kind() == "acked" {
                        self.acked.push(frame.id().unwrap().to_owned());
                        continue;
                    }
                    self.transcript.push(frame, event_id.as_deref());
                    return self.transcript.frames.last();
                }
                Err(ending) => {
                    self.transcript.ending = Some(ending);
                    return None;
                }
            }
        }
    }

    /// Reads up to and including a frame.
    pub(crate) fn read_until(&mut self, what: &str, mut is_it: impl FnMut(&Frame) -> bool) -> Frame {
        loop {
            match self.next() {
                Some(frame) if is_it(frame) => return frame.clone(),
                Some(_) => {}
                None => panic!("the answer ended without {what}: {:#?}", self.transcript),
            }
        }
    }

    /// Reads until the frame that covers the entry of this id.
    pub(crate) fn read_to(&mut self, id: &str) {
        if self.transcript.last_id() != Some(id) {
            self.read_until(id, |frame| frame.id() == Some(id));
        }
    }

    /// Reads the `open` frame; checks its state.
    pub(crate) fn expect_open(&mut self, state: &str) {
        self.read_until("open", |frame| frame.kind() == "open");
        assert_eq!(self.transcript.open()["state"], state, "{}", self.transcript.open());
    }

    /// Acknowledges an id over WebSocket, and waits for the answer, reading on meanwhile.
    pub(crate) fn acknowledge(&mut self, id: &str) {
        self.websocket().send(&json!({"type": "ack", "id": id}));
        self.expect_acked(id);
    }

    pub(crate) fn expect_acked(&mut self, id: &str) {
        while !self.acked.iter().any(|acked| acked == id) {
            let Incoming::Text(text) = self.websocket().receive() else { panic!("{id} is not answered") };
            let frame = Frame::new(text);
            match frame.kind() {
                "acked" => self.acked.push(frame.id().unwrap().to_owned()),
                _ => self.transcript.push(frame, None),
            }
        }
    }

    pub(crate) fn read_to_status(&mut self, state: &str) {
        self.read_until(state, |frame| frame.kind() == "status" && frame.value["state"] == state);
    }

    /// Reads everything to the end.
    pub(crate) fn read_all(mut self) -> Transcript {
        while self.next().is_some() {}
        self.transcript
    }
}

type Received = Result<(String, Option<String>), Ending>;

fn receive_websocket(client: &mut WebSocketClient) -> Received {
    loop {
        match client.receive() {
            Incoming::Text(text) => return Ok((text, None)),
            Incoming::Pong(_) => {}
            Incoming::Closed(code) => return Err(Ending::Closed(code)),
            Incoming::Cut => return Err(Ending::Cut),
        }
    }
}

fn receive_sse(client: &mut SseClient) -> Received {
    match client.status() {
        Ok(200) => {}
        Ok(status) => return Err(Ending::Status(status)),
        Err(_) => return Err(Ending::Cut),
    }
    match client.event() {
        Ok(Some(event)) => {
            assert_eq!(event.name, None, "no event: line, so that everything arrives at onmessage");
            let has_id = serde_json::from_str::<serde_json::Value>(&event.data).unwrap().get("id").is_some();
            assert_eq!(event.id.is_some(), has_id, "id: line of {}", event.data);
            Ok((event.data, event.id))
        }
        Ok(None) => Err(Ending::Complete),
        Err(_) => Err(Ending::Cut),
    }
}

/// A viewer's transcript, from its request to the end of the answer.
pub(crate) fn view(public: SocketAddr, kind: Kind, stream: &str, query: &str) -> Transcript {
    Viewer::open(public, kind, stream, query).read_all()
}
