//! Parses Server-Sent Events from bytes as they arrive. Pure.
//!
//! It reads the format of the HTML standard, however the bytes are cut: comments, `event`, `id`, `retry` and `data`
//! over several lines, lines that end in CR LF, LF or CR, a byte order mark, bytes that are not UTF-8 (they become
//! U+FFFD). It adds two things to the standard: a memory bound, and access to an event that the end of the stream cut
//! off, because many servers end right after `data: [DONE]`.

use std::collections::VecDeque;
use std::time::Duration;

/// The longest line, and the most data of one event, in bytes.
pub const EVENT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The byte order mark that may precede everything.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseEvent {
    /// Its type; empty if there was none (`message` in a browser).
    pub event: String,
    /// The last id, from this event or an earlier one.
    pub id: String,
    /// The lines of data, joined by line feeds.
    pub data: String,
}

/// Why a stream cannot be read further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// A line without end.
    #[error("a line longer than 8 MiB: this is not an event stream")]
    LineTooLong,
    /// An event without end.
    #[error("an event with more than 8 MiB of data")]
    EventTooLong,
}

/// Reads a stream in pieces.
#[derive(Debug, Default)]
pub struct SseParser {
    /// The incomplete line.
    line: Vec<u8>,
    /// Whether the previous line ended in CR, so that a following line feed belongs to it.
    after_cr: bool,
    /// Whether the first line is complete, so that no byte order mark can follow.
    is_begun: bool,
    /// The type of the incomplete event.
    event: String,
    /// Its data, even if that is an empty line.
    data: Option<String>,
    last_id: String,
    retry: Option<Duration>,
    ready: VecDeque<SseEvent>,
}

impl SseParser {
    /// Takes the next bytes; [`SseParser::next`] returns the events that they complete.
    ///
    /// # Errors
    /// If a limit is exceeded. Nothing can be read after that.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), SseError> {
        while let Some(&first) = bytes.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|&byte| matches!(byte, b'\r' | b'\n'));
            let (piece, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            if self.line.len() + piece.len() > EVENT_BYTES_MAX {
                return Err(SseError::LineTooLong);
            }
            self.line.extend_from_slice(piece);
            bytes = rest;
            if let Some((&end, rest)) = rest.split_first() {
                self.after_cr = end == b'\r';
                self.end_line()?;
                bytes = rest;
            }
        }
        Ok(())
    }

    /// The next complete event.
    #[allow(clippy::should_implement_trait, reason = "after None more may come with the next bytes")]
    pub fn next(&mut self) -> Option<SseEvent> {
        self.ready.pop_front()
    }

    /// The event that the end of the stream cut off, which the standard would discard: its last line may be
    /// incomplete, so the caller decides whether the data is complete.
    ///
    /// # Errors
    /// If the event is too long.
    pub fn finish(&mut self) -> Result<Option<SseEvent>, SseError> {
        if !self.line.is_empty() {
            self.end_line()?;
        }
        self.dispatch();
        Ok(self.ready.pop_back())
    }

    /// The server's reconnection delay, if it sent one.
    #[must_use]
    pub const fn retry(&self) -> Option<Duration> {
        self.retry
    }

    fn end_line(&mut self) -> Result<(), SseError> {
        let bytes = std::mem::take(&mut self.line);
        let is_first = !std::mem::replace(&mut self.is_begun, true);
        let bytes = Some(&bytes[..])
            .filter(|_| is_first)
            .and_then(|bytes| bytes.strip_prefix(BYTE_ORDER_MARK))
            .unwrap_or(&bytes);
        if bytes.is_empty() {
            self.dispatch();
            return Ok(());
        }
        let line = String::from_utf8_lossy(bytes);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        self.field(field, value.strip_prefix(' ').unwrap_or(value))
    }

    fn field(&mut self, field: &str, value: &str) -> Result<(), SseError> {
        match field {
            "data" => {
                let len = self.data.as_ref().map_or(0, String::len);
                // Each invalid byte was replaced by a longer character, so the text may be longer than the bytes.
                if len + value.len() >= EVENT_BYTES_MAX {
                    return Err(SseError::EventTooLong);
                }
                match &mut self.data {
                    None => self.data = Some(value.to_owned()),
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                }
            }
            "event" => value.clone_into(&mut self.event),
            "id" if !value.contains('\0') => value.clone_into(&mut self.last_id),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.retry = value.parse().ok().map(Duration::from_millis);
            }
            // A comment (a line that begins with a colon), or an unknown field.
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self) {
        let event = std::mem::take(&mut self.event);
        if let Some(data) = self.data.take() {
            self.ready.push_back(SseEvent { event, id: self.last_id.clone(), data });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<SseEvent>, Option<SseEvent>) {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece).unwrap();
            events.extend(std::iter::from_fn(|| parser.next()));
        }
        (events, parser.finish().unwrap())
    }

    fn data(text: &str) -> Vec<String> {
        read([text.as_bytes()]).0.into_iter().map(|event| event.data).collect()
    }

    #[test]
    fn fields_are_parsed_as_the_standard_requires() {
        assert_eq!(data("data: YHOO\ndata: +2\ndata: 10\n\n"), ["YHOO\n+2\n10"]);
        assert_eq!(data(": comment\n\ndata: a\nid: 1\n\ndata:b\nid\n\ndata:  c\n\n"), ["a", "b", " c"]);
        assert_eq!(data("data\n\ndata\ndata\n\ndata:"), ["", "\n"]);
        assert_eq!(data("event: x\n\nfoo: bar\n\n:\n\n"), Vec::<String>::new());
        let (events, _) = read(["\u{feff}event: e\r\nid: 7\rdata: 1\r\n\r\ndata: 2\n\n".as_bytes()]);
        let event =
            |event: &str, data: &str| SseEvent { event: event.into(), id: "7".into(), data: data.into() };
        assert_eq!(events, [event("e", "1"), event("", "2")]);
        let (events, _) = read([&b"id: a\0b\ndata: \xFF\xF0\x9F\n\n"[..]]);
        assert_eq!((events[0].id.as_str(), events[0].data.as_str()), ("", "\u{FFFD}\u{FFFD}"));
        let mut parser = SseParser::default();
        parser.push(b"retry: 1500\nretry: 2x\nretry:\n").unwrap();
        assert_eq!(parser.retry(), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn an_event_cut_off_by_the_end_is_returned_separately() {
        let cut = |text: &str| read([text.as_bytes()]).1.map(|event| event.data);
        assert_eq!(cut("data: a\n\ndata: [DONE]"), Some("[DONE]".into()));
        assert_eq!(cut("data: [DONE]\r"), Some("[DONE]".into()));
        assert_eq!(cut("data: a\n\n: bye"), None);
        assert_eq!(cut(""), None);
    }

    #[test]
    fn lines_and_events_have_a_bound() {
        let mut parser = SseParser::default();
        let piece = vec![b'x'; EVENT_BYTES_MAX / 2];
        parser.push(b"data:").unwrap();
        parser.push(&piece).unwrap();
        assert_eq!(parser.push(&piece), Err(SseError::LineTooLong));
        let mut parser = SseParser::default();
        let mut line = b"data:".to_vec();
        line.extend_from_slice(&piece);
        line.push(b'\n');
        parser.push(&line).unwrap();
        assert_eq!(parser.push(&line), Err(SseError::EventTooLong));
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_events(
            lines in prop::collection::vec("(data|event|id|retry|:|x)?:? ?[a-z:é😀\u{feff}]{0,6}", 0..12),
            ends in prop::collection::vec(prop::sample::select(vec!["\n", "\r", "\r\n", "\n\n", "\r\n\r\n"]), 12),
            mark in any::<bool>(),
            cuts in prop::collection::vec(1_usize..5, 0..80),
        ) {
            let mut bytes = if mark { BYTE_ORDER_MARK.to_vec() } else { Vec::new() };
            for (line, end) in lines.iter().zip(&ends) {
                bytes.extend_from_slice(line.as_bytes());
                bytes.extend_from_slice(end.as_bytes());
            }
            let mut pieces = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(read(pieces), read([&bytes[..]]));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), cut in 0_usize..80) {
            let (one, other) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(read([one, other]), read([&bytes[..]]));
        }
    }
}
