//! Whether a reader of history has missed something: trimmed entries, a stream that was recreated, or an older end of
//! it after a failover. Pure.
//!
//! Redis does not keep what it removed, so this is derived from the stream's counters. How many entries were ever
//! added and how many are left show how many lay before the oldest one. A reader that counts the entries it has
//! passed (`ordinal`) can tell whether it has passed all of those. Before Redis 7 there are no counters, and only the
//! ids can be compared.

use crate::message::{Cursor, HistoryGap, KeyFacts};
use crate::model::{EntryId, Position, StreamState};

/// How many entries were added before the oldest one that is left, if that is known. It is not known if single
/// entries were deleted after the oldest one, because the counters then count them as well.
#[must_use]
pub fn before_first(facts: &KeyFacts) -> Option<u64> {
    let removed = facts.added?.checked_sub(facts.length)?;
    let deleted_behind =
        facts.max_deleted.is_some_and(|deleted| facts.first.is_some_and(|first| deleted >= first));
    (!deleted_behind).then_some(removed)
}

/// The state in which a reader of the whole stream begins.
#[must_use]
pub fn beginning(facts: &KeyFacts) -> StreamState {
    let ordinal = before_first(facts);
    StreamState { blind: ordinal.is_some_and(|removed| removed > 0), ordinal, ..StreamState::default() }
}

/// The gap that a reader at `cursor` has to report, if any, and the cursor from which it continues.
#[must_use]
pub fn check(facts: &KeyFacts, cursor: Cursor) -> (Option<HistoryGap>, Cursor) {
    let after = cursor.position;
    if after.id > facts.last_generated {
        let newest = facts.last_generated;
        return (Some(HistoryGap::Failover { after, newest }), cursor);
    }
    match facts.first {
        Some(first) if after.id >= first => (None, cursor),
        Some(first) => check_before_first(facts, cursor, first),
        None => check_empty(facts, cursor),
    }
}

fn check_before_first(facts: &KeyFacts, cursor: Cursor, first: EntryId) -> (Option<HistoryGap>, Cursor) {
    let after = cursor.position;
    let removed = facts.added.and_then(|added| added.checked_sub(facts.length));
    let untouched = removed == Some(0) && facts.max_deleted.is_none();
    let fresh = Cursor { position: after, state: beginning(facts) };
    if untouched {
        // Nothing was removed before the first entry: a new viewer has everything, any other has seen another stream.
        let gap = (after != Position::ZERO).then_some(HistoryGap::Recreated { after, next: first });
        return (gap, fresh);
    }
    let trimmed = |lost| HistoryGap::Trimmed { after, next: Some(first), id: None, lost };
    let blind = Cursor { position: after, state: StreamState { blind: true, ..beginning(facts) } };
    match (before_first(facts), cursor.state.ordinal) {
        (Some(gone), _) if after == Position::ZERO => (Some(trimmed(Some(gone))), fresh),
        (Some(gone), Some(passed)) if gone == passed => (None, cursor),
        (Some(gone), Some(passed)) => (Some(trimmed(gone.checked_sub(passed))), blind),
        // A new viewer cannot miss a single entry that was deleted behind the first one.
        (None, _) if after == Position::ZERO && removed.is_none_or(|removed| removed <= 1) => (None, fresh),
        _ => (Some(trimmed(None)), blind),
    }
}

/// The check of an empty stream, of which only the newest id is left.
fn check_empty(facts: &KeyFacts, cursor: Cursor) -> (Option<HistoryGap>, Cursor) {
    let after = cursor.position;
    if after.id == facts.last_generated && after.covers_entry() {
        return (None, cursor);
    }
    let passed = if after == Position::ZERO { Some(0) } else { cursor.state.ordinal };
    let lost = facts.added.zip(passed).and_then(|(added, passed)| added.checked_sub(passed));
    let state = StreamState { blind: true, ordinal: facts.added, ..StreamState::default() };
    let id = facts.last_generated;
    let gap = HistoryGap::Trimmed { after, next: None, id: Some(id), lost };
    (Some(gap), Cursor { position: Position::whole(id), state })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(first: u64, last: u64, length: u64, added: u64) -> KeyFacts {
        KeyFacts {
            last_generated: EntryId::new(last, 0),
            first: (first > 0).then_some(EntryId::new(first, 0)),
            length,
            added: Some(added),
            max_deleted: None,
        }
    }

    fn at(ms: u64, ordinal: Option<u64>) -> Cursor {
        let state = StreamState { ordinal, seq: Some(7), ..StreamState::default() };
        Cursor { position: Position::whole(EntryId::new(ms, 0)), state }
    }

    #[test]
    fn nothing_is_missed_while_the_position_is_still_there() {
        assert_eq!(check(&facts(1, 9, 9, 9), at(4, None)), (None, at(4, None)));
        assert_eq!(check(&facts(4, 9, 6, 9), at(4, None)).0, None);
        assert_eq!(check(&facts(1, 9, 9, 9), Cursor::default()).0, None);
    }

    #[test]
    fn a_new_viewer_gets_a_gap_for_trimmed_entries() {
        let (gap, cursor) = check(&facts(4, 9, 6, 9), Cursor::default());
        let next = Some(EntryId::new(4, 0));
        assert_eq!(gap, Some(HistoryGap::Trimmed { after: Position::ZERO, next, id: None, lost: Some(3) }));
        assert!(cursor.state.blind);
        assert_eq!(cursor.state.ordinal, Some(3));
    }

    #[test]
    fn a_reader_that_counts_knows_how_many_were_lost() {
        let (gap, cursor) = check(&facts(6, 9, 4, 9), at(3, Some(3)));
        let (after, next) = (at(3, None).position, Some(EntryId::new(6, 0)));
        assert_eq!(gap, Some(HistoryGap::Trimmed { after, next, id: None, lost: Some(2) }));
        // The removed entries may include the end of a generation and the beginning of the next one.
        assert_eq!(cursor.state, StreamState { blind: true, ordinal: Some(5), ..StreamState::default() });
        // The stream was trimmed up to the reader's position: nothing is lost.
        assert_eq!(check(&facts(4, 9, 6, 9), at(3, Some(3))).0, None);
        // Without an ordinal, the number of lost entries is unknown.
        let gap = check(&facts(4, 9, 6, 9), at(3, None)).0;
        assert_eq!(
            gap,
            Some(HistoryGap::Trimmed { after, next: Some(EntryId::new(4, 0)), id: None, lost: None })
        );
    }

    #[test]
    fn a_recreated_stream_is_distinguished_from_a_trimmed_one() {
        let (gap, cursor) = check(&facts(4, 9, 6, 6), at(3, Some(3)));
        let after = at(3, None).position;
        assert_eq!(gap, Some(HistoryGap::Recreated { after, next: EntryId::new(4, 0) }));
        assert_eq!(cursor.state, StreamState { ordinal: Some(0), ..StreamState::default() });
        // Without counters the two cannot be distinguished.
        let old = KeyFacts { added: None, ..facts(4, 9, 6, 6) };
        assert!(matches!(check(&old, at(3, None)).0, Some(HistoryGap::Trimmed { lost: None, .. })));
    }

    #[test]
    fn an_older_end_is_a_failover() {
        let gap = check(&facts(1, 9, 9, 9), at(10, None)).0;
        let after = at(10, None).position;
        assert_eq!(gap, Some(HistoryGap::Failover { after, newest: EntryId::new(9, 0) }));
    }

    #[test]
    fn an_emptied_stream_moves_its_viewers_to_its_newest_id() {
        let (gap, cursor) = check(&facts(0, 9, 0, 9), at(3, Some(3)));
        let (after, id) = (at(3, None).position, Some(EntryId::new(9, 0)));
        assert_eq!(gap, Some(HistoryGap::Trimmed { after, next: None, id, lost: Some(6) }));
        assert_eq!(cursor.position, Position::whole(EntryId::new(9, 0)));
        assert_eq!(check(&facts(0, 9, 0, 9), at(9, None)).0, None);
    }

    #[test]
    fn one_deleted_in_the_middle_is_no_gap() {
        let deleted = KeyFacts { max_deleted: Some(EntryId::new(5, 0)), ..facts(1, 9, 8, 9) };
        assert_eq!(check(&deleted, Cursor::default()).0, None);
        assert_eq!(check(&deleted, at(3, None)).0, None);
    }
}
