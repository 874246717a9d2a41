//! Cuts bytes from a pipe into pieces of text for `delta` entries. Pure.
//!
//! A piece never ends within a character. Bytes that are not UTF-8 become U+FFFD, as a terminal would show them: the
//! user declared the input to be text.

/// The most bytes of an incomplete character that wait for the rest.
const CHARACTER_BYTES_MAX: usize = 4;

/// Joins characters that a pipe split between two reads.
#[derive(Debug, Default)]
pub struct Utf8Chunks {
    /// The beginning of a character; always shorter than [`CHARACTER_BYTES_MAX`].
    cut: Vec<u8>,
}

impl Utf8Chunks {
    /// The text that `bytes` complete; an incomplete character at the end is kept for the next call.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut joined = std::mem::take(&mut self.cut);
        joined.extend_from_slice(bytes);
        let keep = incomplete_tail(&joined);
        self.cut = joined.split_off(joined.len() - keep);
        debug_assert!(self.cut.len() < CHARACTER_BYTES_MAX);
        String::from_utf8_lossy(&joined).into_owned()
    }

    /// The text of the bytes that are left at the end of the input: a replacement character, or nothing.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.cut)).into_owned()
    }
}

/// How many bytes at the end begin a character that more bytes could complete.
fn incomplete_tail(bytes: &[u8]) -> usize {
    let from = bytes.len().saturating_sub(CHARACTER_BYTES_MAX - 1);
    for at in (from..bytes.len()).rev() {
        let len = match bytes[at] {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => return 0,
        };
        let tail = bytes.len() - at;
        let could_grow =
            tail < len && std::str::from_utf8(&bytes[at..]).is_err_and(|error| error.error_len().is_none());
        return if could_grow { tail } else { 0 };
    }
    0
}

/// Splits text into pieces of about the size of a model's tokens: a word with the white space before it, long words
/// in parts. Their concatenation is the text.
pub fn tokens(text: &str) -> impl Iterator<Item = &str> {
    const TOKEN_CHARACTERS_MAX: usize = 8;
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut in_word = false;
        let mut characters = 0;
        let end = rest
            .char_indices()
            .find(|&(_, c)| {
                if (c.is_whitespace() && in_word) || characters == TOKEN_CHARACTERS_MAX {
                    return true;
                }
                in_word |= !c.is_whitespace();
                characters += 1;
                false
            })
            .map_or(rest.len(), |(at, _)| at);
        let (token, after) = rest.split_at(end);
        rest = after;
        (!token.is_empty()).then_some(token)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn characters_are_joined_and_bad_bytes_replaced() {
        let mut chunks = Utf8Chunks::default();
        assert_eq!(chunks.push(b"a\xF0\x9F"), "a");
        assert_eq!(chunks.push(b"\x98\x80b\xC3"), "😀b");
        assert_eq!(chunks.push(b"x"), "\u{FFFD}x");
        assert_eq!(chunks.push(b"\xFFy\xE2\x82"), "\u{FFFD}y");
        assert_eq!(chunks.finish(), "\u{FFFD}");
        assert_eq!(chunks.finish(), "");
    }

    #[test]
    fn tokens_are_words_and_parts_of_long_ones() {
        let parts: Vec<_> = tokens("The  quick\n\nincomprehensible 日本").collect();
        assert_eq!(parts, ["The", "  quick", "\n\nincomp", "rehensib", "le", " 日本"]);
    }

    proptest! {
        #[test]
        fn cutting_changes_no_text(text in "\\PC{0,60}", cuts in prop::collection::vec(1_usize..7, 0..40)) {
            let mut chunks = Utf8Chunks::default();
            let mut rest = text.as_bytes();
            let mut out = String::new();
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                out += &chunks.push(now);
                rest = later;
            }
            out += &chunks.push(rest);
            out += &chunks.finish();
            prop_assert_eq!(&out, &text);
            prop_assert_eq!(tokens(&text).collect::<String>(), text);
        }

        #[test]
        fn any_bytes_are_read_as_if_they_had_come_at_once(
            bytes in prop::collection::vec(any::<u8>(), 0..40), cut in 0_usize..40,
        ) {
            let mut chunks = Utf8Chunks::default();
            let (now, later) = bytes.split_at(cut.min(bytes.len()));
            let out = chunks.push(now) + &chunks.push(later) + &chunks.finish();
            prop_assert_eq!(out, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}
