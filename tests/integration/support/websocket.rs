//! A blocking WebSocket client: sends and receives texts, with deadlines and close codes.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use serde_json::Value;
use tungstenite::client::IntoClientRequest;
use tungstenite::http::{HeaderName, HeaderValue};
use tungstenite::{Error, HandshakeError, Message, WebSocket};

use super::patience::PATIENCE;

/// Anything that a client can receive.
#[derive(Debug, PartialEq)]
pub(crate) enum Incoming {
    Text(String),
    Pong(Vec<u8>),
    /// The server closed, with this code (1005: it gave none).
    Closed(u16),
    /// The connection broke without a close.
    Cut,
}

/// A connected client.
pub(crate) struct WebSocketClient {
    socket: WebSocket<TcpStream>,
    /// The subprotocol that the server chose.
    pub(crate) subprotocol: Option<String>,
}

impl WebSocketClient {
    /// Connects; the handshake must succeed.
    pub(crate) fn connect(address: SocketAddr, target: &str) -> Self {
        Self::connect_with(address, target, &[])
    }

    /// Connects with further request headers; the handshake must succeed.
    pub(crate) fn connect_with(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Self {
        Self::over(TcpStream::connect_timeout(&address, PATIENCE).unwrap(), address, target, headers)
    }

    /// The handshake over an existing connection.
    pub(crate) fn over(
        stream: TcpStream,
        address: SocketAddr,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut request = format!("ws://{address}{target}").into_client_request().unwrap();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
        }
        let (socket, response) = tungstenite::client(request, stream)
            .unwrap_or_else(|error| panic!("handshake for {target}: {error:?}"));
        let chosen = response.headers().get("sec-websocket-protocol");
        let subprotocol = chosen.map(|value| value.to_str().unwrap().to_owned());
        Self { socket, subprotocol }
    }

    /// Connects, for a server that may not run, or drains.
    pub(crate) fn try_connect(address: SocketAddr, target: &str) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        match tungstenite::client(format!("ws://{address}{target}"), stream) {
            Ok((socket, _)) => Some(Self { socket, subprotocol: None }),
            Err(HandshakeError::Failure(Error::Http(response))) => {
                assert_eq!(response.status(), 503, "handshake for {target}");
                None
            }
            Err(_) => None,
        }
    }

    /// A second handle of the socket, to cut the connection from elsewhere.
    pub(crate) fn socket(&self) -> TcpStream {
        self.socket.get_ref().try_clone().unwrap()
    }

    /// Sends a JSON message.
    pub(crate) fn send(&mut self, message: &Value) {
        self.send_text(&message.to_string());
    }

    /// Sends any text.
    pub(crate) fn send_text(&mut self, text: &str) {
        self.send_message(Message::text(text));
    }

    /// Sends any message.
    pub(crate) fn send_message(&mut self, message: Message) {
        self.socket.send(message).unwrap();
    }

    /// Sends any message; the server may already have closed.
    pub(crate) fn try_send_text(&mut self, text: &str) -> bool {
        self.socket.send(Message::text(text)).is_ok()
    }

    /// Receives the next message. The server's pings are answered, not returned.
    pub(crate) fn receive(&mut self) -> Incoming {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nothing came for {PATIENCE:?}");
            self.socket.get_ref().set_read_timeout(Some(left)).unwrap();
            match self.socket.read() {
                Ok(Message::Text(text)) => return Incoming::Text(text.to_string()),
                Ok(Message::Pong(payload)) => return Incoming::Pong(payload.to_vec()),
                Ok(Message::Close(frame)) => {
                    let _ = self.socket.flush();
                    return Incoming::Closed(frame.map_or(1005, |frame| u16::from(frame.code)));
                }
                Ok(Message::Ping(_)) => {}
                Ok(other) => panic!("unexpected {other:?}"),
                Err(Error::Io(error)) if is_timeout(&error) => {}
                Err(_) => return Incoming::Cut,
            }
        }
    }

    /// The next JSON message; anything else is a failure.
    pub(crate) fn receive_json(&mut self) -> Value {
        match self.receive() {
            Incoming::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?} instead of a message"),
        }
    }

    /// The close code that ends the connection, and the JSON messages before it.
    pub(crate) fn receive_to_close(&mut self) -> (Vec<Value>, u16) {
        let mut messages = Vec::new();
        loop {
            match self.receive() {
                Incoming::Text(text) => messages.push(serde_json::from_str(&text).unwrap()),
                Incoming::Closed(code) => return (messages, code),
                Incoming::Pong(_) => {}
                Incoming::Cut => panic!("cut without a close after {messages:?}"),
            }
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
