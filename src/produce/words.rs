//! Extracts one readable line from the body that a model's server sent instead of an answer. Pure.

use serde_json::Value;

use crate::visible;

/// The most characters of a server's message that are repeated.
const CHARACTERS_MAX: usize = 500;
/// The deepest nesting at which a message is searched in the body's JSON.
const DEPTH_MAX: u32 = 6;
/// The members in which servers put the message, the most specific first.
const MESSAGES: [&str; 7] =
    ["message", "error", "errors", "detail", "error_message", "error_description", "msg"];

/// The error text of a body: the message in its JSON, the title of its HTML page, or its beginning. One line without
/// control characters; empty if there is no text.
#[must_use]
pub(super) fn own_words(body: &str) -> String {
    let body = body.trim_start_matches('\u{feff}').trim();
    let words = match first_value(body) {
        Some(value) => message(&value, DEPTH_MAX),
        None => title(body),
    };
    one_line(words.as_deref().unwrap_or(body))
}

/// The text on one line, without control characters, and bounded.
#[must_use]
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&visible::line(word));
        // This also bounds the work: the text may have megabytes.
        if line.len() > CHARACTERS_MAX * 4 {
            break;
        }
    }
    match line.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// The first JSON object or array of a text that begins with one.
fn first_value(text: &str) -> Option<Value> {
    if !text.starts_with(['{', '[']) {
        return None;
    }
    serde_json::Deserializer::from_str(text).into_iter::<Value>().next()?.ok()
}

/// The message in a value, followed by the error's code if there is one.
fn message(value: &Value, depth: u32) -> Option<String> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
        Value::Array(values) => values.iter().find_map(|value| message(value, depth.checked_sub(1)?)),
        Value::Object(members) => {
            let inner = |name| message(members.get(name)?, depth.checked_sub(1)?);
            let words = MESSAGES.into_iter().find_map(inner)?;
            let code = members.get("code").or_else(|| members.get("type"));
            let code = code.and_then(|code| match code {
                Value::String(code) if !code.is_empty() => Some(code.clone()),
                Value::Number(code) => Some(code.to_string()),
                _ => None,
            });
            // The `type` of an object around an error adds nothing.
            Some(match code.filter(|code| code != "error" && !words.ends_with(')')) {
                Some(code) => format!("{words} ({code})"),
                None => words,
            })
        }
        _ => None,
    }
}

/// The title of an HTML page.
fn title(text: &str) -> Option<String> {
    if !text.starts_with('<') {
        return None;
    }
    // Changes only ASCII case, so that both texts have the same offsets.
    let lower = text.to_ascii_lowercase();
    let begin = lower.find("<title")?;
    let begin = begin + lower[begin..].find('>')? + 1;
    let end = begin + lower[begin..].find('<')?;
    let title = text[begin..end].trim();
    (!title.is_empty()).then(|| title.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_message_is_found_wherever_servers_put_it() {
        for (body, words) in [
            (r#"{"error":"busy"}"#, "busy"),
            (
                r#"{"error":{"message":"Incorrect key","code":"invalid_api_key"}}"#,
                "Incorrect key (invalid_api_key)",
            ),
            (
                r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
                "Overloaded (overloaded_error)",
            ),
            (r#"{"object":"error","message":"no such model","code":404}"#, "no such model (404)"),
            (r#"{"error":{"message":{"detail":"deep"}}}"#, "deep"),
            (r#"[{"error":{"code":429,"message":"quota"}}]"#, "quota (429)"),
            (r#"{"detail":[{"loc":["body"],"msg":"field required"}]}"#, "field required"),
            (r#"{"detail":"Not Found"}"#, "Not Found"),
            ("{\"error\":\"a\"}\n{\"error\":\"b\"}", "a"),
            ("<!DOCTYPE html>\n<html><head><TITLE class=x>502 Bad\nGateway</title>", "502 Bad Gateway"),
            ("<html><body>no title</body>", "<html><body>no title</body>"),
            ("  plain \n text\t", "plain text"),
            ("\u{feff}{\"choices\":[]}", r#"{"choices":[]}"#),
            ("a\x1b[2Jb", "a␛[2Jb"),
            (r#"{"error":"\u001b]0;x"}"#, "␛]0;x"),
            ("", ""),
        ] {
            assert_eq!(own_words(body), words, "{body}");
        }
        assert_eq!(own_words(&"ä".repeat(2000)).chars().count(), CHARACTERS_MAX + 1);
        let deep = format!("{}\"x\"{}", "{\"error\":".repeat(9), "}".repeat(9));
        assert!(own_words(&deep).starts_with("{\"error\":"));
    }

    proptest! {
        #[test]
        fn any_body_gives_one_bounded_line(body in "\\PC{0,200}|[<>{}\\[\\]\":,a-z\u{0}-\u{1f}]{0,80}|<title>.{0,20}") {
            let words = own_words(&body);
            prop_assert!(words.chars().count() <= CHARACTERS_MAX + 1);
            prop_assert!(!words.contains(visible::is_control));
        }
    }
}
