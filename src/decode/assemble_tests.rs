use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::decode::test_streams::{any_stream, beginning, entries, entry, stream};
use crate::model::{FrameBody, Phase, merge, websocket_text};

fn assembler() -> Assembler {
    Assembler::new(stream(), Position::ZERO, beginning())
}

fn json(frames: &[Arc<Frame>]) -> Vec<String> {
    frames.iter().map(|frame| String::from_utf8(frame.json().to_vec()).unwrap()).collect()
}

/// The frames of a stream that is pushed as one batch.
fn frames<S: AsRef<str>>(objects: &[S]) -> Vec<String> {
    let mut assembler = assembler();
    for entry in entries(objects) {
        assembler.push(&entry, 0);
    }
    json(&assembler.take(0))
}

/// One frame per delivered entry: cut after each.
fn single_frames(assembler: &mut Assembler, entries: &[Entry]) -> Vec<Arc<Frame>> {
    entries
        .iter()
        .flat_map(|entry| {
            assembler.push(entry, 0);
            assembler.take(0)
        })
        .collect()
}

#[test]
fn frames_are_what_the_contract_prints() {
    let output = frames(&[
        r#"{"seq":0,"type":"start","generation":"g1","metadata":{"a": 1}}"#,
        r#"{"type":"delta","text":"Hello ","seq":1}"#,
        r#"{"type":"delta","text":"w\u00f6r","seq":2}"#,
        r#"{"type":"delta","text":"ld\n","seq":3}"#,
        r#"{"type":"delta","channel":"reasoning","text":"hm"}"#,
        r#"{"type":"delta","channel":"x","text":"y","index":2}"#,
        r#"{"type":"tool_call","id":"call_9","name":"search","arguments":"{\"q\":"}"#,
        r#"{"type":"tool_call","arguments":"1}"}"#,
        r#"{ "type":"own", "seq":4 }"#,
        r#"{"type":true}"#,
        r#"{"type":"end","seq":5,"finish_reason":"stop","usage":{"n":2}}"#,
        r#"{"type":"start"}"#,
        r#"{"type":"error","code":"upstream_timeout","message":"too \"late\""}"#,
        r#"{"type":true}"#,
    ]);
    assert_eq!(
        output,
        [
            r#"{"type":"start","id":"1-0","seq":0,"generation":"g1","metadata":{"a": 1}}"#,
            r#"{"type":"delta","id":"4-0","seq":3,"text":"Hello w\u00f6rld\n","count":3}"#,
            r#"{"type":"delta","id":"5-0","channel":"reasoning","text":"hm"}"#,
            r#"{"type":"delta","id":"6-0","channel":"x","index":2,"text":"y"}"#,
            r#"{"type":"tool_call","id":"8-0","index":0,"call":0,"call_id":"call_9","name":"search","arguments":"{\"q\":1}","count":2}"#,
            r#"{"type":"custom","id":"9-0","seq":4,"data":{ "type":"own", "seq":4 }}"#,
            r#"{"type":"skipped","id":"10-0","reason":"malformed","message":"type is not a text; fields: data; members of data: type"}"#,
            r#"{"type":"end","id":"11-0","seq":5,"finish_reason":"stop","usage":{"n":2}}"#,
            r#"{"type":"start","id":"12-0"}"#,
            r#"{"type":"error","id":"13-0","code":"upstream_timeout","message":"too \"late\""}"#,
        ]
    );
}

#[test]
fn gaps_precede_what_revealed_them() {
    let output = frames(&[
        r#"{"type":"delta","text":"a","seq":2}"#,
        r#"{"type":"delta","text":"b","seq":3}"#,
        r#"{"type":"delta","text":"c","seq":6}"#,
        r#"{"type":"heartbeat","seq":8}"#,
        r#"{"type":"end","seq":9}"#,
        r#"{"type":"delta","text":"d","seq":11}"#,
    ]);
    assert_eq!(
        output,
        [
            r#"{"type":"gap","after":"0-0","next":"1-0","lost":2,"reason":"producer"}"#,
            r#"{"type":"delta","id":"2-0","seq":3,"text":"ab","count":2}"#,
            r#"{"type":"gap","after":"2-0","next":"3-0","lost":2,"reason":"producer"}"#,
            r#"{"type":"delta","id":"3-0","seq":6,"text":"c"}"#,
            r#"{"type":"gap","after":"3-0","next":"4-0","lost":1,"reason":"producer"}"#,
            r#"{"type":"end","id":"5-0","seq":9}"#,
            r#"{"type":"gap","after":"5-0","next":"6-0","lost":11,"reason":"producer"}"#,
            r#"{"type":"delta","id":"6-0","seq":11,"text":"d"}"#,
        ]
    );
}

#[test]
fn neighbours_merge_only_within_their_kind() {
    let piece = |more: &str| format!(r#"{{"type":"tool_call","arguments":"x"{more}}}"#);
    let output = frames(&[
        piece(""),
        piece(r#","id":"a""#),
        piece(""),
        piece(r#","id":"a","name":null"#),
        piece(r#","name":"n""#),
        piece(r#","name":"n""#),
        piece(r#","call":1"#),
        piece(r#","index":1,"call":1"#),
        r#"{"type":"delta","text":"x"}"#.into(),
        r#"{"type":"heartbeat"}"#.into(),
        r#"{"type":"delta","text":"x","channel":"content"}"#.into(),
        r#"{"type":"delta","text":"x","index":1}"#.into(),
        r#"{"type":"delta","text":"x","channel":"reasoning","index":1}"#.into(),
    ]);
    let ids: Vec<_> = output.iter().map(|json| json.split('"').nth(7).unwrap()).collect();
    assert_eq!(ids, ["1-0", "4-0", "6-0", "7-0", "8-0", "11-0", "12-0", "13-0"]);
}

#[test]
fn merged_text_has_a_bound_and_a_single_entry_has_none() {
    let third = FRAME_TEXT_BYTES_MAX / 3;
    let sizes = [third, third, third, 1, 1, 1, FRAME_TEXT_BYTES_MAX + 1, 1, 200_000];
    let objects = sizes.map(|len| format!(r#"{{"type":"delta","text":"{}"}}"#, "x".repeat(len)));
    let mut assembler = assembler();
    let singles = single_frames(&mut assembler, &entries(&objects));
    let mut assembler = self::assembler();
    entries(&objects).iter().for_each(|entry| assert_eq!(assembler.push(entry, 0), Pushed::Accepted));
    let merged = assembler.take(0);
    let lens = |frames: &[Arc<Frame>]| -> Vec<usize> {
        let len = |frame: &Arc<Frame>| match &frame.body {
            FrameBody::Delta { text, .. } => text.len(),
            other => panic!("{other:?}"),
        };
        frames.iter().map(len).collect()
    };
    assert_eq!(lens(&merged), [3 * third + 2, 1, FRAME_TEXT_BYTES_MAX + 1, 1, 200_000]);
    assert_eq!(json(&merge(&singles)), json(&merged));
    for frame in &merged {
        assert_eq!(frame.websocket(), websocket_text(frame.json()));
    }
}

#[test]
fn times_positions_and_states_are_those_of_the_covered_entries() {
    let mut assembler = assembler();
    for (number, object) in (1_u64..).zip([
        r#"{"type":"start","generation":"g","seq":0}"#,
        r#"{"type":"delta","text":"a","seq":1}"#,
        r#"{"type":"delta","text":"b","seq":2,"ts":70}"#,
        r#"{"type":"delta","text":"c","seq":3,"ts":80}"#,
        r#"{"type":"heartbeat","seq":4,"ts":90}"#,
    ]) {
        assembler.push(&entry(&number.to_string(), object), 100 + number);
    }
    assert_eq!(assembler.position().to_string(), "5-0");
    assert_eq!(assembler.state().seq, Some(4));
    let frames = assembler.take(200);
    let [start, delta] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!((start.after, start.last.to_string()), (Position::ZERO, "1-0".into()));
    assert_eq!((delta.after, delta.last.to_string()), (start.last, "4-0".into()));
    assert_eq!((delta.count, delta.seq, delta.ts_us), (3, Some(3), Some(70)));
    assert_eq!((delta.read_us, delta.encoded_us), (104, 200));
    let state = StreamState {
        phase: Phase::Open,
        generation: Some(Arc::new("g".to_owned())),
        seq: Some(3),
        ordinal: Some(4),
        ..StreamState::default()
    };
    assert_eq!(delta.state, state);
    assert_eq!(assembler.take(300).len(), 0);
}

#[test]
fn entries_at_or_below_the_position_are_ignored() {
    let mut assembler = Assembler::new(stream(), "5-1".parse().unwrap(), StreamState::default());
    let delta = r#"{"type":"delta","text":"x"}"#;
    assert_eq!(assembler.push(&entry("5-0", delta), 0), Pushed::Old);
    assert_eq!(assembler.push(&entry("5-1", delta), 0), Pushed::Old);
    assert_eq!(assembler.push(&entry("5-2", delta), 0), Pushed::Accepted);
    assert_eq!(assembler.push(&entry("5-2", delta), 0), Pushed::Old);
    // After a position within an entry, that entry is read again.
    let mut assembler = Assembler::new(stream(), "5-1.3".parse().unwrap(), StreamState::default());
    assert_eq!(assembler.push(&entry("5-0", delta), 0), Pushed::Old);
    assert_eq!(assembler.push(&entry("5-1", delta), 0), Pushed::Accepted);
}

#[test]
fn undecodable_entries_are_reported_even_if_they_are_not_shown() {
    let mut assembler = assembler();
    let malformed = Pushed::Undecodable { flaw: Flaw::NotAnObject };
    assert_eq!(assembler.push(&entry("1", "?"), 0), malformed);
    assembler.push(&entry("2", r#"{"type":"end"}"#), 0);
    assert_eq!(assembler.push(&entry("3", "?"), 0), malformed);
    assert_eq!(assembler.position().to_string(), "3-0");
    assert_eq!(assembler.take(0).len(), 2);
}

#[test]
fn wire_forms_agree() {
    let mut assembler = assembler();
    let objects = [r#"{"type":"delta","text":"x","seq":1}"#, "{\"type\":\"own\",\r\"a\":\n1}"];
    entries(&objects).iter().for_each(|entry| assert_eq!(assembler.push(entry, 0), Pushed::Accepted));
    let frames = assembler.take(0);
    let sse: Vec<_> = frames.iter().map(|frame| String::from_utf8(frame.sse().to_vec()).unwrap()).collect();
    assert_eq!(
        sse,
        [
            "data: {\"type\":\"gap\",\"after\":\"0-0\",\"next\":\"1-0\",\"lost\":1,\"reason\":\"producer\"}\n\n",
            "id: 1-0\ndata: {\"type\":\"delta\",\"id\":\"1-0\",\"seq\":1,\"text\":\"x\"}\n\n",
            "id: 2-0\ndata: {\"type\":\"custom\",\"id\":\"2-0\",\"data\":{\"type\":\"own\",\ndata: \"a\":\ndata: 1}}\n\n",
        ]
    );
    assert_eq!(
        frames[1].multiplexed(),
        websocket_text(br#"{"type":"delta","stream":"s1/gpt-4o","id":"1-0","seq":1,"text":"x"}"#)
    );
}

/// The text of each channel and tool call, and how many entries it came in.
fn texts(frames: &[Arc<Frame>]) -> BTreeMap<String, (Vec<u8>, u32)> {
    let mut texts = BTreeMap::<_, (Vec<u8>, u32)>::new();
    for frame in frames {
        let key = match &frame.body {
            FrameBody::Delta { channel, index, .. } => format!("{channel:?} {index}"),
            FrameBody::ToolCall { index, call, .. } => format!("{index} {call}"),
            _ => continue,
        };
        let gathered = texts.entry(key).or_default();
        gathered.0.extend_from_slice(frame.text().unwrap());
        gathered.1 += frame.count;
    }
    texts
}

proptest! {
    /// However the stream is cut into batches, merging gives the same frames as one batch, and concatenating gives
    /// the same text.
    #[test]
    fn cuts_do_not_matter(story in any_stream(), cuts in prop::collection::vec(any::<bool>(), 40)) {
        let singles = single_frames(&mut assembler(), &story);
        let (mut whole, mut cut) = (assembler(), assembler());
        let mut batches = Vec::new();
        for (entry, &take) in story.iter().zip(&cuts) {
            whole.push(entry, 0);
            cut.push(entry, 0);
            if take {
                batches.extend(cut.take(0));
            }
        }
        batches.extend(cut.take(0));
        let whole = whole.take(0);
        prop_assert_eq!(json(&merge(&batches)), json(&whole));
        prop_assert_eq!(json(&merge(&singles)), json(&whole));
        for frames in [&whole, &batches, &singles, &merge(&batches), &merge(&singles)] {
            prop_assert_eq!(texts(frames), texts(&singles));
            // Each frame begins where the previous one ended, and is well formed in every form.
            let mut position = Position::ZERO;
            for frame in frames {
                prop_assert_eq!(frame.after, position);
                position = frame.last;
                let output: serde_json::Value = serde_json::from_slice(frame.json()).unwrap();
                let gap = matches!(frame.body, FrameBody::Gap);
                prop_assert_eq!(output["id"].as_str().map(str::to_owned), (!gap).then(|| position.to_string()));
                prop_assert_eq!(output["seq"].as_u64(), frame.seq);
                prop_assert_eq!(frame.websocket(), websocket_text(frame.json()));
                let single = singles.iter().find(|single| single.last == position && single.count > 0);
                prop_assert!(gap || single.is_some_and(|single| single.state == frame.state));
            }
        }
    }

    /// Merging returns frames that it cannot merge unchanged, and merging again changes nothing.
    #[test]
    fn merging_is_stable(story in any_stream()) {
        let merged = merge(&single_frames(&mut assembler(), &story));
        let again = merge(&merged);
        prop_assert_eq!(merged.len(), again.len());
        prop_assert!(merged.iter().zip(&again).all(|(a, b)| Arc::ptr_eq(a, b)));
    }

    /// A resume at any frame, with the frame's state, returns exactly the frames that follow.
    #[test]
    fn resuming_at_any_frame_continues_the_story(story in any_stream()) {
        let frames = single_frames(&mut assembler(), &story);
        for (at, frame) in frames.iter().enumerate().filter(|(_, frame)| !matches!(frame.body, FrameBody::Gap)) {
            let mut resumed = Assembler::new(stream(), frame.last, frame.state.clone());
            let rest = single_frames(&mut resumed, &story);
            prop_assert_eq!(json(&rest), json(&frames[at + 1..]));
            prop_assert!(rest.iter().zip(&frames[at + 1..]).all(|(a, b)| a.state == b.state));
        }
    }

    /// Two readers, one from the beginning and one that took over in the middle, produce the same frames.
    #[test]
    fn taking_over_anywhere_changes_nothing(story in any_stream(), middle in 0..40_usize) {
        let (before, after) = story.split_at(middle.min(story.len()));
        let mut first = assembler();
        before.iter().for_each(|entry| { first.push(entry, 0); });
        first.take(0);
        let mut second = Assembler::new(stream(), first.position(), first.state().clone());
        for entry in after {
            prop_assert_eq!(first.push(entry, 0), second.push(entry, 0));
            prop_assert_eq!(first.state(), second.state());
            prop_assert_eq!(first.position(), second.position());
        }
        // A gap names the last frame's id, which the second reader has not seen.
        let output = |frames: Vec<Arc<Frame>>| -> Vec<String> {
            let shown = frames.iter().filter(|frame| !matches!(frame.body, FrameBody::Gap));
            json(&shown.cloned().collect::<Vec<_>>())
        };
        prop_assert_eq!(output(first.take(0)), output(second.take(0)));
    }
}
