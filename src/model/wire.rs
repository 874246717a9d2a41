//! The wire forms of a frame's JSON: WebSocket text frame, SSE event, and the JSON that contains the stream's name.
//!
//! Server frames are unmasked, so the same bytes serve every viewer. Nothing is parsed here: this crate created the
//! JSON or validated it before.

use super::frame::HEADER_BYTES_MAX;
use super::{Frame, FrameBody, Position, StreamName};

/// FIN and the opcode of a text frame.
const FINAL_TEXT: u8 = 0x81;

impl Frame {
    /// The frame as an SSE event. Its `id:` is the frame's `id`; a gap in a producer's numbers has none.
    pub fn sse(&self) -> &[u8] {
        let id = (!matches!(self.body, FrameBody::Gap)).then_some(self.last);
        self.sse.get_or_init(|| sse_event(id, self.json()).into())
    }

    /// The frame as a WebSocket text frame whose JSON names the stream, header included.
    pub fn multiplexed(&self) -> &[u8] {
        self.multiplexed.get_or_init(|| websocket_text(&with_stream(self.json(), &self.stream)).into())
    }
}

/// A WebSocket text frame, header included.
#[must_use]
pub fn websocket_text(json: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES_MAX + json.len());
    bytes.resize(HEADER_BYTES_MAX, 0);
    bytes.extend_from_slice(json);
    let header = put_header(&mut bytes);
    bytes.drain(..HEADER_BYTES_MAX - header);
    bytes
}

/// An SSE event: `id:` if there is one, and the JSON as `data:`. Line breaks between the JSON's tokens begin further
/// `data:` lines, which a client joins by LF: the same value.
#[must_use]
pub fn sse_event(id: Option<Position>, json: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(json.len() + 64);
    if let Some(id) = id {
        bytes.extend_from_slice(b"id: ");
        push_position(&mut bytes, id);
        bytes.push(b'\n');
    }
    let mut rest = json;
    loop {
        bytes.extend_from_slice(b"data: ");
        let Some(end) = rest.iter().position(|&b| b == b'\n' || b == b'\r') else {
            bytes.extend_from_slice(rest);
            break;
        };
        bytes.extend_from_slice(&rest[..end]);
        bytes.push(b'\n');
        let line_break = if rest[end..].starts_with(b"\r\n") { 2 } else { 1 };
        rest = &rest[end + line_break..];
    }
    bytes.extend_from_slice(b"\n\n");
    bytes
}

/// A frame's JSON with `"stream"` after its `type`, unless it has that member already. Frames begin with their
/// `type`, a word without escapes.
#[must_use]
pub fn with_stream(json: &[u8], stream: &StreamName) -> Vec<u8> {
    const BEGIN: &[u8] = b"{\"type\":\"";
    debug_assert!(json.starts_with(BEGIN), "a frame begins with its type");
    let word = json.get(BEGIN.len()..).unwrap_or_default();
    let Some(word_len) = word.iter().position(|&b| b == b'"') else { return json.to_vec() };
    let (head, rest) = json.split_at(BEGIN.len() + word_len + 1);
    if rest.starts_with(b",\"stream\":") {
        return json.to_vec();
    }
    [head, b",\"stream\":\"", stream.as_str().as_bytes(), b"\"", rest].concat()
}

/// Writes the header into the [`HEADER_BYTES_MAX`] bytes at the start of `buffer`, right before the payload, and
/// returns its length.
#[allow(clippy::cast_possible_truncation, reason = "the length is matched against each width first")]
pub(crate) fn put_header(buffer: &mut [u8]) -> usize {
    let payload = buffer.len() - HEADER_BYTES_MAX;
    let header = match payload {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    };
    let room = &mut buffer[HEADER_BYTES_MAX - header..HEADER_BYTES_MAX];
    room[0] = FINAL_TEXT;
    match header {
        2 => room[1] = payload as u8,
        4 => {
            room[1] = 126;
            room[2..].copy_from_slice(&(payload as u16).to_be_bytes());
        }
        _ => {
            room[1] = 127;
            room[2..].copy_from_slice(&(payload as u64).to_be_bytes());
        }
    }
    header
}

/// Appends a decimal number.
pub(crate) fn push_number(bytes: &mut Vec<u8>, value: u64) {
    bytes.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends a position as [`Position`] displays it.
pub(crate) fn push_position(bytes: &mut Vec<u8>, position: Position) {
    push_number(bytes, position.id.ms);
    bytes.push(b'-');
    push_number(bytes, position.id.n);
    if !position.covers_entry() {
        bytes.push(b'.');
        push_number(bytes, u64::from(position.part));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::EntryId;

    #[test]
    fn headers_have_the_three_widths() {
        for (len, header) in [
            (0, vec![0x81, 0]),
            (125, vec![0x81, 125]),
            (126, vec![0x81, 126, 0, 126]),
            (0xffff, vec![0x81, 126, 0xff, 0xff]),
            (0x1_0000, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let payload = vec![b'x'; len];
            assert_eq!(websocket_text(&payload), [header, payload].concat());
        }
    }

    #[test]
    fn sse_events_keep_the_value_across_line_breaks() {
        let id = Position::whole(EntryId::new(5, 1));
        assert_eq!(sse_event(Some(id), b"{}"), b"id: 5-1\ndata: {}\n\n");
        assert_eq!(
            sse_event(None, b"{\"a\":\r\n1,\r\"b\":\n\n2}"),
            b"data: {\"a\":\ndata: 1,\ndata: \"b\":\ndata: \ndata: 2}\n\n"
        );
        let part = Position { id: EntryId::new(5, 1), part: 3 };
        assert!(sse_event(Some(part), b"{}").starts_with(b"id: 5-1.3\n"));
    }

    #[test]
    fn the_stream_is_named_once() {
        let stream: StreamName = "s/m".parse().unwrap();
        let named = with_stream(b"{\"type\":\"end\",\"id\":\"1-0\"}", &stream);
        assert_eq!(named, b"{\"type\":\"end\",\"stream\":\"s/m\",\"id\":\"1-0\"}");
        assert_eq!(with_stream(&named, &stream), named);
        assert_eq!(with_stream(b"{\"type\":\"x\"}", &stream), b"{\"type\":\"x\",\"stream\":\"s/m\"}");
    }

    #[test]
    fn numbers_are_written_whole() {
        for value in [0, 7, 10, 1_763_800_000_000, u64::MAX] {
            let mut bytes = Vec::new();
            push_number(&mut bytes, value);
            assert_eq!(bytes, value.to_string().as_bytes());
        }
    }
}
