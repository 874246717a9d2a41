//! Text from outside, made safe to print. Pure.
//!
//! Text of a model, a server or a client may contain characters that a terminal interprets: escape sequences that
//! move the cursor or set the title, and Unicode controls that reorder the line. All such text is passed through this
//! module before it is printed: [`line()`] for words within a line of ours, [`text`] if line ends and tabs are part
//! of the text, and [`json`] for JSON that is printed on a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a terminal might interpret the character instead of showing it: the C0 and C1 controls, DEL, the line
/// separators of Unicode, and the controls that embed, override or isolate a text direction.
#[must_use]
pub fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// Replaces every control character except line feeds and tabs by a symbol.
#[must_use]
pub fn text(text: &str) -> Cow<'_, str> {
    replaced(text, |c| is_control(c) && !matches!(c, '\n' | '\t'))
}

/// Replaces every control character by a symbol, including line feeds and tabs, for use within one line.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    replaced(text, is_control)
}

/// One JSON value on one line with the same meaning: control characters between tokens become spaces, those within
/// strings become `\u` escapes. (Valid JSON has the C0 controls only between tokens, and all others only within
/// strings.)
#[must_use]
pub fn json(value: &str) -> Cow<'_, str> {
    if !value.contains(is_control) {
        return Cow::Borrowed(value);
    }
    let mut out = String::with_capacity(value.len() + 16);
    for c in value.chars() {
        match c {
            '\t' | '\n' | '\r' => out.push(' '),
            c if is_control(c) => {
                // Writing to a string cannot fail.
                write!(out, "\\u{:04x}", u32::from(c)).ok();
            }
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn replaced(text: &str, is_hidden: impl Fn(char) -> bool) -> Cow<'_, str> {
    if text.contains(&is_hidden) {
        Cow::Owned(text.chars().map(|c| if is_hidden(c) { symbol(c) } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

/// The picture of a control character; U+FFFD if there is none.
fn symbol(c: char) -> char {
    match u32::from(c) {
        0x7F => '\u{2421}',
        code @ 0..0x20 => char::from_u32(0x2400 + code).unwrap_or(char::REPLACEMENT_CHARACTER),
        _ => char::REPLACEMENT_CHARACTER,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn controls_are_shown_as_symbols() {
        assert_eq!(line("a\x1b]0;x\x07\n\t\r\x7f"), "a␛]0;x␇␊␉␍␡");
        assert_eq!(text("a\x1b[2J\r\n\tb"), "a␛[2J␍\n\tb");
        assert_eq!(line("\u{9b}2J \u{202e}abc\u{2066}\u{2028}"), "\u{fffd}2J \u{fffd}abc\u{fffd}\u{fffd}");
        assert!(matches!(line("Grüße \u{1F9ED} שלום"), Cow::Borrowed(_)));
    }

    #[test]
    fn json_stays_json_on_one_line() {
        let pretty = "{\n\t\"a\": \"\u{9b}2J\u{7f}\u{202e}\\u001b\"\r\n}";
        assert_eq!(json(pretty), "{  \"a\": \"\\u009b2J\\u007f\\u202e\\u001b\"  }");
        assert!(matches!(json(r#"{"a":"ä"}"#), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn no_control_character_is_left(any in "\\PC*|[\u{0}-\u{a0}\u{2020}-\u{2070}]{0,40}") {
            prop_assert!(!line(&any).contains(is_control));
            prop_assert!(!text(&any).contains(|c| is_control(c) && !matches!(c, '\n' | '\t')));
            let quoted = serde_json::to_string(&any).unwrap();
            let escaped = json(&quoted);
            prop_assert!(!escaped.contains(is_control));
            prop_assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), any);
        }
    }
}
