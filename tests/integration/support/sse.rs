//! A Server-Sent Events client that reads like a browser, as the standard requires.

use std::io;
use std::net::{SocketAddr, TcpStream};

use super::http::Exchange;

/// One block of lines of the response.
#[derive(Debug, PartialEq)]
pub(crate) enum SseItem {
    Event(SseEvent),
    /// A comment line, such as those that keep proxies from closing a silent connection.
    Comment(String),
}

/// An event as `onmessage` would get it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct SseEvent {
    pub(crate) id: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) data: String,
}

/// A response that is read event by event.
pub(crate) struct SseClient {
    exchange: Exchange,
    unread: Vec<u8>,
    /// How many bytes of `unread` are known to contain no line end: long lines arrive in many pieces.
    searched: usize,
}

impl SseClient {
    /// Sends the request. The head of the response, which may be delayed, is read when it is needed.
    pub(crate) fn open(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Self {
        Self::try_open(address, target, headers).unwrap()
    }

    /// Like `open`, for a server that may not run.
    pub(crate) fn try_open(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> io::Result<Self> {
        let mut all = vec![("Accept", "text/event-stream")];
        all.extend_from_slice(headers);
        let exchange = Exchange::begin(address, "GET", target, &all)?;
        Ok(Self { exchange, unread: Vec::new(), searched: 0 })
    }

    /// A second handle of the socket, to cut the connection from elsewhere.
    pub(crate) fn socket(&self) -> TcpStream {
        self.exchange.socket()
    }

    /// The status, once the head has arrived.
    pub(crate) fn status(&mut self) -> io::Result<u16> {
        let status = self.exchange.head()?;
        if status == 200 {
            let kind = self.exchange.header("content-type").unwrap_or_default();
            assert!(kind.starts_with("text/event-stream"), "content type {kind:?}");
        }
        Ok(status)
    }

    /// The next event or comment, `None` at the orderly end of the response.
    pub(crate) fn item(&mut self) -> io::Result<Option<SseItem>> {
        self.status()?;
        let mut event = SseEvent::default();
        let mut data: Vec<String> = Vec::new();
        while let Some(line) = self.line()? {
            if line.is_empty() {
                if data.is_empty() {
                    event = SseEvent::default();
                    continue;
                }
                event.data = data.join("\n");
                return Ok(Some(SseItem::Event(event)));
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if data.is_empty() && event == SseEvent::default() => {
                    return Ok(Some(SseItem::Comment(value.to_owned())));
                }
                "data" => data.push(value.to_owned()),
                "id" => event.id = Some(value.to_owned()),
                "event" => event.name = Some(value.to_owned()),
                "" | "retry" => {}
                _ => panic!("unknown field in {line:?}"),
            }
        }
        if data.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// The next event, without comments.
    pub(crate) fn event(&mut self) -> io::Result<Option<SseEvent>> {
        loop {
            match self.item()? {
                Some(SseItem::Event(event)) => return Ok(Some(event)),
                Some(SseItem::Comment(_)) => {}
                None => return Ok(None),
            }
        }
    }

    /// A line with any line end: LF, CR LF or CR.
    fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            let found = self.unread[self.searched..].iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            self.searched += found.unwrap_or(self.unread.len() - self.searched);
            if found.is_some() {
                let end = self.searched;
                let has_next = end + 1 < self.unread.len();
                if self.unread[end] == b'\n' || has_next {
                    let is_pair = self.unread[end] == b'\r' && self.unread[end + 1] == b'\n';
                    let line = String::from_utf8(self.unread[..end].to_vec()).unwrap();
                    self.unread.drain(..=end + usize::from(is_pair));
                    self.searched = 0;
                    return Ok(Some(line));
                }
            }
            match self.exchange.piece()? {
                Some(piece) => self.unread.extend(piece),
                None if self.unread.is_empty() => return Ok(None),
                // A response without a length that ends within a line was cut.
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}
