//! Decides whether a read of a stream has returned everything that was added since the cursor. Pure.
//!
//! The open question is whether entries after the cursor were trimmed before the read. Trimming removes the oldest
//! entries first. So if the entry at the cursor is still there, nothing after it was trimmed. Most reads begin with
//! that entry and show it ([`Count::Anchored`]): one command, without a transaction.
//!
//! All other reads are transactions that count the stream and read what follows the cursor; no other command runs in
//! between. A stream that is longer than the result of the read still has entries at or below the cursor
//! ([`Count::Length`]). If neither proves anything, because everything read earlier is trimmed, the read is discarded
//! and repeated together with Redis' description of the stream ([`Count::Info`], [`Count::Groups`]): its oldest
//! entry, and how many entries were ever removed, to be compared with how many there were up to the cursor.

use crate::model::EntryId;
use crate::redis::StreamInfo;

/// How a read of a stream proves that it is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Method {
    /// By the entry at the cursor, with which the read begins.
    Anchored,
    /// By XLEN.
    #[default]
    Length,
    /// By XINFO STREAM, whose reply contains the stream's oldest and newest entry.
    Info,
    /// By XINFO GROUPS, whose reply contains no entries: the stream is counted by how far the group lags behind at
    /// different positions. For streams whose entries may be large.
    Groups,
}

/// The proof that came with a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Count {
    /// Whether the stream still has the entry at the cursor, unchanged.
    Anchored(bool),
    /// The number of entries.
    Length(u64),
    /// The reply to XINFO STREAM.
    Info(Box<StreamInfo>),
    /// Derived from how far the group lags behind.
    Groups {
        /// The number of entries.
        length: u64,
        /// How many entries were ever added, if Redis knows.
        added: Option<u64>,
        /// Whether some entries at or below the cursor are known to be left.
        has_read_ones: bool,
    },
}

/// The size of a read's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Brought {
    /// The number of entries.
    pub(super) entries: u64,
    /// Whether there may be more.
    pub(super) is_full: bool,
}

/// Whether the read has returned everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The result is everything that was added since the cursor, up to the end of the read. With the number of
    /// entries ever added up to there, if it is known.
    Whole(Option<u64>),
    /// This method of counting cannot tell.
    Unproven,
    /// Entries after the cursor are gone, or no method can tell.
    Lost,
}

impl Count {
    /// How many entries the stream had right before the read, if they were counted.
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Self::Anchored(_) => None,
            Self::Length(length) | Self::Groups { length, .. } => Some(*length),
            Self::Info(info) => Some(info.length),
        }
    }

    /// Judges a read that began at `cursor`; `ordinal` entries had ever been added up to there.
    pub(super) fn judge(&self, (cursor, ordinal): (EntryId, Option<u64>), brought: Brought) -> Verdict {
        let length = self.length().unwrap_or(0);
        let has_read_ones = !brought.is_full && length > brought.entries;
        let passed = ordinal.or_else(|| (cursor == EntryId::ZERO).then_some(0));
        let after = |added: Option<u64>| match added {
            Some(added) if !brought.is_full => Some(added),
            _ => ordinal.map(|ordinal| ordinal + brought.entries),
        };
        match self {
            Self::Anchored(true) => Verdict::Whole(after(None)),
            Self::Anchored(false) => Verdict::Unproven,
            Self::Length(_) if has_read_ones => Verdict::Whole(after(None)),
            Self::Length(_) => Verdict::Unproven,
            Self::Info(info) => {
                let removed = info.entries_added.and_then(|added| added.checked_sub(length));
                let is_whole = match info.first {
                    Some(first) if first <= cursor => true,
                    None if info.last_generated_id <= cursor => true,
                    None => false,
                    // Everything that was read is removed. Before Redis 7 it is not known whether more entries are.
                    Some(_) if removed.is_none() => cursor == EntryId::ZERO,
                    Some(_) => removed == passed,
                };
                if is_whole { Verdict::Whole(after(info.entries_added)) } else { Verdict::Lost }
            }
            Self::Groups { added, has_read_ones: has_some, .. } => {
                let removed = added.and_then(|added| added.checked_sub(length));
                match (removed, passed) {
                    _ if has_read_ones || *has_some => Verdict::Whole(after(*added)),
                    (Some(removed), Some(passed)) if removed == passed => Verdict::Whole(after(*added)),
                    // Single entries were deleted, so Redis cannot tell whether entries that were read are left.
                    (None, _) => Verdict::Unproven,
                    _ if brought.is_full => Verdict::Unproven,
                    _ => Verdict::Lost,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(ms: u64) -> EntryId {
        EntryId::new(ms, 0)
    }

    fn brought(entries: u64) -> Brought {
        Brought { entries, is_full: false }
    }

    fn full(entries: u64) -> Brought {
        Brought { entries, is_full: true }
    }

    fn info(first: u64, last: u64, length: u64, added: Option<u64>) -> Count {
        let first = (first > 0).then(|| id(first));
        let info = StreamInfo {
            length,
            last_generated_id: id(last),
            first,
            entries_added: added,
            ..StreamInfo::default()
        };
        Count::Info(Box::new(info))
    }

    #[test]
    fn a_stream_that_is_longer_than_what_was_read_has_lost_nothing() {
        let at = (id(5), Some(3));
        assert_eq!(Count::Length(3).judge(at, brought(2)), Verdict::Whole(Some(5)));
        assert_eq!(Count::Length(2).judge(at, brought(2)), Verdict::Unproven);
        assert_eq!(Count::Length(9).judge(at, full(2)), Verdict::Unproven, "the rest may be unread");
        assert_eq!(Count::Length(0).judge(at, brought(0)), Verdict::Unproven);
    }

    #[test]
    fn a_stream_that_has_the_entry_at_the_cursor_has_lost_nothing() {
        let at = (id(5), Some(3));
        assert_eq!(Count::Anchored(true).judge(at, brought(2)), Verdict::Whole(Some(5)));
        assert_eq!(Count::Anchored(true).judge(at, full(2)), Verdict::Whole(Some(5)));
        assert_eq!(Count::Anchored(true).judge((id(5), None), brought(2)), Verdict::Whole(None));
        assert_eq!(Count::Anchored(false).judge(at, brought(0)), Verdict::Unproven);
    }

    #[test]
    fn the_oldest_entry_and_what_was_removed_tell_what_is_missing() {
        let at = (id(5), Some(3));
        assert_eq!(
            info(4, 9, 3, Some(7)).judge(at, brought(2)),
            Verdict::Whole(Some(7)),
            "one of the read is left"
        );
        assert_eq!(
            info(6, 9, 2, Some(5)).judge(at, brought(2)),
            Verdict::Whole(Some(5)),
            "just the read are gone"
        );
        assert_eq!(info(8, 9, 2, Some(6)).judge(at, brought(2)), Verdict::Lost);
        assert_eq!(info(6, 99, 90, Some(93)).judge(at, full(2)), Verdict::Whole(Some(5)));
        assert_eq!(info(7, 99, 90, Some(94)).judge(at, full(2)), Verdict::Lost);
        assert_eq!(info(6, 9, 4, Some(4)).judge(at, brought(4)), Verdict::Lost, "another stream");
        assert_eq!(info(0, 5, 0, Some(3)).judge(at, brought(0)), Verdict::Whole(Some(3)));
        assert_eq!(info(0, 6, 0, Some(4)).judge(at, brought(0)), Verdict::Lost, "emptied");
    }

    #[test]
    fn a_new_stream_begins_with_nothing_removed() {
        let at = (EntryId::ZERO, None);
        assert_eq!(info(1, 2, 2, Some(2)).judge(at, brought(2)), Verdict::Whole(Some(2)));
        assert_eq!(info(2, 3, 2, Some(3)).judge(at, brought(2)), Verdict::Lost);
        assert_eq!(info(1, 2, 2, None).judge(at, brought(2)), Verdict::Whole(None), "before Redis 7");
        assert_eq!(info(6, 9, 2, None).judge((id(5), None), brought(2)), Verdict::Lost, "before Redis 7");
    }

    fn groups(length: u64, added: Option<u64>, has_read_ones: bool) -> Count {
        Count::Groups { length, added, has_read_ones }
    }

    #[test]
    fn the_lag_of_groups_shows_it_too() {
        let at = (id(5), Some(3));
        assert_eq!(groups(2, Some(5), false).judge(at, brought(2)), Verdict::Whole(Some(5)));
        assert_eq!(groups(2, Some(6), false).judge(at, brought(2)), Verdict::Lost);
        assert_eq!(groups(3, None, false).judge(at, brought(2)), Verdict::Whole(Some(5)));
        assert_eq!(groups(2, None, false).judge(at, brought(2)), Verdict::Unproven);
        assert_eq!(groups(90, Some(93), false).judge(at, full(1)), Verdict::Whole(Some(4)));
        assert_eq!(groups(90, Some(92), true).judge(at, full(1)), Verdict::Whole(Some(4)));
        assert_eq!(
            groups(90, Some(90), false).judge(at, full(1)),
            Verdict::Unproven,
            "perhaps another stream"
        );
        assert_eq!(groups(90, Some(93), true).judge((id(5), None), full(1)), Verdict::Whole(None));
    }

    proptest::proptest! {
        /// Adds and trims entries at random between two reads. A read that misses entries is never judged whole, and
        /// XINFO STREAM never judges a read as lost that misses none.
        #[test]
        fn nothing_that_was_trimmed_unread_is_called_whole(
            passed in 0_u64..20,
            added in 0_u64..20,
            kept in 0_u64..40,
            asked in 1_u64..25,
        ) {
            // Entries have the ids 1, 2, … in the order in which they were added.
            let total = passed + added;
            let length = kept.min(total);
            let removed = total - length;
            let unread = added.min(length);
            let lost = removed > passed;
            let entries = unread.min(asked);
            let brought = Brought { entries, is_full: entries == asked };
            let at = (id(passed), Some(passed));
            let first = if length > 0 { removed + 1 } else { 0 };
            let by_info = info(first, total, length, Some(total)).judge(at, brought);
            let expected = if lost { Verdict::Lost } else { Verdict::Whole(Some(passed + entries)) };
            proptest::prop_assert_eq!(by_info, expected);
            // Redis reports that a group lags behind an empty stream by nothing.
            let by_groups = groups(length, (length > 0).then_some(total), removed < passed).judge(at, brought);
            if lost || length == 0 {
                proptest::prop_assert!(matches!(by_groups, Verdict::Lost | Verdict::Unproven), "{:?}", by_groups);
            } else {
                proptest::prop_assert_eq!(by_groups, expected);
            }
            let by_anchor = Count::Anchored(passed > removed).judge(at, brought);
            proptest::prop_assert!(!lost || by_anchor == Verdict::Unproven, "{:?}", by_anchor);
            let by_length = Count::Length(length).judge(at, brought);
            proptest::prop_assert!(!lost || by_length == Verdict::Unproven, "{:?}", by_length);
            let old = info(first, total, length, None).judge(at, brought);
            proptest::prop_assert!(!lost || passed == 0 || old == Verdict::Lost, "{:?}", old);
        }
    }
}
