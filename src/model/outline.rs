//! An outline of a generation up to some point: what the encoding of later frames in another format depends on.

use super::{EntryId, Event, Frame, FrameBody};

/// The most bytes that an outline takes, by [`Outline::len_bytes`].
pub const OUTLINE_BYTES_MAX: usize = 256 * 1024;
/// The most choices, and the most tool calls, that are recorded.
const PARTS_MAX: usize = 1024;
/// The counted size of a tool call besides its strings, in bytes.
const CALL_BYTES: usize = 64;

/// The outline of a generation up to some point. Strings are *escaped*, as in [`Event`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// Identifies the generation within its stream: the id of its `start` entry, or else of the end before it.
    pub mark: EntryId,
    /// Whether the generation has begun.
    pub begun: bool,
    /// The choices that have begun, in that order.
    pub choices: Vec<u64>,
    /// The tool calls that have begun, in that order.
    pub calls: Vec<Call>,
    bytes: usize,
}

/// A tool call so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The choice.
    pub index: u64,
    /// The number within the choice.
    pub call: u64,
    /// The provider's id, if the first piece had one.
    pub id: Option<Box<str>>,
    /// The tool's name, if a piece had one.
    pub name: Option<Box<str>>,
    /// The arguments so far; `None` if they became too long.
    pub arguments: Option<String>,
}

/// A piece of a tool call.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// The choice.
    pub index: u64,
    /// The number of the call within the choice.
    pub call: u64,
    /// The provider's id of the call.
    pub id: Option<&'a str>,
    /// The tool's name.
    pub name: Option<&'a str>,
    /// More of the arguments; `None` if they are not kept.
    pub arguments: Option<&'a str>,
}

impl Outline {
    /// The outline before the first generation that follows the end `mark`.
    #[must_use]
    pub fn after_end(mark: EntryId) -> Self {
        Self { mark, ..Self::default() }
    }

    /// Begins a generation, with or without a `start` entry.
    pub fn begin(&mut self, start: Option<EntryId>) {
        *self = Self { mark: start.unwrap_or(self.mark), begun: true, ..Self::default() };
    }

    /// Its counted size, in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.bytes + self.choices.len() * size_of::<u64>()
    }

    /// Records that a choice has begun; `None` if there is no room.
    pub fn note_choice(&mut self, index: u64) -> Option<()> {
        if self.choices.contains(&index) {
            return Some(());
        }
        (self.choices.len() < PARTS_MAX).then(|| self.choices.push(index))
    }

    /// Records a piece of a tool call. Returns the index of the call, or `None` if there is no room for another one.
    /// A piece with another id than its call's begins another call with the same number.
    pub fn note_piece(&mut self, piece: Piece<'_>) -> Option<usize> {
        self.note_choice(piece.index)?;
        let found = self.calls.iter().rposition(|call| call.has(piece));
        let place = match found {
            Some(place) => place,
            None => self.add_call(piece)?,
        };
        let mut room = OUTLINE_BYTES_MAX - self.bytes;
        let call = &mut self.calls[place];
        if let (None, Some(name)) = (&call.name, piece.name)
            && name.len() <= room
        {
            call.name = Some(name.into());
            room -= name.len();
        }
        match (&mut call.arguments, piece.arguments) {
            (Some(arguments), Some(more)) if more.len() <= room => {
                arguments.push_str(more);
                room -= more.len();
            }
            (Some(arguments), Some(_)) => {
                room += arguments.len();
                call.arguments = None;
            }
            _ => {}
        }
        self.bytes = OUTLINE_BYTES_MAX - room;
        Some(place)
    }

    fn add_call(&mut self, piece: Piece<'_>) -> Option<usize> {
        let bytes = self.bytes + CALL_BYTES + piece.id.map_or(0, str::len);
        if self.calls.len() >= PARTS_MAX || bytes > OUTLINE_BYTES_MAX {
            return None;
        }
        self.bytes = bytes;
        let Piece { index, call, id, .. } = piece;
        let (id, name, arguments) = (id.map(Box::from), None, Some(String::new()));
        self.calls.push(Call { index, call, id, name, arguments });
        Some(self.calls.len() - 1)
    }

    /// Records a delivered event of the entry `at`; `begins` if it begins a generation.
    pub(crate) fn pass_event(&mut self, at: EntryId, event: &Event<'_>, begins: bool) {
        match *event {
            Event::Start { .. } => self.begin(Some(at)),
            _ if begins => self.begin(None),
            _ => {}
        }
        match *event {
            Event::Delta { index, .. } => {
                self.note_choice(index);
            }
            Event::ToolCall { index, call, id, name, arguments } => {
                self.note_piece(Piece { index, call, id, name, arguments: Some(arguments) });
            }
            Event::End { .. } | Event::Error { .. } => *self = Self::after_end(at),
            Event::Start { .. } | Event::Heartbeat | Event::Custom { .. } => {}
        }
    }

    /// Records a delivered frame, or the first `len` bytes of its text.
    pub(crate) fn pass_frame(&mut self, frame: &Frame, len: usize) {
        match &frame.body {
            FrameBody::Gap => {}
            FrameBody::Delta { index, .. } => {
                self.begun = true;
                self.note_choice(*index);
            }
            FrameBody::ToolCall { index, call, id, name, .. } => {
                self.begun = true;
                let arguments = frame.text().and_then(|text| text.get(..len));
                let arguments = arguments.and_then(|text| std::str::from_utf8(text).ok());
                let (index, call, id, name) = (*index, *call, id.as_deref(), name.as_deref());
                self.note_piece(Piece { index, call, id, name, arguments });
            }
            FrameBody::Terminal => *self = Self::after_end(frame.last.id),
            FrameBody::Other if frame.kind() == "start" => self.begin(Some(frame.last.id)),
            FrameBody::Other => self.begun |= frame.kind() != "skipped",
        }
    }
}

impl Call {
    fn has(&self, piece: Piece<'_>) -> bool {
        let is_other = matches!((&self.id, piece.id), (Some(own), Some(id)) if **own != *id);
        (self.index, self.call) == (piece.index, piece.call) && !is_other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn piece<'a>(call: u64, id: Option<&'a str>, arguments: &'a str) -> Piece<'a> {
        Piece { index: 0, call, id, name: None, arguments: Some(arguments) }
    }

    #[test]
    fn pieces_find_their_call() {
        let mut outline = Outline::default();
        assert_eq!(outline.note_piece(piece(0, Some("a"), "{")), Some(0));
        assert_eq!(outline.note_piece(piece(1, None, "[")), Some(1));
        assert_eq!(outline.note_piece(Piece { name: Some("f"), ..piece(0, None, "}") }), Some(0));
        assert_eq!(outline.note_piece(piece(0, Some("b"), "1")), Some(2), "another call under the number");
        assert_eq!(outline.note_piece(piece(0, None, "2")), Some(2));
        let output: Vec<_> = outline.calls.iter().map(|call| call.arguments.as_deref().unwrap()).collect();
        assert_eq!(output, ["{}", "[", "12"]);
        assert_eq!(outline.calls[0].name.as_deref(), Some("f"));
    }

    #[test]
    fn kept_state_is_bounded() {
        let mut outline = Outline::default();
        let long = "x".repeat(OUTLINE_BYTES_MAX / 2);
        outline.note_piece(piece(0, None, &long));
        outline.note_piece(piece(1, None, "1"));
        outline.note_piece(piece(0, None, &long));
        assert_eq!((&outline.calls[0].arguments, outline.calls[1].arguments.as_deref()), (&None, Some("1")));
        assert!(outline.len_bytes() < 1000, "what is not kept has its room given back");
        for call in 0..2 * PARTS_MAX as u64 {
            let place = outline.note_piece(piece(call, None, ""));
            assert_eq!(place.is_some(), call < PARTS_MAX as u64);
            assert_eq!(outline.note_choice(call).is_some(), call < PARTS_MAX as u64);
        }
        assert!(outline.len_bytes() <= OUTLINE_BYTES_MAX + PARTS_MAX * 8);
    }

    #[test]
    fn an_end_identifies_the_next_generation() {
        let mut outline = Outline::default();
        let text = Event::Delta { text: "", channel: "content", index: 3 };
        outline.pass_event(EntryId::new(1, 0), &text, true);
        assert_eq!((outline.mark, outline.begun, &outline.choices[..]), (EntryId::ZERO, true, &[3][..]));
        outline.pass_event(EntryId::new(2, 0), &Event::End { finish_reason: None, usage: None }, false);
        assert_eq!(outline, Outline::after_end(EntryId::new(2, 0)));
        outline.pass_event(EntryId::new(3, 0), &text, true);
        assert_eq!(outline.mark, EntryId::new(2, 0));
        outline.pass_event(EntryId::new(4, 0), &Event::Start { generation: None, metadata: None }, true);
        assert_eq!((outline.mark, outline.choices.len()), (EntryId::new(4, 0), 0));
    }
}
