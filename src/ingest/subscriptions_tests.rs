//! Tests of the subscriptions.

use super::*;
use crate::message::Slot;
use crate::model::Fields;

fn entry(ms: u64) -> Entry {
    Entry { id: EntryId::new(ms, 0), fields: Fields::default() }
}

fn subscription(cursor: u64, ordinal: Option<u64>, now: Instant) -> Subscription {
    named("k", (cursor, ordinal), now)
}

fn named(key: &str, (cursor, ordinal): (u64, Option<u64>), now: Instant) -> Subscription {
    let live = Slot { index: 0, generation: 1 };
    let name: StreamName = format!("s/{key}").parse().unwrap();
    let (name, at) = ((name, key.as_bytes().into()), (EntryId::new(cursor, 0), ordinal));
    Subscription::new(name, (live, 0), at, Arc::default(), now)
}

fn inserted(all: &mut Subscriptions, key: &str, now: Instant) -> Place {
    all.insert(named(key, (1, None), now));
    all.find(key.as_bytes()).unwrap()
}

fn groups(length: u64, added: Option<u64>) -> Count {
    Count::Groups { length, added, has_read_ones: false }
}

#[test]
fn a_stream_is_counted_exactly_if_its_length_proves_nothing() {
    let now = Instant::now();
    let mut known = subscription(5, Some(3), now);
    known.size.note(100);
    assert_eq!(known.method(now), Method::Length);
    let two = Brought { entries: 2, is_full: false };
    assert_eq!(known.judge(&Count::Length(2), two, now), Verdict::Unproven);
    assert_eq!((known.method(now), known.ordinal), (Method::Info, Some(3)), "it counts for nothing");
    known.size.note(1 << 20);
    known.method = Method::Length;
    assert_eq!(known.judge(&Count::Length(2), two, now), Verdict::Unproven);
    assert_eq!(known.method(now), Method::Groups);
    assert_eq!(known.judge(&groups(2, None), two, now), Verdict::Lost, "no entry is moved for it");
    assert_eq!(known.judge(&groups(2, Some(5)), two, now), Verdict::Whole(Some(5)));
    assert_eq!(
        (known.method(now), known.ordinal),
        (Method::Groups, Some(5)),
        "nothing that was read is left"
    );
    assert_eq!(known.judge(&groups(2, Some(8)), two, now), Verdict::Lost);
    assert_eq!(known.judge(&groups(4, Some(7)), two, now), Verdict::Whole(Some(7)));
    assert_eq!(known.method(now), Method::Length);
    assert_eq!(known.judge(&Count::Length(0), two, now), Verdict::Unproven);
    assert_eq!(known.method(now), Method::Info, "an empty stream has no large entries");
    let mut unknown = subscription(5, None, now);
    assert_eq!(unknown.method(now), Method::Groups, "its count is to be found out");
    assert_eq!(unknown.judge(&groups(2, None), two, now), Verdict::Unproven);
    assert_eq!(unknown.method(now), Method::Info);
}

#[test]
fn a_stream_from_which_entries_were_removed_is_counted_now_and_then() {
    let now = Instant::now();
    let mut known = subscription(5, Some(3), now);
    known.size.note(100);
    let one = Brought { entries: 1, is_full: false };
    known.judge(&Count::Length(4), one, now);
    known.judge(&Count::Length(5), one, now);
    assert_eq!(known.method(now), Method::Length);
    known.judge(&Count::Length(5), one, now);
    assert_eq!(known.method(now), Method::Info);
    known.judge(&groups(5, Some(9)), one, now);
    assert_eq!((known.method(now), known.ordinal), (Method::Length, Some(9)));
    known.judge(&Count::Length(5), one, now);
    assert_eq!(known.method(now), Method::Length, "not so soon");
    known.judge(&Count::Length(5), one, now + RECOUNTED);
    assert_eq!(known.method(now), Method::Info);
}

#[test]
fn reads_begin_with_the_entry_at_the_cursor_between_two_counts() {
    let now = Instant::now();
    let mut known = subscription(5, Some(3), now);
    let one = Brought { entries: 1, is_full: false };
    assert_eq!(known.judge(&Count::Length(4), one, now), Verdict::Whole(Some(4)));
    assert_eq!(known.method(now), Method::Length, "the entry at the cursor is not known");
    known.advance(&mut vec![entry(6)], now);
    assert_eq!(known.method(now), Method::Anchored);
    assert!(known.is_anchor(&entry(6)) && !known.is_anchor(&entry(7)));
    let changed = Entry { fields: Fields::from_pairs(&[(b"data", b"other")]), ..entry(6) };
    assert!(!known.is_anchor(&changed), "a stream begun anew may use an id again");
    assert_eq!(known.judge(&Count::Anchored(true), one, now), Verdict::Whole(Some(5)));
    assert_eq!(known.method(now + RECOUNTED), Method::Length, "it is counted now and then");
    known.live.index = 8;
    assert_eq!(known.method(now + RECOUNTED), Method::Anchored, "not all at once");
    assert_eq!(known.method(now + 2 * RECOUNTED), Method::Length);
    known.live.index = 0;
    assert_eq!(known.judge(&Count::Anchored(false), one, now), Verdict::Unproven);
    assert_eq!(
        (known.method(now), known.ordinal),
        (Method::Info, Some(5)),
        "then exactly, and it counts for nothing"
    );
    let value = vec![b'x'; ANCHOR_BYTES_MAX];
    let large = Entry { fields: Fields::from_pairs(&[(b"data", &value)]), ..entry(8) };
    known.advance(&mut vec![large], now);
    assert_eq!(known.anchor, None, "a large entry is not transferred again and again");
}

#[test]
fn news_are_taken_once_and_in_turn() {
    let now = Instant::now();
    let mut all = Subscriptions::default();
    let places = ["a", "b", "c"].map(|key| inserted(&mut all, key, now));
    assert!(all.has_news(), "no push reports entries from before the start");
    assert_eq!(all.take_news(9), places);
    assert!(all.note_news(b"b") && all.note_news(b"a") && all.note_news(b"b") && !all.note_news(b"x"));
    assert_eq!(all.take_news(1), [places[1]]);
    all.note_all_news();
    assert_eq!(all.take_news(9).len(), 3);
    assert!(!all.has_news());
    all.note_news(b"a");
    all.remove(b"a", Slot { index: 0, generation: 1 }, now);
    assert!(all.take_news(9).is_empty(), "a stream that was taken out has none");
    all.note_news(b"b");
    all.remove(b"b", Slot { index: 0, generation: 1 }, now);
    let again = inserted(&mut all, "d", now);
    assert_eq!((again, all.take_news(9)), (places[1], vec![again]), "its place was given anew");
}

#[test]
fn a_stream_that_is_started_again_takes_the_place_of_its_former_self() {
    let now = Instant::now();
    let mut all = Subscriptions::default();
    inserted(&mut all, "a", now);
    inserted(&mut all, "a", now);
    assert_eq!((all.len(), all.take_news(9).len()), (1, 1));
}

#[test]
fn sweeps_reach_every_silent_stream() {
    let now = Instant::now();
    let mut all = Subscriptions::default();
    let places: Vec<_> = (0..7).map(|key| inserted(&mut all, &key.to_string(), now)).collect();
    all.take_news(9);
    let later = now + Duration::from_secs(1);
    all.advance(places[3], &mut vec![entry(5)], later);
    (0..3).for_each(|_| all.sweep(3, now));
    let mut swept = all.take_news(9);
    swept.sort_unstable();
    assert_eq!(swept, [0, 1, 2, 4, 5, 6].map(|silent| places[silent]));
    (0..6).for_each(|_| all.sweep(3, later));
    assert_eq!(all.take_news(9).len(), 7, "the silence of each has been long enough");
}

#[test]
fn the_cursor_never_goes_back() {
    let now = Instant::now();
    let mut reading = subscription(5, Some(1), now);
    let mut entries = vec![entry(4), entry(5), entry(6)];
    reading.advance(&mut entries, now);
    assert_eq!(entries, [entry(6)]);
    assert_eq!(reading.cursor, EntryId::new(6, 0));
    assert_eq!(reading.position(Ack::Written), EntryId::new(6, 0), "nobody is attached");
}

#[test]
fn every_stream_is_acknowledged_in_turn() {
    let now = Instant::now();
    let mut all = Subscriptions::default();
    let [a, b] = ["a", "b"].map(|key| inserted(&mut all, key, now));
    all.advance(a, &mut (2..9).map(entry).collect(), now);
    all.advance(b, &mut vec![entry(2)], now);
    assert!(all.has_unacked() && !all.is_acknowledging() && all.next_acknowledgement(Ack::Written).is_none());
    all.begin_acknowledging();
    let mut acknowledged = Vec::new();
    while let Some(found) = all.next_acknowledgement(Ack::Written) {
        acknowledged.push(found);
    }
    assert_eq!(acknowledged, [(a, EntryId::new(8, 0)), (b, EntryId::new(2, 0))]);
    assert!(all.has_unacked() && !all.is_acknowledging());
    // Redis has refused one of them.
    all.acknowledged(a, EntryId::new(8, 0));
    all.begin_acknowledging();
    assert_eq!(all.next_acknowledgement(Ack::Written), Some((b, EntryId::new(2, 0))));
    all.acknowledged(b, EntryId::new(2, 0));
    all.begin_acknowledging();
    assert!(all.next_acknowledgement(Ack::Written).is_none() && !all.has_unacked());
}

#[test]
fn unwritten_entries_are_not_acknowledged() {
    let now = Instant::now();
    let mut all = Subscriptions::default();
    let a = inserted(&mut all, "a", now);
    all.all[a].watermark.attach(0, EntryId::new(2, 0));
    all.advance(a, &mut vec![entry(2), entry(3)], now);
    for expected in [Some(EntryId::new(2, 0)), None] {
        all.begin_acknowledging();
        let found = all.next_acknowledgement(Ack::Written).map(|(_, position)| position);
        assert_eq!(found, expected);
        found.map(|position| all.acknowledged(a, position));
        assert!(all.has_unacked() && !all.is_acknowledging());
    }
    // A delivery thread that attaches further back does not move the position back.
    all.all[a].watermark.attach(1, EntryId::new(1, 0));
    assert_eq!(all.all[a].position(Ack::Written), EntryId::new(2, 0));
    assert_eq!(all.all[a].position(Ack::None), EntryId::new(3, 0), "as far as was read");
    all.remove(b"a", Slot { index: 0, generation: 1 }, now);
    all.begin_acknowledging();
    assert!(all.next_acknowledgement(Ack::Written).is_none() && !all.has_unacked());
}

#[test]
fn acknowledgements_sent_with_a_read_are_not_repeated() {
    let now = Instant::now();
    let mut all = Subscriptions::default();
    let a = inserted(&mut all, "a", now);
    all.advance(a, &mut vec![entry(2), entry(3)], now);
    assert!(all.acknowledged(a, EntryId::new(3, 0)), "it stood elsewhere");
    assert!(!all.acknowledged(a, EntryId::new(3, 0)));
    all.begin_acknowledging();
    assert!(all.next_acknowledgement(Ack::Written).is_none() && !all.has_unacked());
}

#[test]
fn the_same_place_of_two_transform_threads_is_distinguished_by_its_stream() {
    let one = subscription(1, None, Instant::now());
    let other: StreamName = "other/m".parse().unwrap();
    assert!(one.is(&one.stream.clone(), one.live) && !one.is(&other, one.live));
}

#[test]
fn a_group_lingers_until_it_is_read_again() {
    let now = Instant::now();
    let mut all = Subscriptions::default();
    let live = Slot { index: 0, generation: 1 };
    all.insert(subscription(1, None, now));
    assert!(all.remove(b"k", Slot { index: 0, generation: 2 }, now).is_none(), "another start's");
    assert!(all.remove(b"k", live, now + Duration::from_secs(1)).is_some());
    assert!(all.expired(now).is_empty());
    all.insert(subscription(1, None, now));
    assert!(all.expired(now + Duration::from_secs(2)).is_empty());
    all.remove_all(now);
    assert_eq!(all.expired(now).len(), 1);
    assert!(all.expired(now).is_empty());
}
