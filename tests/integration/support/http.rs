//! A small HTTP/1.1 client that sends the given bytes and returns the response unchanged: nothing is normalized, so
//! that the daemon can get any request.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use serde_json::Value;

use super::patience::PATIENCE;

/// A whole response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// A header's value, its name given in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// Checks the status and the contract's shape of errors; returns the code.
    pub(crate) fn expect_error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        let body = self.json();
        let member = |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
        assert!(!member("code").is_empty() && !member("message").is_empty(), "no code or message: {body}");
        member("code")
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// GET with no header except Host.
pub(crate) fn get(address: SocketAddr, target: &str) -> Response {
    request(address, "GET", target, &[])
}

/// GET that may fail, for a server that may not run.
pub(crate) fn try_get(address: SocketAddr, target: &str) -> io::Result<Response> {
    Exchange::begin(address, "GET", target, &[])?.whole()
}

/// A request without a body.
pub(crate) fn request(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
    let exchange = Exchange::begin(address, method, target, headers);
    exchange.and_then(Exchange::whole).unwrap_or_else(|error| panic!("{method} {target}: {error}"))
}

/// A WebSocket handshake that is expected to fail, or whose head matters.
pub(crate) fn upgrade(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Response {
    let mut all = vec![
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    all.extend_from_slice(headers);
    request(address, "GET", target, &all)
}

/// One request and its response, which may be read in pieces.
pub(crate) struct Exchange {
    socket: TcpStream,
    received: Vec<u8>,
    framing: Framing,
    is_head: bool,
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
}

#[derive(Clone, Copy)]
enum Framing {
    Unknown,
    Length(usize),
    Chunked,
    UntilClose,
    Over,
}

impl Exchange {
    /// Sends a request without a body.
    pub(crate) fn begin(
        address: SocketAddr,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> io::Result<Self> {
        let mut bytes = format!("{method} {target} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            bytes.push_str(&format!("Host: {address}\r\n"));
        }
        for (name, value) in headers {
            bytes.push_str(&format!("{name}: {value}\r\n"));
        }
        bytes.push_str("\r\n");
        let mut exchange = Self::raw(address, bytes.as_bytes())?;
        exchange.is_head = method == "HEAD";
        Ok(exchange)
    }

    /// Sends any bytes.
    pub(crate) fn raw(address: SocketAddr, bytes: &[u8]) -> io::Result<Self> {
        let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.write_all(bytes)?;
        let (received, headers) = (Vec::new(), Vec::new());
        Ok(Self { socket, received, framing: Framing::Unknown, is_head: false, status: 0, headers })
    }

    /// A second handle of the socket, to cut the connection from elsewhere.
    pub(crate) fn socket(&self) -> TcpStream {
        self.socket.try_clone().unwrap()
    }

    /// Reads everything that is left.
    pub(crate) fn whole(mut self) -> io::Result<Response> {
        self.head()?;
        let mut body = Vec::new();
        while let Some(piece) = self.piece()? {
            body.extend(piece);
        }
        Ok(Response { status: self.status, headers: self.headers, body })
    }

    /// The status, once the head has arrived.
    pub(crate) fn head(&mut self) -> io::Result<u16> {
        while matches!(self.framing, Framing::Unknown) {
            let end = self.received.windows(4).position(|window| window == b"\r\n\r\n");
            let Some(end) = end else {
                self.receive()?;
                continue;
            };
            let head = String::from_utf8(self.received.drain(..end + 4).collect()).unwrap();
            self.parse_head(&head);
        }
        Ok(self.status)
    }

    /// A header of the response, its name given in lower case. After `head`.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    fn parse_head(&mut self, head: &str) {
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap();
        let mut words = status_line.split(' ');
        assert_eq!(words.next(), Some("HTTP/1.1"), "{status_line}");
        self.status = words.next().unwrap().parse().unwrap();
        let split = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        self.headers = lines.filter(|line| !line.is_empty()).map(split).collect();
        let length = self.header("content-length").map(|length| length.parse().unwrap());
        self.framing = if self.is_head || self.status < 200 || matches!(self.status, 204 | 304) {
            Framing::Over
        } else if self.header("transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
            Framing::Chunked
        } else {
            length.map_or(Framing::UntilClose, Framing::Length)
        };
    }

    /// The next piece of the body, `None` at its orderly end. After `head`.
    pub(crate) fn piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.framing {
            Framing::Unknown => panic!("the head comes first"),
            Framing::Over => Ok(None),
            Framing::Chunked => self.chunk(),
            Framing::Length(left) => {
                if left == 0 {
                    self.framing = Framing::Over;
                    return Ok(None);
                }
                self.receive_some()?;
                let taken = left.min(self.received.len());
                self.framing = Framing::Length(left - taken);
                Ok(Some(self.received.drain(..taken).collect()))
            }
            Framing::UntilClose => match self.receive_some() {
                Ok(()) => Ok(Some(std::mem::take(&mut self.received))),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    self.framing = Framing::Over;
                    Ok(None)
                }
                Err(error) => Err(error),
            },
        }
    }

    fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line_end = loop {
            match self.received.windows(2).position(|window| window == b"\r\n") {
                Some(end) => break end,
                None => self.receive()?,
            }
        };
        let line = String::from_utf8(self.received[..line_end].to_vec()).unwrap();
        let size = usize::from_str_radix(line.split(';').next().unwrap().trim(), 16).unwrap();
        let whole = line_end + 2 + size + 2;
        while self.received.len() < whole {
            self.receive()?;
        }
        let chunk: Vec<u8> = self.received.drain(..whole).collect();
        assert_eq!(&chunk[whole - 2..], b"\r\n", "a chunk ends with a line break");
        if size == 0 {
            self.framing = Framing::Over;
            return Ok(None);
        }
        Ok(Some(chunk[line_end + 2..whole - 2].to_vec()))
    }

    fn receive_some(&mut self) -> io::Result<()> {
        if self.received.is_empty() { self.receive() } else { Ok(()) }
    }

    /// Waits for more bytes. The end of the connection is an error, which the framing may expect.
    fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nothing came for {PATIENCE:?}");
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.received.extend_from_slice(&buffer[..count]);
                    return Ok(());
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
