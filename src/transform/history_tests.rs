use super::*;
use crate::decode::test_streams::{entries, stream};
use crate::message::{JobRef, ReplayRequest, Slot};

struct Nobody;

impl ReplayObserver for Nobody {
    fn dropped(&mut self, _: &StreamName, _: DropReason) {}
    fn undecodable(&mut self, _: &StreamName, _: &Entry, _: Flaw) {}
    fn unfinished(&mut self, _: &StreamName, _: EntryId) {}
    fn over(&mut self, _: &StreamName, _: EntryId, _: &StreamState) {}
}

fn quiet_moment() -> ReplayClock {
    let context = DecodeContext::default();
    ReplayClock {
        now_us: 0,
        redis_us: 0,
        stall_after_us: 0,
        grace_ms: 0,
        context,
        appeared_us: None,
        known: None,
    }
}

fn id(ms: u64) -> EntryId {
    EntryId::new(ms, 0)
}

/// A stream 1-0, 2-0, … of deltas and an `end`, of which the first `trimmed` entries are gone.
fn world(length: usize, trimmed: usize) -> (KeyFacts, Vec<Entry>) {
    let mut objects = vec![r#"{"type":"delta","text":"x"}"#; length - 1];
    objects.push(r#"{"type":"end"}"#);
    let left = entries(&objects).split_off(trimmed);
    let facts = KeyFacts {
        last_generated: id(length as u64),
        first: left.first().map(|entry| entry.id),
        length: left.len() as u64,
        added: Some(length as u64),
        max_deleted: None,
    };
    (facts, left)
}

fn read(step: ReplayStep, (facts, entries): (KeyFacts, Vec<Entry>)) -> ReplayOutcome {
    let job = JobRef { delivery: 0, slot: Slot { index: 0, generation: 0 } };
    let request = ReplayRequest {
        stream: stream(),
        job,
        step,
        count: 1000,
        budget_bytes: 1 << 20,
        asked_us: 0,
        appeared_us: None,
        jump: None,
    };
    let read = ReplayRead::Found { facts, entries, exhausted: true };
    let clock = quiet_moment();
    conclude(ReplayBatch { request, read, read_us: 0, held: None }, clock, &mut Nobody)
}

fn open(after: u64, world: (KeyFacts, Vec<Entry>)) -> Opened {
    let after = After::At(Position::whole(id(after)));
    match read(ReplayStep::Open { after, early: false, outlined: false }, world) {
        ReplayOutcome::Opened(opened) => *opened,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_resume_before_trimmed_entries_gets_a_gap() {
    for after in [1, 3] {
        let opened = open(after, world(9, 5));
        let gap = HistoryGap::Trimmed {
            after: Position::whole(id(after)),
            next: Some(id(6)),
            id: None,
            lost: None,
        };
        assert_eq!(opened.shown.gap, Some(gap));
    }
    assert_eq!(open(6, world(9, 5)).shown.gap, None, "its entry is still there");
    let emptied = open(3, world(9, 9)).shown.gap;
    assert!(matches!(emptied, Some(HistoryGap::Trimmed { lost: None, .. })), "{emptied:?}");
}

#[test]
fn a_new_viewer_gets_a_gap_with_the_number_trimmed() {
    let opened = open(0, world(9, 5));
    assert!(matches!(opened.shown.gap, Some(HistoryGap::Trimmed { lost: Some(5), .. })));
    assert_eq!(open(0, world(9, 0)).shown.gap, None);
}

#[test]
fn an_older_end_is_reported_even_if_nothing_else_is_left() {
    let state = StreamState::default();
    let from = Cursor { position: Position::whole(id(12)), state };
    let ReplayOutcome::Searching(search) =
        read(ReplayStep::Continue { from: from.clone(), until: None }, world(9, 0))
    else {
        panic!("the older end has to be looked for");
    };
    let ReplayOutcome::Opened(opened) = read(ReplayStep::Search(search), world(9, 0)) else {
        panic!("it is found in one read");
    };
    assert_eq!(opened.shown.gap, Some(HistoryGap::Failover { after: from.position, newest: id(9) }));
    assert!(opened.shown.frames.is_empty(), "what viewers have is not sent again");
}

#[test]
fn behind_an_older_end_that_is_finished_nothing_is_left_but_the_end() {
    let (opened, after) = (open(12, world(9, 0)), Position::whole(id(12)));
    assert_eq!(opened.shown.gap, Some(HistoryGap::Failover { after, newest: id(9) }));
    assert!(opened.nothing_left && opened.terminal.is_some_and(|end| end.last == Position::whole(id(9))));
    assert_eq!(opened.from, Position::whole(id(9)), "it is read on after the newest id");
    let (facts, mut unfinished) = world(9, 0);
    unfinished.pop();
    let facts = KeyFacts { last_generated: id(8), length: 8, added: Some(8), ..facts };
    let opened = open(12, (facts, unfinished));
    assert!(!opened.nothing_left && opened.shown.gap.is_some() && opened.terminal.is_none());
}

#[test]
fn entries_trimmed_between_two_reads_of_a_search_are_reported_by_the_next_read() {
    // The first read sees 1-0 to 4-0 of nine entries; before the second one 1-0 to 6-0 were trimmed.
    let after = After::At(Position::whole(id(2)));
    let (facts, mut entries) = world(9, 0);
    entries.truncate(4);
    let request = ReplayRequest {
        stream: stream(),
        job: JobRef { delivery: 0, slot: Slot { index: 0, generation: 0 } },
        step: ReplayStep::Open { after, early: false, outlined: false },
        count: 4,
        budget_bytes: 1 << 20,
        asked_us: 0,
        appeared_us: None,
        jump: None,
    };
    let clock = quiet_moment();
    let found = ReplayRead::Found { facts, entries, exhausted: false };
    let batch = ReplayBatch { request, read: found, read_us: 0, held: None };
    let ReplayOutcome::Searching(search) = conclude(batch, clock, &mut Nobody) else {
        panic!("the search goes on");
    };
    let ReplayOutcome::Opened(opened) = read(ReplayStep::Search(search), world(9, 6)) else {
        panic!("the second read finds the end");
    };
    assert_eq!((opened.shown.gap, opened.nothing_left), (None, false), "nothing is shown by this read");
    let from = opened.shown.cursor;
    assert_eq!(from.position, Position::whole(id(2)));
    let ReplayOutcome::Shown(shown) = read(ReplayStep::Continue { from, until: None }, world(9, 6)) else {
        panic!("the rest is shown");
    };
    let gap =
        HistoryGap::Trimmed { after: Position::whole(id(2)), next: Some(id(7)), id: None, lost: Some(4) };
    assert_eq!(shown.gap, Some(gap));
}

/// The state of a stream of which the first read found four entries of nine, and the second one `left`.
fn gather_in_two(left: (KeyFacts, Vec<Entry>)) -> ReplayOutcome {
    let (facts, mut entries) = world(9, 0);
    entries.truncate(4);
    let search = StateSearch { max_bytes: 1 << 20, ..StateSearch::default() };
    let request = ReplayRequest {
        stream: stream(),
        job: JobRef { delivery: 0, slot: Slot { index: 0, generation: 0 } },
        step: ReplayStep::State(Box::new(search)),
        count: 4,
        budget_bytes: 1 << 20,
        asked_us: 0,
        appeared_us: None,
        jump: None,
    };
    let clock = quiet_moment();
    let found = ReplayRead::Found { facts, entries, exhausted: false };
    let ReplayOutcome::Gathering(search) =
        conclude(ReplayBatch { request, read: found, read_us: 0, held: None }, clock, &mut Nobody)
    else {
        panic!("the gathering goes on");
    };
    read(ReplayStep::State(search), left)
}

fn content(outcome: ReplayOutcome) -> String {
    let ReplayOutcome::State(document) = outcome else { panic!("{outcome:?}") };
    let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
    document["content"].as_str().unwrap().to_owned()
}

#[test]
fn a_state_is_never_put_together_around_a_hole() {
    let (facts, entries) = world(9, 0);
    assert_eq!(content(gather_in_two((facts, entries[4..].to_vec()))), "x".repeat(8));
    // 5-0 and 6-0 were trimmed before they were read: the result is what a new reader finds.
    assert_eq!(content(gather_in_two(world(9, 6))), "xx");
    let older = KeyFacts { last_generated: id(2), length: 2, added: Some(2), ..facts };
    let ReplayOutcome::Gathering(anew) = gather_in_two((older, Vec::new())) else {
        panic!("an older end is gathered from its beginning");
    };
    assert!(anew.from == EntryId::ZERO && anew.gathered.is_none());
}

/// A stream, and the ids of the entries that one read returns.
type Part = ((KeyFacts, Vec<Entry>), std::ops::Range<u64>);

/// A search for `after` that reads `parts` one after the other.
fn search_in_parts(after: After, parts: &[Part]) -> Opened {
    let mut step = ReplayStep::Open { after, early: false, outlined: false };
    for (place, ((facts, entries), range)) in parts.iter().enumerate() {
        let entries = entries.iter().filter(|entry| range.contains(&entry.id.ms)).cloned().collect();
        let job = JobRef { delivery: 0, slot: Slot { index: 0, generation: 0 } };
        let request = ReplayRequest {
            stream: stream(),
            job,
            step,
            count: 1000,
            budget_bytes: 1 << 20,
            asked_us: 0,
            appeared_us: None,
            jump: None,
        };
        let read = ReplayRead::Found { facts: *facts, entries, exhausted: place + 1 == parts.len() };
        step = match conclude(
            ReplayBatch { request, read, read_us: 0, held: None },
            quiet_moment(),
            &mut Nobody,
        ) {
            ReplayOutcome::Searching(search) => ReplayStep::Search(search),
            ReplayOutcome::Opened(opened) => return *opened,
            other => panic!("{other:?}"),
        };
    }
    panic!("the last part ends the search")
}

#[test]
fn a_search_shows_what_it_has_met_each_entry_once() {
    for after in 0..9 {
        let whole = open(after, world(9, 0));
        for size in 1..9 {
            let starts = (1..=9).step_by(size);
            let parts: Vec<_> = starts.map(|start| (world(9, 0), start..start + size as u64)).collect();
            let opened = search_in_parts(After::At(Position::whole(id(after))), &parts);
            let covered = |opened: &Opened| opened.shown.frames.iter().map(|frame| frame.count).sum::<u32>();
            assert_eq!(covered(&opened), covered(&whole), "after {after}, {size} at a time");
            assert_eq!((opened.shown.exhausted, &opened.shown.cursor), (true, &whole.shown.cursor));
            let ends = opened.shown.frames.windows(2).all(|pair| pair[0].last == pair[1].after);
            assert!(ends, "one begins where the other ends");
        }
    }
}

#[test]
fn a_search_shows_nothing_from_where_it_did_not_see_the_beginning() {
    // The entries from which the search would continue were trimmed before the second read, which passes the wanted
    // entry.
    let parts = [(world(12, 0), 1..4), (world(12, 6), 7..10), (world(12, 6), 10..13)];
    let opened = search_in_parts(After::At(Position::whole(id(8))), &parts);
    let left = (opened.shown.frames.len(), opened.shown.exhausted, opened.shown.cursor.position);
    assert_eq!(left, (0, false, Position::whole(id(8))), "the next read shows all of it");
}

#[test]
fn a_search_for_the_newest_generation_reports_entries_trimmed_between_its_reads() {
    let opened = search_in_parts(After::Last, &[(world(12, 0), 1..4), (world(12, 6), 7..13)]);
    let from = opened.shown.cursor;
    assert_eq!((opened.after, from.position), (Position::whole(id(3)), opened.after));
    assert!(opened.shown.frames.is_empty(), "the next read shows it");
    let ReplayOutcome::Shown(shown) = read(ReplayStep::Continue { from, until: None }, world(12, 6)) else {
        panic!("the rest is shown");
    };
    let gap =
        HistoryGap::Trimmed { after: Position::whole(id(3)), next: Some(id(7)), id: None, lost: Some(3) };
    assert_eq!(shown.gap, Some(gap));
}
