use proptest::prelude::*;

use super::*;
use crate::decode::Assembler;
use crate::decode::test_streams::{any_stream, beginning, entries, entry, stream};
use crate::model::Phase;

fn seek(after: After, story: &[Entry]) -> Sought {
    let mut seek = Seek::new(stream(), after, beginning());
    story.iter().for_each(|entry| seek.push(entry));
    seek.finish(EntryId::ZERO)
}

fn at(position: &str) -> After {
    After::At(position.parse().unwrap())
}

const STORY: [&str; 8] = [
    r#"{"type":"start","generation":"g","seq":0}"#,
    r#"{"type":"end","seq":1,"finish_reason":"stop"}"#,
    r#"{"type":"heartbeat"}"#,
    r#"{"type":"start","generation":"h","seq":0}"#,
    r#"{"type":"delta","text":"x","seq":1}"#,
    r#"{"type":"error","code":"producer_lost","message":"m"}"#,
    r#"{"type":"delta","text":"late","seq":2}"#,
    r#"{"type":"error","code":"producer_lost"}"#,
];

#[test]
fn an_empty_stream_has_no_past() {
    for after in [After::At(Position::ZERO), After::Last, After::Tail] {
        let sought = seek(after, &[]);
        assert_eq!((sought.from, sought.tip), (Position::ZERO, EntryId::ZERO));
        assert_eq!(sought.state_at_from, beginning());
        assert!(sought.terminal.is_none() && sought.newest_activity.is_none());
    }
}

#[test]
fn last_is_the_newest_generations_beginning() {
    let story = entries(&STORY);
    for (output, from, phase) in [
        (1, "0-0", Phase::Idle),
        (3, "0-0", Phase::Idle),
        (4, "3-0", Phase::Ended(EntryId::new(2, 0))),
        (8, "3-0", Phase::Ended(EntryId::new(2, 0))),
    ] {
        let sought = seek(After::Last, &story[..output]);
        assert_eq!((sought.from.to_string(), sought.state_at_from.phase), (from.into(), phase), "{output}");
    }
}

#[test]
fn the_tail_is_behind_everything() {
    let story = entries(&STORY);
    let mut seek = Seek::new(stream(), After::Tail, beginning());
    story.iter().for_each(|entry| seek.push(entry));
    assert_eq!(seek.position(), EntryId::new(8, 0));
    let sought = seek.finish(EntryId::new(9, 5));
    assert_eq!((sought.from.to_string(), sought.tip), ("9-5".into(), EntryId::new(8, 0)));
    assert_eq!(sought.state_at_from, sought.state_at_tip);
    assert_eq!(sought.state_at_tip.phase, Phase::Lost(EntryId::new(6, 0)));
}

#[test]
fn the_terminal_frame_is_the_newest_generations() {
    let story = entries(&STORY);
    let terminal = |output: usize| {
        let frame = seek(After::At(Position::ZERO), &story[..output]).terminal;
        frame.map(|frame| String::from_utf8(frame.json().to_vec()).unwrap())
    };
    assert_eq!(terminal(1), None);
    let end = r#"{"type":"end","id":"2-0","seq":1,"finish_reason":"stop"}"#;
    assert_eq!((terminal(2).as_deref(), terminal(3).as_deref()), (Some(end), Some(end)));
    assert_eq!((terminal(4), terminal(5)), (None, None));
    let lost = r#"{"type":"error","id":"6-0","code":"producer_lost","message":"m"}"#;
    assert_eq!((terminal(6).as_deref(), terminal(8).as_deref()), (Some(lost), Some(lost)));
    let activity: Vec<_> =
        [1, 3, 6, 7, 8].map(|output| seek(After::Tail, &story[..output]).newest_activity.unwrap().ms).into();
    assert_eq!(activity, [1, 3, 5, 7, 7]);
}

#[test]
fn a_position_within_an_entry_lies_before_it() {
    let story = entries(&STORY);
    let within = seek(at("4-0.1"), &story);
    assert_eq!(
        (within.from.to_string(), within.state_at_from.generation),
        ("4-0.1".into(), Some("g".to_owned().into()))
    );
    let whole = seek(at("4-0"), &story);
    assert_eq!(
        (whole.from.to_string(), whole.state_at_from.generation),
        ("4-0".into(), Some("h".to_owned().into()))
    );
    let beyond = seek(at("99-0"), &story);
    assert_eq!((beyond.from.to_string(), beyond.state_at_from), ("99-0".into(), beyond.state_at_tip));
}

#[test]
fn undecodable_entries_are_signs_of_life() {
    assert_eq!(seek(After::Last, &[entry("5-1", "?")]).newest_activity, Some(EntryId::new(5, 1)));
}

proptest! {
    /// A seek to any entry finds the state that an assembler has there, and `last` finds the position from which the
    /// newest generation is delivered whole.
    #[test]
    fn agrees_with_the_assembler(story in any_stream()) {
        let mut assembler = Assembler::new(stream(), Position::ZERO, beginning());
        let mut frames = Vec::new();
        for entry in &story {
            assembler.push(entry, 0);
            frames.extend(assembler.take(0));
            let sought = seek(After::At(entry.id.into()), &story);
            prop_assert_eq!(&sought.state_at_from, assembler.state());
            prop_assert_eq!(sought.from, assembler.position());
        }
        let sought = seek(After::Last, &story);
        prop_assert_eq!(&sought.state_at_tip, assembler.state());
        prop_assert_eq!(sought.terminal.is_some(), sought.state_at_tip.phase.terminal().is_some());
        if let Some(terminal) = sought.terminal {
            let shown = frames.iter().rfind(|frame| frame.is_terminal()).unwrap();
            prop_assert_eq!(terminal.json(), shown.json());
            prop_assert_eq!(&terminal.state, &shown.state);
            prop_assert_eq!(terminal.last, shown.last);
        }
        let mut newest = Assembler::new(stream(), sought.from, sought.state_at_from);
        let mut again = Vec::new();
        for entry in &story {
            newest.push(entry, 0);
            again.extend(newest.take(0));
        }
        let tail = &frames[frames.len() - again.len()..];
        let ids = |frames: &[Arc<Frame>]| -> Vec<Position> { frames.iter().filter(|f| f.count > 0).map(|f| f.last).collect() };
        prop_assert_eq!(ids(&again), ids(tail));
    }
}

proptest! {
    /// The outline that a scan finds is that of the frames that a viewer received by then.
    #[test]
    fn the_outline_is_that_of_the_frames(story in any_stream(), at in 0..40_usize) {
        let at = at.min(story.len());
        let wanted = at.checked_sub(1).map_or(Position::ZERO, |last| Position::whole(story[last].id));
        let mut assembler = Assembler::new(stream(), Position::ZERO, beginning());
        let mut output = Outline::default();
        for entry in &story[..at] {
            assembler.push(entry, 0);
            for frame in assembler.take(0) {
                output.pass_frame(&frame, frame.text().map_or(0, <[u8]>::len));
            }
        }
        let found = |after, story: &[Entry]| {
            let mut seek = Seek::new(stream(), after, beginning()).with_outline(true);
            story.iter().for_each(|entry| seek.push(entry));
            seek.finish(EntryId::ZERO).outline.unwrap()
        };
        prop_assert_eq!(&found(After::At(wanted), &story), &output);
        prop_assert_eq!(&found(After::Tail, &story[..at]), &output);
        let last = found(After::Last, &story);
        prop_assert!(!last.begun && last.calls.is_empty());
    }
}
