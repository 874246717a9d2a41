//! Renders frames for people: text on stdout, messages about the stream on stderr. Pure.
//!
//! A model's text is not trusted: on a terminal, control characters are shown as symbols. A pipe gets the text byte
//! for byte; only the separators between voices are added. All other text from outside (names of channels and tools,
//! codes, messages, custom objects) has control characters replaced everywhere, and is part of one line.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::statistics::Statistics;
use crate::visible;

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[22m";

/// The members of a frame that are shown.
#[derive(Debug, Deserialize)]
pub(crate) struct Frame<'a> {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) id: Option<String>,
    pub(crate) after: Option<String>,
    state: Option<String>,
    text: Option<String>,
    channel: Option<String>,
    #[serde(default)]
    index: u64,
    #[serde(default)]
    call: u64,
    name: Option<String>,
    arguments: Option<String>,
    count: Option<u64>,
    generation: Option<String>,
    finish_reason: Option<String>,
    pub(crate) code: Option<String>,
    pub(crate) message: Option<String>,
    reason: Option<String>,
    lost: Option<u64>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// The output for one frame.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Output {
    /// For stdout.
    pub(crate) text: String,
    /// For stderr, complete lines.
    pub(crate) note: String,
}

/// The source of the text that is being shown.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Voice {
    Channel(u64, String),
    Tool(u64, u64),
}

/// The purpose of the output.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Look {
    /// A terminal.
    pub(crate) terminal: bool,
    /// Reasoning is dimmed.
    pub(crate) dims: bool,
}

/// Renders the frames of one stream, in order.
#[derive(Debug)]
pub(crate) struct Renderer {
    look: Look,
    statistics: Statistics,
    voice: Option<Voice>,
    /// Whether stdout is in the middle of a line.
    mid_line: bool,
}

impl Renderer {
    /// A renderer for a terminal, or for a file or pipe.
    pub(crate) fn new(look: Look) -> Self {
        Self { look, statistics: Statistics::default(), voice: None, mid_line: false }
    }

    /// Renders one frame.
    pub(crate) fn frame(&mut self, frame: &Frame<'_>) -> Output {
        let mut out = Output::default();
        if matches!(frame.kind.as_str(), "delta" | "tool_call") {
            self.statistics.add(frame.id.as_deref(), frame.count.unwrap_or(1));
        }
        match frame.kind.as_str() {
            "delta" => self.delta(frame, &mut out.text),
            "tool_call" => self.tool_call(frame, &mut out.text),
            "custom" => {
                let data = frame.data.map_or("", RawValue::get);
                self.note(&mut out, &format!("custom: {data}"));
            }
            "open" | "status" => {
                let state = frame.state.as_deref().unwrap_or("unknown");
                if frame.kind == "status" || state != "live" {
                    self.note(&mut out, state);
                }
            }
            "start" => {
                self.statistics.begin(frame.id.as_deref());
                self.voice = None;
                let generation = frame.generation.as_deref().unwrap_or("without a name");
                self.note(&mut out, &format!("generation {generation}"));
            }
            "end" => {
                let reason = frame.finish_reason.as_deref().unwrap_or("complete");
                let usage = frame.usage.map_or_else(String::new, |usage| format!(", usage {usage}"));
                self.terminal(&mut out, &format!("end: {reason}{usage}"));
            }
            "error" => {
                let (code, message) = (frame.code.as_deref(), frame.message.as_deref());
                let text = format!("error: {}: {}", code.unwrap_or("?"), message.unwrap_or("no message"));
                self.terminal(&mut out, &text);
            }
            "gap" => {
                let lost = frame.lost.map_or_else(|| "some".to_owned(), |lost| lost.to_string());
                let reason = frame.reason.as_deref().unwrap_or("unknown");
                self.note(&mut out, &format!("gap: {lost} entries are missing ({reason})"));
            }
            "skipped" => {
                let reason = frame.reason.as_deref().unwrap_or("unknown");
                let why = frame.message.as_deref().map_or_else(String::new, |why| format!(": {why}"));
                self.note(&mut out, &format!("skipped one entry ({reason}{why})"));
            }
            _ => {}
        }
        out
    }

    /// A message that comes from no frame.
    pub(crate) fn news(&mut self, text: &str) -> String {
        let mut out = Output::default();
        self.note(&mut out, text);
        out.note
    }

    fn delta(&mut self, frame: &Frame<'_>, out: &mut String) {
        let channel = frame.channel.as_deref().unwrap_or("content");
        let quiet = matches!(channel, "content" | "reasoning");
        let label = match (quiet, frame.index) {
            (true, 0) => String::new(),
            (true, index) => format!("[choice {index}] "),
            (false, 0) => format!("[{channel}] "),
            (false, index) => format!("[{channel}, choice {index}] "),
        };
        self.speak(Voice::Channel(frame.index, channel.to_owned()), &label, out);
        self.write(frame.text.as_deref().unwrap_or(""), self.look.dims && channel == "reasoning", out);
    }

    fn tool_call(&mut self, frame: &Frame<'_>, out: &mut String) {
        let label = format!("→ {}(", frame.name.as_deref().unwrap_or("tool"));
        self.speak(Voice::Tool(frame.index, frame.call), &label, out);
        self.write(frame.arguments.as_deref().unwrap_or(""), false, out);
    }

    /// Separates another voice from the previous one.
    fn speak(&mut self, voice: Voice, label: &str, out: &mut String) {
        if self.voice.as_ref() == Some(&voice) {
            return;
        }
        if self.voice.is_some() {
            self.hush(out);
            out.push('\n');
        }
        self.voice = Some(voice);
        self.write(&visible::line(label), false, out);
    }

    /// Ends the text of the current voice.
    fn hush(&mut self, out: &mut String) {
        if matches!(self.voice, Some(Voice::Tool(..))) {
            out.push(')');
            self.mid_line = true;
        }
        if self.mid_line {
            out.push('\n');
            self.mid_line = false;
        }
        self.voice = None;
    }

    fn write(&mut self, text: &str, dim: bool, out: &mut String) {
        let Some(last) = text.chars().next_back() else { return };
        if dim {
            out.push_str(DIM);
        }
        if self.look.terminal {
            out.push_str(&visible::text(text));
        } else {
            out.push_str(text);
        }
        if dim {
            out.push_str(PLAIN);
        }
        self.mid_line = last != '\n';
    }

    fn terminal(&mut self, out: &mut Output, text: &str) {
        if self.look.terminal || matches!(self.voice, Some(Voice::Tool(..))) {
            self.hush(&mut out.text);
        }
        self.note(out, text);
        if let Some(statistics) = self.statistics.take() {
            self.note(out, &statistics);
        }
    }

    fn note(&mut self, out: &mut Output, text: &str) {
        // On a terminal both outputs mix, so a note begins on a line of its own.
        if self.look.terminal && self.mid_line {
            out.note.push('\n');
            self.mid_line = false;
        }
        writeln!(out.note, "[{}]", visible::line(text)).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(terminal: bool, frames: &[&str]) -> (String, String) {
        let mut renderer = Renderer::new(Look { terminal, dims: terminal });
        let (mut text, mut notes) = (String::new(), String::new());
        for json in frames {
            let out = renderer.frame(&serde_json::from_str(json).unwrap());
            text += &out.text;
            notes += &out.note;
        }
        (text, notes)
    }

    #[test]
    fn a_pipe_gets_the_text_byte_for_byte() {
        let (text, notes) = render(
            false,
            &[
                r#"{"type":"open","stream":"s/m","after":"0-0","state":"live"}"#,
                r#"{"type":"start","id":"1-0","generation":"g1"}"#,
                r#"{"type":"delta","id":"2-0","text":"Hel","count":2}"#,
                r#"{"type":"delta","id":"3-0","text":"lo\u001b[31m"}"#,
                r#"{"type":"end","id":"4-0","finish_reason":"stop","usage":{"total":3}}"#,
            ],
        );
        assert_eq!(text, "Hello\u{1b}[31m");
        assert_eq!(notes, "[generation g1]\n[end: stop, usage {\"total\":3}]\n[3 tokens]\n");
    }

    #[test]
    fn a_terminal_gets_dimmed_reasoning_and_no_escapes() {
        let (text, notes) = render(
            true,
            &[
                r#"{"type":"delta","id":"1-0","channel":"reasoning","text":"hm"}"#,
                r#"{"type":"delta","id":"2-0","text":"a\u001b]0;x\u0007\n"}"#,
                "{\"type\":\"custom\",\"id\":\"3-0\",\"data\":{\"a\":\n\"\u{202e}x\"}}",
                r#"{"type":"error","id":"4-0","code":"c\u001b","message":"m]\n[end: stop\u202e"}"#,
            ],
        );
        assert_eq!(text, "\x1b[2mhm\x1b[22m\n\na␛]0;x␇\n");
        let notes: Vec<&str> = notes.lines().collect();
        let custom = "[custom: {\"a\":␊\"\u{fffd}x\"}]";
        assert_eq!(notes, [custom, "[error: c␛: m]␊[end: stop\u{fffd}]", "[2 tokens]"]);
    }

    #[test]
    fn names_are_labels_of_one_line_in_a_pipe_too() {
        let (text, _) = render(
            false,
            &[
                r#"{"type":"delta","id":"1-0","channel":"a\u001b[2J","text":"x\u001b"}"#,
                r#"{"type":"tool_call","id":"2-0","name":"se\nx","arguments":"\u0007"}"#,
            ],
        );
        assert_eq!(text, "[a␛[2J] x\x1b\n\n→ se␊x(\x07");
    }

    #[test]
    fn each_generation_has_its_statistics() {
        let (_, notes) = render(
            false,
            &[
                r#"{"type":"start","id":"1763800000000-0"}"#,
                r#"{"type":"delta","id":"1763800000250-0","channel":"reasoning","text":"hm"}"#,
                r#"{"type":"tool_call","id":"1763800000500-0","call":0,"name":"add","arguments":"{}"}"#,
                r#"{"type":"delta","id":"1763800001250-0","text":"abc","count":3}"#,
                r#"{"type":"end","id":"1763800009000-0"}"#,
                r#"{"type":"delta","id":"1763800010000-0","text":"x"}"#,
                r#"{"type":"end","id":"1763800010000-1"}"#,
                r#"{"type":"end","id":"1763800010000-2"}"#,
            ],
        );
        let first = "[generation without a name]\n[end: complete]\n\
                     [first token after 250 ms, 5 tokens in 1.00 s, 4.0 tokens/s]\n";
        assert_eq!(notes, format!("{first}[end: complete]\n[1 token]\n[end: complete]\n"));
    }

    #[test]
    fn nothing_is_dimmed_where_that_is_not_wanted() {
        let mut renderer = Renderer::new(Look { terminal: true, dims: false });
        let json = r#"{"type":"delta","id":"1-0","channel":"reasoning","text":"hm\u001b[1m\u009b2J\r"}"#;
        assert_eq!(renderer.frame(&serde_json::from_str(json).unwrap()).text, "hm␛[1m\u{FFFD}2J␍");
    }

    #[test]
    fn voices_are_set_apart_and_tool_calls_marked() {
        let (text, _) = render(
            false,
            &[
                r#"{"type":"delta","id":"1-0","text":"Let me see."}"#,
                r#"{"type":"tool_call","id":"2-0","call":0,"name":"search","arguments":"{\"q\":"}"#,
                r#"{"type":"tool_call","id":"3-0","call":0,"arguments":"1}"}"#,
                r#"{"type":"tool_call","id":"4-0","call":1,"name":"add","arguments":"{}"}"#,
                r#"{"type":"delta","id":"5-0","channel":"refusal","index":1,"text":"No."}"#,
                r#"{"type":"end","id":"6-0","finish_reason":null}"#,
            ],
        );
        assert_eq!(text, "Let me see.\n\n→ search({\"q\":1})\n\n→ add({})\n\n[refusal, choice 1] No.");
    }

    #[test]
    fn news_begin_on_a_line_of_their_own() {
        let (_, notes) = render(
            true,
            &[
                r#"{"type":"delta","id":"1-0","text":"half a li"}"#,
                r#"{"type":"status","state":"degraded"}"#,
                r#"{"type":"gap","after":"1-0","next":"9-0","lost":null,"reason":"trimmed"}"#,
                r#"{"type":"skipped","id":"9-0","reason":"malformed"}"#,
                r#"{"type":"skipped","id":"9-1","reason":"malformed","message":"`text` is missing"}"#,
                r#"{"type":"of the future"}"#,
            ],
        );
        assert_eq!(
            notes,
            "\n[degraded]\n[gap: some entries are missing (trimmed)]\n[skipped one entry (malformed)]\n\
             [skipped one entry (malformed: `text` is missing)]\n"
        );
    }
}
