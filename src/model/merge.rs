//! Merging of adjacent frames, by the same rules for entries that are being encoded and for frames that are encoded
//! already; and division of merged frames.

use std::sync::Arc;

use super::{Content, Frame, FrameBody, Head, Position, ToolPiece};

/// The most text of a merged frame, in escaped bytes; a single entry may have more.
pub const FRAME_TEXT_BYTES_MAX: usize = 32 * 1024;

/// Merges adjacent frames of one stream as far as the contract allows: deltas of one channel and choice, and pieces
/// of one tool call, up to [`FRAME_TEXT_BYTES_MAX`] of text. A frame that cannot be merged is returned unchanged. Two
/// frames are adjacent if one begins at the position at which the other ends.
#[must_use]
pub fn merge(frames: &[Arc<Frame>]) -> Vec<Arc<Frame>> {
    let mut merged = Vec::with_capacity(frames.len());
    let mut rest = frames;
    while !rest.is_empty() {
        let (group, after) = rest.split_at(group_len(rest));
        merged.push(match group {
            [single] => Arc::clone(single),
            group => Arc::new(join(group)),
        });
        rest = after;
    }
    merged
}

/// Whether a piece of the same tool call may be merged into a frame that began with `id` and `name`: its own id and
/// name must be absent or the same.
pub(crate) fn piece_continues(first: [Option<&str>; 2], later: [Option<&str>; 2]) -> bool {
    later.iter().zip(first).all(|(later, first)| later.is_none() || *later == first)
}

impl Frame {
    /// The rest of a text frame, for a viewer at `position` that has received the part before it; `None` if the frame
    /// cannot be divided there.
    #[must_use]
    pub fn rest_after(&self, position: Position) -> Option<Self> {
        let index = self.marks.binary_search_by_key(&position, |mark| mark.last).ok()?;
        let text = self.text()?.get(self.marks[index].bytes..)?;
        let count = self.count.checked_sub(u32::try_from(index + 1).ok()?).filter(|&count| count > 0)?;
        let head = Head { after: position, count, ..self.head() };
        let mut content = self.content(text)?;
        if let Content::ToolCall { tool, .. } = &mut content {
            // The part that the viewer has received contains them.
            (tool.id, tool.name) = (None, None);
        }
        Some(Self::encode(head, content))
    }

    /// How many bytes of a text frame's text a viewer at `position` has received; `None` if the frame cannot be
    /// divided there.
    #[must_use]
    pub fn text_until(&self, position: Position) -> Option<usize> {
        let index = self.marks.binary_search_by_key(&position, |mark| mark.last).ok()?;
        Some(self.marks[index].bytes)
    }

    fn head(&self) -> Head {
        Head {
            stream: self.stream.clone(),
            after: self.after,
            last: self.last,
            state: self.state.clone(),
            seq: self.seq,
            count: self.count,
            ts_us: self.ts_us,
            read_us: self.read_us,
            encoded_us: self.encoded_us,
        }
    }

    /// The frame's content with `text` in place of its own text; `None` for a frame without text.
    fn content<'a>(&self, text: &'a [u8]) -> Option<Content<'a>> {
        match &self.body {
            FrameBody::ToolCall { index, call, id, name, .. } => Some(Content::ToolCall {
                tool: ToolPiece { index: *index, call: *call, id: id.clone(), name: name.clone() },
                arguments: text,
            }),
            FrameBody::Delta { channel, index, .. } => {
                Some(Content::Delta { channel: channel.clone(), index: *index, text })
            }
            FrameBody::Terminal | FrameBody::Gap | FrameBody::Other => None,
        }
    }
}

/// How many frames at the front can be merged into one: at least the first alone.
fn group_len(frames: &[Arc<Frame>]) -> usize {
    let first = &frames[0];
    let mut text_bytes = first.text().map_or(0, <[u8]>::len);
    let continued = frames.windows(2).take_while(|pair| {
        let (previous, frame) = (&pair[0], &pair[1]);
        text_bytes += frame.text().map_or(0, <[u8]>::len);
        text_bytes <= FRAME_TEXT_BYTES_MAX && frame.after == previous.last && continues(first, frame)
    });
    1 + continued.count()
}

fn continues(first: &Frame, later: &Frame) -> bool {
    match (&first.body, &later.body) {
        (FrameBody::Delta { channel, index, .. }, FrameBody::Delta { channel: c, index: i, .. }) => {
            channel == c && index == i
        }
        (
            FrameBody::ToolCall { index, call, id, name, .. },
            FrameBody::ToolCall {
                index: later_index, call: later_call, id: later_id, name: later_name, ..
            },
        ) => {
            (index, call) == (later_index, later_call)
                && piece_continues(
                    [id.as_deref(), name.as_deref()],
                    [later_id.as_deref(), later_name.as_deref()],
                )
        }
        _ => false,
    }
}

/// Merges frames that continue the first one into one frame.
fn join(group: &[Arc<Frame>]) -> Frame {
    let (first, last) = (&group[0], &group[group.len() - 1]);
    let head = Head {
        after: first.after,
        count: group.iter().map(|frame| frame.count).fold(0, u32::saturating_add),
        ts_us: group.iter().find_map(|frame| frame.ts_us),
        ..last.head()
    };
    let joined = group.iter().filter_map(|frame| frame.text()).collect::<Vec<_>>().concat();
    let Some(content) = first.content(&joined) else {
        unreachable!("a frame without text continues no other, so it is a group of its own")
    };
    Frame::encode(head, content)
}
