//! The frames of a viewer of one stream. It checks, frame by frame, the rules for every viewer: `open` comes first
//! and once, ids only increase, SSE's `id:` is the frame's, counts are correct.

use serde_json::Value;

/// A frame.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// The frame's JSON.
    pub(crate) value: Value,
    /// The JSON, byte for byte as it arrived.
    pub(crate) raw: String,
}

impl Frame {
    pub(crate) fn new(raw: String) -> Self {
        let value = serde_json::from_str(&raw).unwrap_or_else(|error| panic!("{error} in {raw:?}"));
        Self { value, raw }
    }

    fn string(&self, name: &str) -> Option<&str> {
        self.value.get(name).map(|value| value.as_str().unwrap_or_else(|| panic!("{name} in {}", self.raw)))
    }

    /// Its `type`.
    pub(crate) fn kind(&self) -> &str {
        self.string("type").unwrap_or_else(|| panic!("no type in {}", self.raw))
    }

    pub(crate) fn id(&self) -> Option<&str> {
        self.string("id")
    }

    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self.kind(), "end" | "error")
    }

    /// A delta's channel.
    fn channel(&self) -> &str {
        self.string("channel").unwrap_or("content")
    }

    fn index(&self) -> u64 {
        self.value.get("index").map_or(0, |index| index.as_u64().unwrap())
    }

    /// How many entries it covers.
    fn entries(&self) -> usize {
        match self.kind() {
            "open" | "status" | "gap" | "refused" => 0,
            _ => self.value.get("count").map_or(1, |count| usize::try_from(count.as_u64().unwrap()).unwrap()),
        }
    }

    /// The line for it in an outline; the transcript adds text.
    fn outline(&self) -> String {
        let member = |name: &str| self.string(name).map_or(String::new(), |value| format!(" {value}"));
        match self.kind() {
            "start" => format!("start{}", member("generation")),
            "delta" => {
                let channel = self.string("channel").map_or(String::new(), |name| format!("[{name}]"));
                let index = if self.index() == 0 { String::new() } else { format!("#{}", self.index()) };
                format!("delta{channel}{index} ")
            }
            "tool_call" => {
                format!("tool_call{}{} {}", member("call_id"), member("name"), self.value["arguments"])
            }
            "end" => format!("end{}", member("finish_reason")),
            "error" => format!("error{}", member("code")),
            "custom" => format!("custom {}", self.value["data"]["type"].as_str().unwrap()),
            "gap" => format!("gap{} {}", member("reason"), self.value["lost"]),
            other => other.to_owned(),
        }
    }
}

/// The id right after another.
pub(crate) fn right_after(id: &str) -> String {
    let (ms, n, _) = id_order(&format!("{id}.0"));
    format!("{ms}-{}", n + 1)
}

/// An entry id in its order: `ms-n.k` comes before `ms-n`.
pub(crate) fn id_order(id: &str) -> (u64, u64, u64) {
    let parse = |part: &str| part.parse().unwrap_or_else(|_| panic!("no entry id: {id:?}"));
    let (ms, rest) = id.split_once('-').unwrap_or((id, "0"));
    match rest.split_once('.') {
        Some((n, k)) => (parse(ms), parse(n), parse(k)),
        None => (parse(ms), parse(rest), u64::MAX),
    }
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// A WebSocket was closed with this code.
    Closed(u16),
    /// An SSE response ended in order.
    Complete,
    /// An SSE request was answered with this status instead of 200.
    Status(u16),
    /// The connection broke.
    Cut,
}

impl Ending {
    /// Whether it is the ending that the contract requires after a terminal frame: close 1000, or the end of the
    /// response.
    pub(crate) fn is_orderly(self) -> bool {
        matches!(self, Self::Closed(1000) | Self::Complete)
    }
}

/// The frames of one answer.
#[derive(Debug, Default, Clone)]
pub(crate) struct Transcript {
    pub(crate) frames: Vec<Frame>,
    pub(crate) ending: Option<Ending>,
}

impl Transcript {
    /// Adds a frame and checks it against those before it. `event_id` is SSE's `id:`.
    pub(crate) fn push(&mut self, frame: Frame, event_id: Option<&str>) {
        let is_first = self.frames.is_empty();
        assert_eq!(frame.kind() == "open", is_first, "open comes first and once: {}", self.shown(&frame));
        if let Some(event_id) = event_id {
            assert_eq!(Some(event_id), frame.id(), "SSE id: {}", frame.raw);
        }
        if let Some(id) = frame.id() {
            let before = self.last_id();
            let is_failover = |frame: &Frame| frame.value["reason"] == "failover";
            // If nothing follows an older end, the terminal frame at or before it comes again.
            let repeats_end = frame.is_terminal() && self.frames.last().is_some_and(is_failover);
            let grows = before.is_none_or(|before| id_order(before) < id_order(id));
            assert!(grows || is_failover(&frame) || repeats_end, "ids only grow: {}", self.shown(&frame));
        }
        if let Some(count) = frame.value.get("count") {
            assert!(count.as_u64().is_some_and(|count| count > 1), "count is absent when 1: {}", frame.raw);
        }
        self.frames.push(frame);
    }

    fn shown(&self, frame: &Frame) -> String {
        let last: Vec<&str> =
            self.frames.iter().rev().take(3).rev().map(|frame| frame.raw.as_str()).collect();
        format!("{} after {last:#?}", frame.raw)
    }

    /// The `open` frame.
    pub(crate) fn open(&self) -> &Value {
        &self.frames.first().unwrap_or_else(|| panic!("nothing came, {:?}", self.ending)).value
    }

    /// The id to resume after, if any frame carried one.
    pub(crate) fn last_id(&self) -> Option<&str> {
        self.frames.iter().rev().find_map(Frame::id)
    }

    /// The frames of one type.
    pub(crate) fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.frames.iter().filter(move |frame| frame.kind() == kind).map(|frame| &frame.value)
    }

    /// All `content` text of the first choice.
    pub(crate) fn text(&self) -> String {
        self.text_of("content")
    }

    /// All text of a channel of the first choice.
    pub(crate) fn text_of(&self, channel: &str) -> String {
        let belongs =
            |frame: &&Frame| frame.kind() == "delta" && frame.channel() == channel && frame.index() == 0;
        self.frames.iter().filter(belongs).map(|frame| frame.string("text").unwrap()).collect()
    }

    /// How many entries the frames cover.
    pub(crate) fn entries(&self) -> usize {
        self.frames.iter().map(Frame::entries).sum()
    }

    /// One line per frame (`start g1`, `delta some text`, `gap producer 3`, `end stop`), independent of how deltas
    /// were merged; without `open` and `status`.
    pub(crate) fn outline(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        let mut previous = String::new();
        for frame in self.frames.iter().filter(|frame| !matches!(frame.kind(), "open" | "status")) {
            let line = frame.outline();
            let text = if frame.kind() == "delta" { frame.string("text").unwrap() } else { "" };
            if frame.kind() == "delta" && line == previous {
                lines.last_mut().unwrap().push_str(text);
            } else {
                lines.push(format!("{line}{text}"));
            }
            previous = line;
        }
        lines
    }

    /// Checks that it ended in order with its only terminal frame, which has this id.
    pub(crate) fn expect_finished(&self, terminal_id: &str) {
        let last = self.frames.last().unwrap_or_else(|| panic!("nothing came, {:?}", self.ending));
        assert!(last.is_terminal(), "the last frame is {}", last.raw);
        assert_eq!(last.id(), Some(terminal_id), "{}", last.raw);
        assert_eq!(self.frames.iter().filter(|frame| frame.is_terminal()).count(), 1, "{:#?}", self.frames);
        assert!(self.ending.is_some_and(Ending::is_orderly), "{:?}", self.ending);
    }
}
