use super::*;
use crate::model::{Fields, Slot};

fn name(n: usize) -> StreamName {
    StreamName::new(&format!("s{n}"), "m").unwrap()
}

fn id(ms: u64) -> EntryId {
    EntryId::new(ms, 0)
}

fn job(index: usize) -> JobRef {
    JobRef { delivery: 0, slot: Slot { index, generation: 1 } }
}

fn facts(last: u64) -> KeyFacts {
    KeyFacts {
        last_generated: id(last),
        first: Some(id(1)),
        length: last,
        added: Some(last),
        max_deleted: None,
    }
}

fn entry(ms: u64, data: &str) -> Entry {
    Entry { id: id(ms), fields: Fields::from_pairs(&[(b"data", data.as_bytes())]) }
}

fn point(ms: u64, bytes: usize) -> Checkpoint<u64> {
    Checkpoint::new(&entry(ms, "x"), facts(ms), ms, (ms, bytes))
}

/// The checkpoint from which a scan continues, if any.
fn jump(points: &Checkpoints<u64>, from: u64, target: Position, now: Instant) -> Option<u64> {
    match points.way(&name(0), job(0), (id(from), target), now) {
        Way::Jump(point) => Some(*point.scan()),
        Way::Read => None,
        Way::Wait => panic!("nobody else scans"),
    }
}

#[test]
fn a_scan_continues_from_the_last_checkpoint_before_its_target() {
    let (points, now) = (Checkpoints::<u64>::default(), Instant::now());
    assert_eq!(jump(&points, 0, Position::whole(id(9)), now), None);
    for ms in [10, 20, 30] {
        points.keep(&name(0), point(ms, 0), now);
    }
    assert_eq!(jump(&points, 0, Position::whole(id(9)), now), None);
    assert_eq!(jump(&points, 0, Position::whole(id(20)), now), Some(20));
    assert_eq!(jump(&points, 0, Position::part(id(20), 1), now), Some(10), "in the middle of its entry");
    assert_eq!(jump(&points, 0, Position::whole(EntryId::MAX), now), Some(30));
    assert_eq!(jump(&points, 30, Position::whole(EntryId::MAX), now), None, "it is there already");
}

#[test]
fn one_scan_goes_ahead_and_the_others_wait_until_it_has_passed() {
    let (points, now) = (Checkpoints::<u64>::default(), Instant::now());
    let way = |job, from, to, now| points.way(&name(0), job, (id(from), Position::whole(id(to))), now);
    points.scanning(&name(0), job(1), id(10), now);
    points.scanning(&name(0), job(2), id(5), now);
    assert!(matches!(way(job(1), 10, 99, now), Way::Read), "the first one");
    assert!(matches!(way(job(2), 5, 99, now), Way::Wait));
    assert!(matches!(way(job(2), 5, 9, now), Way::Read), "it has passed there");
    points.keep(&name(0), point(8, 0), now);
    assert!(matches!(way(job(2), 5, 9, now), Way::Jump(_)));
    assert!(matches!(way(job(2), 50, 99, now), Way::Read), "further on than the first one");
    assert!(matches!(way(job(2), 5, 99, now + SCAN_PATIENCE), Way::Jump(_)), "the first one is gone");
    points.finished(&name(0), job(2));
    assert!(matches!(way(job(2), 5, 99, now), Way::Wait), "it is not the first one");
    points.finished(&name(0), job(1));
    assert!(matches!(way(job(2), 5, 99, now), Way::Jump(_)));
}

#[test]
fn a_checkpoint_holds_for_the_stream_that_it_was_made_of() {
    let kept = Checkpoint::new(&entry(5, "a"), facts(9), (), (5, 0));
    assert!(kept.holds(&facts(9), Some(&entry(5, "a"))) && kept.holds(&facts(12), Some(&entry(5, "a"))));
    let trimmed = KeyFacts { first: Some(id(5)), length: 5, ..facts(9) };
    assert!(kept.holds(&trimmed, Some(&entry(5, "a"))), "what it stands for is known");
    assert!(!kept.holds(&facts(9), None) && !kept.holds(&facts(9), Some(&entry(6, "a"))));
    assert!(!kept.holds(&facts(9), Some(&entry(5, "b"))), "another entry has its id");
    assert!(!kept.holds(&facts(8), Some(&entry(5, "a"))), "begun anew, and shorter");
    let deleted = KeyFacts { max_deleted: Some(id(3)), ..facts(9) };
    assert!(!kept.holds(&deleted, Some(&entry(5, "a"))), "an entry was deleted");
    let filled = Checkpoint::new(&entry(5, "a"), trimmed, (), (5, 0));
    assert!(!filled.holds(&facts(9), Some(&entry(5, "a"))), "what was removed does not come back");
}

#[test]
fn invalid_checkpoints_are_dropped() {
    let (points, now) = (Checkpoints::<u64>::default(), Instant::now());
    for ms in [10, 20, 30] {
        points.keep(&name(0), point(ms, 100), now);
    }
    points.refute(&name(0), id(10), Some(id(15)));
    assert_eq!(jump(&points, 0, Position::whole(id(20)), now), Some(20), "trimmed: those behind hold");
    points.refute(&name(0), id(20), Some(id(15)));
    assert_eq!(jump(&points, 0, Position::whole(EntryId::MAX), now), None);
    assert_eq!(points.len_bytes(), 0);
}

#[test]
fn kept_checkpoints_are_bounded_in_number_bytes_and_time() {
    let (points, now) = (Checkpoints::<u64>::default(), Instant::now());
    for ms in 1..=5 * STREAM_POINTS_MAX as u64 {
        points.keep(&name(0), point(ms, 0), now);
        assert!(points.0.lock().by_stream[&name(0)].points.len() <= STREAM_POINTS_MAX);
    }
    let newest = jump(&points, 0, Position::whole(EntryId::MAX), now).unwrap();
    assert!(newest > 5 * STREAM_POINTS_MAX as u64 - 32, "{newest}: the newest stay, as dense as the others");
    for stream in 1..9 {
        for ms in 1..4 {
            points.keep(&name(stream), point(ms, 1 << 20), now + Duration::from_secs(stream as u64));
            assert!(points.len_bytes() <= CHECKPOINT_BYTES_MAX);
        }
    }
    assert_eq!(jump(&points, 0, Position::whole(EntryId::MAX), now), None, "the one that was used least");
    points.keep(&name(7), point(99, 0), now + KEPT_FOR * 2);
    let shelves = points.0.lock();
    assert_eq!(shelves.by_stream.len(), 1);
    assert_eq!(shelves.bytes, shelves.by_stream.values().map(|shelf| shelf.bytes).sum::<usize>());
}
