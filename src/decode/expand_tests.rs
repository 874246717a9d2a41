use proptest::prelude::*;

use crate::decode::test_streams::{beginning, stream};
use crate::decode::{Assembler, DropReason, Flaw, Pushed, Seek};
use crate::fuzzing::{frames, is_over, shown};
use crate::model::{After, Entry, EntryId, Fields, Frame, Phase, Position, StreamState};
use crate::provider::{Form, Malformed};

const GRACE_MS: u64 = 2_000;

/// An entry at `ms` in the form that its field names; `flat`: with the fields that `value` lists.
fn entry(ms: u64, field: &str, value: &str) -> Entry {
    if field == "flat" {
        let pairs: Vec<_> = value.split('|').filter_map(|pair| pair.split_once('=')).collect();
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        return Entry { id: EntryId::new(ms, 0), fields: Fields::from_pairs(&pairs) };
    }
    Entry { id: EntryId::new(ms, 0), fields: Fields::from_pairs(&[(field.as_bytes(), value.as_bytes())]) }
}

fn assembler(position: Position, state: StreamState) -> Assembler {
    Assembler::new(stream(), position, state).with_grace(GRACE_MS)
}

fn from_the_beginning(entries: &[Entry], until_ms: u64) -> Vec<String> {
    shown(&frames(assembler(Position::ZERO, beginning()), entries, until_ms))
}

const TEXT: &str = r#"{"choices":[{"delta":{"content":"a"}}]}"#;
const FINISH: &str = r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str = r#"{"choices":[],"usage":{"n":1}}"#;
const LAST_TEXT: &str = r#"{"choices":[{"delta":{"content":"b"},"finish_reason":"stop"}]}"#;
const HEARTBEAT: &str = r#"{"type":"heartbeat"}"#;

#[test]
fn an_entry_with_several_events_has_as_many_frames() {
    let both =
        r#"{"choices":[{"delta":{"reasoning":"r","content":"c"}},{"index":1,"delta":{"content":"d"}}]}"#;
    let output = from_the_beginning(&[entry(5, "openai", both), entry(6, "openai", "[DONE]")], 0);
    assert_eq!(
        output,
        [
            r#"{"type":"delta","id":"5-0.1","channel":"reasoning","text":"r"}"#,
            r#"{"type":"delta","id":"5-0.2","text":"c"}"#,
            r#"{"type":"delta","id":"5-0","index":1,"text":"d"}"#,
            r#"{"type":"end","id":"6-0"}"#,
        ]
    );
}

#[test]
fn text_that_comes_with_its_end_gives_two_frames() {
    let story = [
        entry(5, "flat", "type=chunk|content=a|seq=0"),
        entry(6, "flat", "content=b|seq=2|done=1|finish_reason=stop"),
        entry(7, "flat", "content=b|seq=2|done=1"),
        entry(8, "flat", "content=c|seq=0|status=failed|message=m"),
    ];
    assert_eq!(
        from_the_beginning(&story, 0),
        [
            r#"{"type":"delta","id":"5-0","seq":0,"text":"a"}"#,
            r#"{"type":"gap","after":"5-0","next":"6-0","lost":1,"reason":"producer"}"#,
            r#"{"type":"delta","id":"6-0.1","seq":2,"text":"b"}"#,
            r#"{"type":"end","id":"6-0","seq":2,"finish_reason":"stop"}"#,
            r#"{"type":"delta","id":"8-0.1","seq":0,"text":"c"}"#,
            r#"{"type":"error","id":"8-0","seq":0,"code":"error","message":"m"}"#,
        ]
    );
}

#[test]
fn a_retry_with_an_end_in_it_ends_nothing() {
    let story = [
        entry(5, "flat", "content=a|seq=3"),
        entry(6, "flat", "content=a|seq=2|done=1"),
        entry(7, "flat", "content=b|seq=4"),
    ];
    let output = from_the_beginning(&story, 0);
    assert_eq!(output.len(), 3, "{output:?}");
    assert!(
        output[2].contains(r#""text":"b""#) && !output.iter().any(|frame| frame.contains("end")),
        "{output:?}"
    );
}

#[test]
fn skipped_entries_say_why() {
    let output = from_the_beginning(&[entry(5, "flat", "foo=1|b\"r=2"), entry(6, "openai", "torn")], 0);
    assert!(
        output[0].starts_with(
            r#"{"type":"skipped","id":"5-0","reason":"no_payload","message":"no field has a known form; fields: foo, b\"r; looked for: "#
        ),
        "{output:?}"
    );
    assert_eq!(
        output[1],
        r#"{"type":"skipped","id":"6-0","reason":"malformed","message":"openai is not JSON (expected ident at line 1 column 2); fields: openai"}"#
    );
}

#[test]
fn data_wins_and_what_is_encrypted_is_not_read() {
    let fields = [(&b"openai"[..], &b"[DONE]"[..]), (b"data", br#"{"type":"delta","text":"n"}"#)];
    let native = Entry { id: EntryId::new(1, 0), fields: Fields::from_pairs(&fields) };
    assert_eq!(from_the_beginning(&[native], 0), [r#"{"type":"delta","id":"1-0","text":"n"}"#]);
    let mut assembler = assembler(Position::ZERO, beginning());
    assert_eq!(assembler.push(&entry(1, "enc", "x"), 0), Pushed::Undecodable { flaw: Flaw::Encrypted });
    assert_eq!(
        assembler.push(&entry(2, "openai", "x"), 0),
        Pushed::Undecodable { flaw: Flaw::Provider(Form::OpenAi, Malformed::Form) }
    );
    assert_eq!(assembler.push(&entry(3, "x", "x"), 0), Pushed::Undecodable { flaw: Flaw::Nothing });
    assert_eq!(assembler.push(&entry(4, "openai", USAGE), 0), Pushed::Dropped(DropReason::Framing));
    assert_eq!(assembler.state().phase, Phase::Idle, "it begins nothing");
}

#[test]
fn the_last_word_ends_what_is_finishing() {
    let output = from_the_beginning(
        &[
            entry(1, "openai", TEXT),
            entry(2, "openai", LAST_TEXT),
            entry(3, "openai", USAGE),
            entry(4, "data", HEARTBEAT),
            entry(2002, "openai", "[DONE]"),
            entry(2003, "openai", FINISH),
        ],
        u64::MAX,
    );
    let end = r#"{"type":"end","id":"2002-0","finish_reason":"stop","usage":{"n":1}}"#;
    assert_eq!(output[1..], [r#"{"type":"delta","id":"2-0.1","text":"b"}"#, end]);
}

#[test]
fn a_finishing_generation_ends_if_nothing_follows() {
    let end = r#"{"type":"end","id":"3-0","finish_reason":"stop","usage":{"n":1}}"#;
    let mut story = vec![
        entry(1, "openai", TEXT),
        entry(2, "openai", LAST_TEXT),
        entry(3, "openai", USAGE),
        // Heartbeats do not count.
        entry(4, "data", HEARTBEAT),
    ];
    assert_eq!(from_the_beginning(&story, 2002).len(), 2, "it is not over yet");
    assert_eq!(from_the_beginning(&story, 2003)[2..], [end]);
    for late in ["[DONE]", USAGE, FINISH] {
        story.push(entry(2003, "openai", late));
        assert_eq!(from_the_beginning(&story, 2003)[2..], [end], "{late} belongs to the finished generation");
        story.pop();
    }
    story.push(entry(2003, "openai", TEXT));
    assert_eq!(from_the_beginning(&story, 0)[2..], [end, r#"{"type":"delta","id":"2003-0","text":"a"}"#]);
    // A native entry in between belongs to it, and so does one that cannot be decoded.
    for (field, value) in [("data", r#"{"type":"own"}"#), ("openai", "x")] {
        let story = [entry(1, "openai", LAST_TEXT), entry(1000, field, value)];
        let output = from_the_beginning(&story, 3000);
        assert!(output[1].contains(r#""id":"1000-0.1""#), "{output:?}");
        assert_eq!(output[2], r#"{"type":"end","id":"1000-0","finish_reason":"stop"}"#);
        assert_eq!(from_the_beginning(&story, 2999).len(), 2);
    }
}

/// A heartbeat after the finish reason may have a number. It does not count, neither for live viewers nor for those
/// that resume.
#[test]
fn a_number_after_the_end_does_not_count_for_the_generation() {
    let story = [
        entry(1, "openai", LAST_TEXT),
        entry(5, "data", r#"{"type":"heartbeat","seq":5}"#),
        entry(2500, "data", r#"{"type":"delta","text":"n","seq":3}"#),
    ];
    let output = from_the_beginning(&story, 0);
    let end = r#"{"type":"end","id":"1-0","finish_reason":"stop"}"#;
    let next = r#"{"type":"delta","id":"2500-0","seq":3,"text":"n"}"#;
    assert_eq!(output[output.len() - 3], end, "{output:?}");
    assert_eq!(output[output.len() - 1], next, "{output:?}");
    // A live viewer may get the end before anything follows it; a viewer that resumes has only the id of the end.
    let mut live = assembler(Position::ZERO, beginning());
    for entry in &story[..2] {
        live.push(entry, 0);
    }
    assert!(live.conclude(0));
    live.take(0);
    live.push(&story[2], 0);
    let live = shown(&live.take(0));
    let mut seek = Seek::new(stream(), After::At("1-0".parse().unwrap()), beginning()).with_grace(GRACE_MS);
    story.iter().for_each(|entry| seek.push(entry));
    let sought = seek.finish(EntryId::ZERO);
    let resumed = shown(&frames(assembler(sought.from, sought.state_at_from), &story, 0));
    assert_eq!((live.last().map(String::as_str), &live), (Some(next), &resumed));
}

const ANNOUNCED: &str = r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}"#;

#[test]
fn announced_calls_are_emitted_before_the_end_of_their_generation() {
    let output =
        r#"{"type":"tool_call","id":"2-0.1","index":0,"call":0,"call_id":"t","name":"f","arguments":"{}"}"#;
    for (field, value, last) in [
        ("data", r#"{"type":"end","seq":0}"#, r#"{"type":"end","id":"2-0","seq":0}"#),
        (
            "data",
            r#"{"type":"error","code":"producer_lost"}"#,
            r#"{"type":"error","id":"2-0","code":"producer_lost"}"#,
        ),
        ("data", r#"{"type":"start","generation":"g"}"#, r#"{"type":"start","id":"2-0","generation":"g"}"#),
        ("done", "1", r#"{"type":"end","id":"2-0"}"#),
    ] {
        let story = [entry(1, "anthropic", ANNOUNCED), entry(2, field, value)];
        assert_eq!(from_the_beginning(&story, 0), [output, last], "{value}");
        let mut seek = Seek::new(stream(), After::Last, beginning());
        story.iter().for_each(|entry| seek.push(entry));
        let newest = match last.contains("start") {
            true => Position::part(EntryId::new(2, 0), 1),
            false => Position::whole(EntryId::new(1, 0)),
        };
        assert_eq!(seek.finish(EntryId::ZERO).from, newest, "{value}");
    }
    // An entry that ends nothing releases nothing that waits: a text, a heartbeat, a repeated start.
    let story = [
        entry(1, "data", r#"{"type":"start","generation":"g"}"#),
        entry(2, "anthropic", ANNOUNCED),
        entry(3, "data", r#"{"type":"delta","text":"x"}"#),
        entry(4, "data", HEARTBEAT),
        entry(5, "data", r#"{"type":"start","generation":"g"}"#),
        entry(6, "anthropic", r#"{"type":"content_block_stop","index":0}"#),
    ];
    let output = from_the_beginning(&story, 0);
    assert_eq!(output.len(), 3, "{output:?}");
    assert!(output[2].starts_with(r#"{"type":"tool_call","id":"6-0""#), "{output:?}");
}

#[test]
fn without_grace_the_last_word_is_waited_for() {
    let assembler = Assembler::new(stream(), Position::ZERO, beginning());
    let story = [entry(1, "openai", LAST_TEXT), entry(9_000, "openai", "[DONE]")];
    assert!(shown(&frames(assembler, &story, u64::MAX))[1].contains(r#""id":"9000-0""#));
}

#[test]
fn a_viewer_with_the_end_does_not_get_it_again() {
    let story = [entry(1, "openai", LAST_TEXT), entry(5, "data", HEARTBEAT)];
    let seek = |after: &str, until_ms| {
        let after = After::At(after.parse().unwrap());
        let mut seek = Seek::new(stream(), after, beginning()).with_grace(GRACE_MS);
        story.iter().for_each(|entry| seek.push(entry));
        if is_over(seek.state(), until_ms) {
            seek.conclude();
        }
        seek.finish(EntryId::new(5, 0))
    };
    for after in ["1-0", "3-0", "5-0"] {
        let sought = seek(after, 2001);
        assert_eq!(sought.state_at_from.phase, Phase::Ended(EntryId::new(1, 0)), "{after}");
        assert!(sought.terminal.is_some());
    }
    // A resume behind everything but the end gets the end.
    let sought = seek("1-0.1", 2001);
    let output = shown(&frames(assembler(sought.from, sought.state_at_from), &story, 2001));
    assert_eq!(output, [r#"{"type":"end","id":"1-0","finish_reason":"stop"}"#]);
    // It is not over yet, for any position.
    assert_eq!(seek("5-0", 2000).state_at_from.finishing(), Some(EntryId::new(1, 0)));
}

/// Streams in all forms, with pauses of which some are too long.
fn any_stream() -> impl Strategy<Value = Vec<Entry>> {
    let payload = prop_oneof![
        4 => Just(("openai", TEXT)),
        2 => Just(("openai", r#"{"choices":[{"delta":{"reasoning":"r","content":"c"}},{"index":1,"delta":{"content":"d"}}]}"#)),
        2 => Just(("openai", r#"{"choices":[{"delta":{"content":"x","tool_calls":[{"id":"i","function":{"name":"f","arguments":"1"}},{"function":{"arguments":"2"}}]}}]}"#)),
        2 => Just(("openai", LAST_TEXT)),
        2 => Just(("openai", r#"{"choices":[{"index":1,"delta":{},"finish_reason":"length"},{"delta":{},"finish_reason":"stop"}]}"#)),
        1 => Just(("openai", USAGE)),
        1 => Just(("openai", "[DONE]")),
        1 => Just(("openai", r#"{"choices":[{"delta":{"content":"z"}}],"error":{"code":1}}"#)),
        1 => Just(("openai", "torn")),
        1 => Just(("anthropic", r#"{"type":"message_start","message":{"id":"m","usage":{"i":1}}}"#)),
        2 => Just(("anthropic", r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"c","name":"f"}}"#)),
        2 => Just(("anthropic", r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"1"}}"#)),
        1 => Just(("anthropic", r#"{"type":"content_block_stop","index":0}"#)),
        1 => Just(("anthropic", r#"{"type":"message_delta","delta":{"stop_reason":"s"},"usage":{"o":1}}"#)),
        1 => Just(("anthropic", r#"{"type":"message_stop"}"#)),
        2 => Just(("anthropic", r#"{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"d","name":"g","input":{"a":1}}}"#)),
        1 => Just(("openai", r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"function_call","id":"i","call_id":"e","name":"h","arguments":"{}"}}"#)),
        1 => Just(("openai", r#"{"type":"response.output_text.delta","output_index":1,"delta":"p"}"#)),
        1 => Just(("openai", r#"{"type":"response.output_text.done","output_index":1,"text":"pqr"}"#)),
        1 => Just(("openai", r#"{"type":"response.completed","response":{"output":[{"type":"function_call","call_id":"e","name":"h","arguments":"{}"},{"type":"message","content":"pqr"}]}}"#)),
        1 => Just(("openai", r#"{"choices":[{"delta":{"content":"y","images":[1],"tool_calls":[{"index":0,"id":"j","function":{"name":"f","arguments":"3"},"extra_content":{"s":1}}]}}]}"#)),
        1 => Just(("data", HEARTBEAT)),
        2 => Just(("data", r#"{"type":"heartbeat","seq":5}"#)),
        1 => Just(("data", r#"{"type":"heartbeat","seq":3}"#)),
        1 => Just(("data", r#"{"type":"delta","text":"n"}"#)),
        1 => Just(("data", r#"{"type":"delta","text":"n","seq":3}"#)),
        1 => Just(("data", r#"{"type":"own"}"#)),
        1 => Just(("data", r#"{"type":"start","generation":"g"}"#)),
        1 => Just(("data", r#"{"type":"end"}"#)),
        1 => Just(("data", r#"{"token":"f","seq":2,"done":true}"#)),
        2 => Just(("content", "f")),
        1 => Just(("flat", "type=chunk|content=g|seq=4|finish_reason=length")),
        1 => Just(("flat", "text=h|done=1")),
        1 => Just(("flat", "status=failed|text=i|message=j|seq=9")),
        1 => Just(("flat", "type=heartbeat")),
        1 => Just(("flat", "event=own|a=b")),
        1 => Just(("flat", "x=y")),
    ];
    let pause = prop_oneof![6 => 1_u64..900, 1 => 1_999_u64..2_002, 1 => Just(5_000_u64)];
    prop::collection::vec((pause, payload), 0..30).prop_map(|steps| {
        let mut ms = 0;
        let written = steps.into_iter().map(|(pause, (field, value))| {
            ms += pause;
            entry(ms, field, value)
        });
        written.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// Ids only increase, and a resume at any of them, by its cursor or by a search, gets exactly the rest.
    #[test]
    fn resuming_anywhere_gives_the_rest(entries in any_stream(), rest_ms in 0_u64..4_000) {
        let until_ms = entries.last().map_or(0, |last| last.id.ms) + rest_ms;
        let all = frames(assembler(Position::ZERO, beginning()), &entries, until_ms);
        let output = shown(&all);
        let mut before = Position::ZERO;
        for (place, frame) in all.iter().enumerate() {
            prop_assert!(!output[place].contains("42949672"), "{}", output[place]);
            if matches!(frame.body, crate::model::FrameBody::Gap) {
                continue;
            }
            prop_assert!(frame.last > before && frame.after < frame.last && frame.after >= before, "{output:?}");
            before = frame.last;
            let later: Vec<Entry> = entries.iter().filter(|entry| Position::whole(entry.id) > frame.last).cloned().collect();
            let by_cursor = frames(assembler(frame.last, frame.state.clone()), &later, until_ms);
            prop_assert_eq!(&shown(&by_cursor), &output[place + 1..], "from the cursor at {}", frame.last);
            let mut seek = Seek::new(stream(), After::At(frame.last), beginning()).with_grace(GRACE_MS);
            entries.iter().for_each(|entry| seek.push(entry));
            if is_over(seek.state(), until_ms) {
                seek.conclude();
            }
            let sought = seek.finish(EntryId::ZERO);
            let by_search = frames(assembler(sought.from, sought.state_at_from), &later, until_ms);
            let is_over = sought.state_at_tip.phase.terminal().is_some();
            prop_assert_eq!(&shown(&by_search), &output[place + 1..], "by a search for {}", frame.last);
            if place + 1 == all.len() && frame.is_terminal() {
                prop_assert!(is_over);
                prop_assert_eq!(sought.terminal.map(|frame| frame.json().to_vec()), Some(frame.json().to_vec()));
            }
        }
    }

    /// A scan for any position finds the same if it continues from any checkpoint of another scan.
    #[test]
    fn a_scan_from_a_checkpoint_finds_what_a_whole_one_finds(
        entries in any_stream(),
        (kind, place, part) in (0..4_usize, any::<prop::sample::Index>(), 1_usize..3),
        (other, ahead) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        rest_ms in 0_u64..4_000,
    ) {
        let until_ms = entries.last().map_or(0, |last| last.id.ms) + rest_ms;
        let id = |index: &prop::sample::Index| match entries.len() {
            0 => EntryId::ZERO,
            len => entries[index.index(len)].id,
        };
        let wanted = match kind {
            0 => After::Last,
            1 => After::Tail,
            2 => After::At(Position::part(id(&place), part)),
            _ => After::At(Position::whole(id(&place))),
        };
        let begin = |after| Seek::new(stream(), after, beginning()).with_grace(GRACE_MS).with_outline(true);
        let finish = |mut seek: Seek| {
            if is_over(seek.state(), until_ms) {
                seek.conclude();
            }
            let sought = seek.finish(EntryId::ZERO);
            let terminal = sought.terminal.map(|frame| (frame.after, frame.last, frame.json().to_vec(), frame.state.clone()));
            (sought.from, sought.state_at_from, sought.tip, sought.state_at_tip, terminal, sought.newest_activity, sought.outline)
        };
        let mut whole = begin(wanted);
        entries.iter().for_each(|entry| whole.push(entry));
        let whole = finish(whole);
        // Another scan, with another target, has left a checkpoint after each entry.
        let mut leaving = begin(After::At(Position::whole(id(&other))));
        let mut points = Vec::new();
        for entry in &entries {
            leaving.push(entry);
            points.push(leaving.scan().clone());
        }
        let ahead = ahead.index(entries.len() + 1);
        let mut seek = begin(wanted);
        entries[..ahead].iter().for_each(|entry| seek.push(entry));
        // It jumps as often as it may, to the furthest checkpoint.
        let mut next = ahead;
        while next < entries.len() {
            let may = seek.target();
            let point = (next..entries.len()).rev().find(|&at| may.is_some_and(|may| Position::whole(entries[at].id) <= may));
            match point {
                Some(at) => seek.adopt(&points[at]),
                None => seek.push(&entries[next]),
            }
            next = point.unwrap_or(next) + 1;
        }
        prop_assert_eq!(finish(seek), whole);
    }

    /// However entries are batched, the text is the same.
    #[test]
    fn batches_do_not_change_the_text(entries in any_stream(), cut in 1_usize..9) {
        let text = |frames: &[std::sync::Arc<Frame>]| -> Vec<u8> {
            frames.iter().filter_map(|frame| frame.text()).collect::<Vec<_>>().concat()
        };
        let single = frames(assembler(Position::ZERO, beginning()), &entries, 0);
        let mut batched = Vec::new();
        let mut assembler = assembler(Position::ZERO, beginning());
        for batch in entries.chunks(cut) {
            for entry in batch {
                assembler.push(entry, 0);
            }
            batched.extend(assembler.take(0));
        }
        prop_assert_eq!(text(&single), text(&batched));
        // Each begins where the previous one ended, so that a viewer can switch from any of them to live.
        for pair in batched.windows(2).filter(|pair| !matches!(pair[1].body, crate::model::FrameBody::Gap)) {
            prop_assert!(pair[1].after >= pair[0].last);
        }
    }
}
