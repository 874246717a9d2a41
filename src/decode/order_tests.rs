//! Each table lists a stream's entries: what the producer wrote, and the verdict on it.

use super::*;
use crate::decode::entry::native;

const START: &str = r#"{"type":"start"}"#;
const DELTA: &str = r#"{"type":"delta","text":"x"}"#;
const TOOL: &str = r#"{"type":"tool_call","arguments":"x"}"#;
const CUSTOM: &str = r#"{"type":"x"}"#;
const END: &str = r#"{"type":"end"}"#;
const ERROR: &str = r#"{"type":"error","code":"x"}"#;
const LOST: &str = r#"{"type":"error","code":"producer_lost"}"#;
const HEARTBEAT: &str = r#"{"type":"heartbeat"}"#;

const BEGIN: Verdict = Verdict::Deliver { lost: None, begins: true };
const GO: Verdict = Verdict::Deliver { lost: None, begins: false };
const HEARD: Verdict = Verdict::Drop(DropReason::Heartbeat);
const RETRY: Verdict = Verdict::Drop(DropReason::Retry);
const FINISHED: Verdict = Verdict::Drop(DropReason::Finished);
const AGAIN: Verdict = Verdict::Drop(DropReason::BegunAgain);
const GIVEN_UP: Verdict = Verdict::Drop(DropReason::GivenUp);

const fn begin_lost(lost: u64) -> Verdict {
    Verdict::Deliver { lost: Some(lost), begins: true }
}

const fn go_lost(lost: u64) -> Verdict {
    Verdict::Deliver { lost: Some(lost), begins: false }
}

const fn expanded_lost(lost: u64) -> Verdict {
    Verdict::Gap { lost, reason: DropReason::Heartbeat }
}

/// `object` with a `seq`.
fn n(object: &str, seq: u64) -> String {
    object.replace('}', &format!(r#","seq":{seq}}}"#))
}

/// A `start` with a generation's id.
fn start(generation: &str) -> String {
    format!(r#"{{"type":"start","generation":"{generation}"}}"#)
}

fn check(story: &[(&dyn AsRef<str>, Verdict)]) -> StreamState {
    let mut state = StreamState::default();
    for (number, (entry, expected)) in (1..).zip(story) {
        let entry: &str = AsRef::<str>::as_ref(*entry);
        let decoded = native(entry.as_bytes()).unwrap().unwrap();
        let verdict = judge(&mut state, EntryId::new(number, 0), &decoded);
        assert_eq!(verdict, *expected, "entry {number}: {entry}");
    }
    state
}

fn id(ms: u64) -> EntryId {
    EntryId::new(ms, 0)
}

#[test]
fn plain_producers_lose_nothing() {
    let state = check(&[(&DELTA, BEGIN), (&DELTA, GO), (&TOOL, GO), (&CUSTOM, GO), (&END, GO)]);
    assert_eq!(state, StreamState { phase: Phase::Ended(id(5)), seq: None, ..StreamState::default() });
    for first in [TOOL, CUSTOM, START, END, ERROR] {
        check(&[(&first, BEGIN)]);
    }
    let state = check(&[(&HEARTBEAT, HEARD), (&DELTA, BEGIN), (&HEARTBEAT, HEARD), (&ERROR, GO)]);
    assert_eq!(state.phase, Phase::Failed(id(4)));
    assert_eq!(check(&[(&DELTA, BEGIN), (&LOST, GO)]).phase, Phase::Lost(id(2)));
    assert_eq!(check(&[(&HEARTBEAT, HEARD)]).phase, Phase::Idle);
}

#[test]
fn after_a_terminal_entry_four_types_begin_the_next_generation() {
    for terminal in [END, ERROR, LOST] {
        for beginning in [START, DELTA, TOOL, CUSTOM] {
            let state = check(&[
                (&DELTA, BEGIN),
                (&terminal, GO),
                (&HEARTBEAT, HEARD),
                (&END, FINISHED),
                (&ERROR, FINISHED),
                (&beginning, BEGIN),
                (&DELTA, GO),
            ]);
            assert_eq!(state, StreamState { phase: Phase::Open, ..StreamState::default() });
        }
    }
}

#[test]
fn numbers_that_do_not_rise_are_retries() {
    let state = check(&[
        (&n(DELTA, 0), BEGIN),
        (&n(DELTA, 0), RETRY),
        (&n(DELTA, 1), GO),
        (&n(END, 1), RETRY),
        (&n(TOOL, 0), RETRY),
        (&DELTA, GO),
        (&n(END, 2), GO),
        (&n(END, 2), FINISHED),
        (&n(DELTA, 2), RETRY),
        (&n(DELTA, 1), RETRY),
    ]);
    assert_eq!(state, StreamState { phase: Phase::Ended(id(7)), seq: Some(2), ..StreamState::default() });
}

#[test]
fn numbers_left_out_are_reported() {
    check(&[
        (&n(DELTA, 3), begin_lost(3)),
        (&n(DELTA, 4), GO),
        (&n(DELTA, 7), go_lost(2)),
        (&n(END, 9), go_lost(1)),
    ]);
    check(&[(&n(START, 1), begin_lost(1)), (&n(DELTA, u64::MAX), go_lost(u64::MAX - 2))]);
    check(&[(&START, BEGIN), (&n(DELTA, 1), go_lost(1)), (&DELTA, GO), (&n(DELTA, 2), GO)]);
}

#[test]
fn heartbeats_count() {
    check(&[
        (&n(HEARTBEAT, 0), HEARD),
        (&n(DELTA, 1), BEGIN),
        (&n(HEARTBEAT, 2), HEARD),
        (&n(DELTA, 2), RETRY),
        (&n(HEARTBEAT, 1), HEARD),
        (&n(DELTA, 3), GO),
        (&n(HEARTBEAT, 6), expanded_lost(2)),
        (&n(DELTA, 7), GO),
        (&HEARTBEAT, HEARD),
        (&n(DELTA, 8), GO),
    ]);
    check(&[(&n(HEARTBEAT, 2), expanded_lost(2)), (&n(START, 0), BEGIN), (&n(DELTA, 1), GO)]);
}

#[test]
fn a_start_begins_a_generation_and_its_retry_does_not() {
    let g1 = start("g1");
    let state = check(&[
        (&n(&g1, 0), BEGIN),
        (&n(DELTA, 1), GO),
        (&n(&g1, 0), RETRY),
        (&g1, RETRY),
        (&start(r"\u00671"), RETRY),
        (&n(DELTA, 2), GO),
        // A repeated start with its own number: nothing is missing after it.
        (&n(&g1, 3), RETRY),
        (&n(DELTA, 4), GO),
        (&n(&g1, 7), Verdict::Gap { lost: 2, reason: DropReason::Retry }),
        // Another start without a terminal entry before it.
        (&n(&start("g2"), 0), BEGIN),
        (&n(DELTA, 1), GO),
        (&n(END, 2), GO),
        (&start("g2"), AGAIN),
        (&n(&start("g2"), 0), AGAIN),
        (&n(&start("g3"), 5), begin_lost(5)),
        (&n(START, 0), BEGIN),
        (&n(START, 0), BEGIN),
    ]);
    assert_eq!(state, StreamState { phase: Phase::Open, seq: Some(0), ..StreamState::default() });
}

#[test]
fn without_a_start_the_number_determines_the_generation() {
    for terminal in [END, ERROR] {
        let ended = |next: String, verdict| {
            check(&[
                (&start("g"), BEGIN),
                (&n(DELTA, 0), GO),
                (&n(DELTA, 1), GO),
                (&terminal, GO),
                (&next, verdict),
            ])
        };
        assert_eq!(
            ended(n(DELTA, 0), BEGIN),
            StreamState { phase: Phase::Open, seq: Some(0), ..StreamState::default() }
        );
        assert_eq!(ended(n(DELTA, 1), RETRY).seq, Some(1));
        assert_eq!(ended(n(DELTA, 5), begin_lost(5)).seq, Some(5));
        assert_eq!(ended(DELTA.into(), BEGIN).seq, None);
    }
    check(&[(&DELTA, BEGIN), (&END, GO), (&n(DELTA, 3), begin_lost(3))]);
}

#[test]
fn entries_of_a_given_up_generation_are_dropped() {
    check(&[
        (&n(&start("g"), 0), BEGIN),
        (&n(DELTA, 1), GO),
        (&LOST, GO),
        (&n(DELTA, 1), RETRY),
        (&n(DELTA, 2), GIVEN_UP),
        (&n(HEARTBEAT, 3), HEARD),
        (&n(DELTA, 4), GIVEN_UP),
        (&n(CUSTOM, 900), GIVEN_UP),
        (&n(END, 5), FINISHED),
        (&LOST, FINISHED),
        (&start("g"), AGAIN),
        (&n(DELTA, 0), BEGIN),
        (&n(DELTA, 1), GO),
    ]);
    check(&[(&n(DELTA, 0), BEGIN), (&LOST, GO), (&DELTA, BEGIN)]);
    check(&[(&n(DELTA, 0), BEGIN), (&LOST, GO), (&n(&start("h"), 2), begin_lost(2))]);
    // A generation without numbers cannot be continued.
    check(&[(&DELTA, BEGIN), (&LOST, GO), (&n(DELTA, 2), begin_lost(2))]);
}

#[test]
fn skipped_is_shown_but_after_a_terminal_entry() {
    assert!(shows_skipped(&StreamState::default()));
    assert!(shows_skipped(&check(&[(&DELTA, BEGIN)])));
    for terminal in [END, ERROR, LOST] {
        assert!(!shows_skipped(&check(&[(&DELTA, BEGIN), (&terminal, GO)])));
    }
}

#[test]
fn a_blind_reader_takes_the_first_number_as_it_comes() {
    let judged = |state: &mut StreamState, object: &str| {
        judge(state, EntryId::new(9, 0), &native(object.as_bytes()).unwrap().unwrap())
    };
    let blind = StreamState { blind: true, ordinal: Some(5), ..StreamState::default() };
    for first in [DELTA, HEARTBEAT] {
        let mut state = blind.clone();
        judged(&mut state, DELTA);
        assert!(state.blind, "an entry without a number tells nothing");
        assert!(!matches!(judged(&mut state, &n(first, 7)), Verdict::Gap { .. }));
        assert_eq!((state.blind, state.seq), (false, Some(7)));
        assert_eq!(judged(&mut state, &n(DELTA, 9)), go_lost(1));
    }
    let mut state = blind.clone();
    assert_eq!(judged(&mut state, &n(DELTA, 7)), BEGIN);
    assert_eq!(judged(&mut state, &n(DELTA, 7)), RETRY);
    // A generation that begins with a start is read whole. The position in the stream remains.
    let mut state = blind;
    assert_eq!(judged(&mut state, &n(START, 2)), begin_lost(2));
    assert_eq!((state.blind, state.ordinal), (false, Some(5)));
}
