//! Just enough of WebSocket and of the daemon's frames for the clients: requests, frame headers, and the tokens in a
//! frame; and arguments of Redis commands. Pure.

use std::io::{self, Write};
use std::net::SocketAddr;

use crate::load::Transport;
use crate::token::{self, Token};

/// A client's request.
pub(crate) fn request(transport: Transport, path: &str, server: SocketAddr) -> String {
    let wants = match transport {
        Transport::WebSocket => {
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Version: 13"
        }
        Transport::Sse => "Accept: text/event-stream",
    };
    format!("GET {path} HTTP/1.1\r\nHost: {server}\r\n{wants}\r\n\r\n")
}

/// How the response to an accepted request begins.
pub(crate) const fn granted(transport: Transport) -> &'static [u8] {
    match transport {
        Transport::WebSocket => b"HTTP/1.1 101 ",
        Transport::Sse => b"HTTP/1.1 200 ",
    }
}

/// The first line of bytes received over SSE, and its length including the line end; `None` while it is incomplete.
pub(crate) fn line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    Some((&bytes[..end], end + 1))
}

/// The first byte of a frame and the range of its payload; `None` while the frame is incomplete.
pub(crate) fn frame(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (&first, &short) = (bytes.first()?, bytes.get(1)?);
    let (from, len) = match short {
        126 => (4, u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)),
        len => (2, u64::from(len)),
    };
    let to = from + usize::try_from(len).ok()?;
    (bytes.len() >= to).then_some((first, from, to))
}

/// The first byte of a whole message of text.
pub(crate) const TEXT: u8 = 0x81;
/// The first byte of a whole message of bytes.
pub(crate) const BINARY: u8 = 0x82;
/// The first byte of a close frame.
pub(crate) const CLOSE: u8 = 0x88;
/// The first byte of a ping.
pub(crate) const PING: u8 = 0x89;
/// The first byte of a pong.
pub(crate) const PONG: u8 = 0x8a;

/// A client's frame with at most the first 64 KiB of a payload.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let mut frame = match u8::try_from(len) {
        Ok(short @ ..126) => vec![first, 0x80 | short],
        _ => [&[first, 0x80 | 126], &len.to_be_bytes()[..]].concat(),
    };
    // The mask is zero, so the payload is its own masked form.
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&payload[..usize::from(len)]);
    frame
}

/// Whether a frame carries text.
pub(crate) fn is_delta(json: &[u8]) -> bool {
    json.starts_with(b"{\"type\":\"delta\"")
}

/// Whether a frame describes the state of the stream or the connection; such frames may come at any time.
pub(crate) fn is_notice(json: &[u8]) -> bool {
    json.starts_with(b"{\"type\":\"open\"") || json.starts_with(b"{\"type\":\"status\"")
}

/// Whether a frame says that the stream has ended.
pub(crate) fn is_end(json: &[u8]) -> bool {
    json.starts_with(b"{\"type\":\"end\"")
}

/// The id of the last entry that a frame covers.
pub(crate) fn id(json: &[u8]) -> Option<&str> {
    const ID: &[u8] = b"\"id\":\"";
    let at = json.windows(ID.len()).position(|window| window == ID)? + ID.len();
    let len = json[at..].iter().position(|&byte| byte == b'"')?;
    std::str::from_utf8(&json[at..at + len]).ok()
}

/// Calls `take` with the tokens in a frame's text. Returns whether the text consists of tokens, as many as `count`
/// says.
pub(crate) fn tokens(json: &[u8], mut take: impl FnMut(Token)) -> bool {
    const TEXT: &[u8] = b"\"text\":\"";
    let Some(at) = json.windows(TEXT.len()).position(|window| window == TEXT) else { return false };
    let mut text = &json[at + TEXT.len()..];
    let mut tokens = 0;
    while let Some(token) = text.get(..token::LEN).and_then(Token::parse) {
        take(token);
        text = &text[token::LEN..];
        tokens += 1;
    }
    tokens > 0 && text.first() == Some(&b'"') && count_fits(&text[1..], tokens)
}

/// Whether a frame's `count`, if it has one, is the number of its tokens.
fn count_fits(rest: &[u8], tokens: u64) -> bool {
    const COUNT: &[u8] = b"\"count\":";
    match rest.windows(COUNT.len()).position(|window| window == COUNT) {
        None => tokens == 1,
        Some(at) => {
            let digits = &rest[at + COUNT.len()..];
            let end = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
            token::number(&digits[..end]) == Some(tokens)
        }
    }
}

/// Appends an argument of a Redis command.
pub(crate) fn bulk(out: &mut Vec<u8>, text: &[u8]) -> io::Result<()> {
    write!(out, "${}\r\n", text.len())?;
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// The id of a stored token, which late clients can compute.
pub(crate) fn stored_id(number: u64) -> String {
    format!("{}-0", number + 1)
}
