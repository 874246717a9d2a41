//! The token that is measured: 35 bytes of text that contain its stream, its position in the stream, and the time of
//! writing, so that a client can judge every token, however tokens were merged into frames.
//!
//! `[ssssssss:qqqqqqqq:ttttttttttttt]~~`: stream, number within the stream from 0, µs on the bench's clock.

use std::sync::OnceLock;
use std::time::Instant;

/// The bytes of a token's text.
pub(crate) const LEN: usize = 35;

const STREAM: std::ops::Range<usize> = 1..9;
const NUMBER: std::ops::Range<usize> = 10..18;
const TIME: std::ops::Range<usize> = 19..32;

/// A parsed token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// The stream's index.
    pub(crate) stream: u64,
    /// Its position in the stream.
    pub(crate) number: u64,
    /// When its XADD was written, µs on the bench's clock.
    pub(crate) at_us: u64,
}

impl Token {
    /// Formats the token.
    pub(crate) fn text(self) -> [u8; LEN] {
        let mut text = *b"[00000000:00000000:0000000000000]~~";
        digits(&mut text[STREAM], self.stream);
        digits(&mut text[NUMBER], self.number);
        digits(&mut text[TIME], self.at_us);
        text
    }

    /// Parses a token; `None` if the bytes are not one.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let framed = text.len() == LEN
            && text[0] == b'['
            && text[9] == b':'
            && text[18] == b':'
            && text.ends_with(b"]~~");
        if !framed {
            return None;
        }
        Some(Self {
            stream: number(&text[STREAM])?,
            number: number(&text[NUMBER])?,
            at_us: number(&text[TIME])?,
        })
    }
}

/// Microseconds since the first call.
pub(crate) fn now_us() -> u64 {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    let elapsed = EPOCH.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

/// Writes `value` right-aligned, padded with zeros.
fn digits(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

/// Parses a decimal number.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0_u64, |value, &digit| {
        let digit = digit.wrapping_sub(b'0');
        (digit < 10).then(|| value.wrapping_mul(10).wrapping_add(u64::from(digit)))
    })
}
