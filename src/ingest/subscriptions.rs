//! The streams of one reader: which it reads, from which position, which have news, and what it still has to
//! acknowledge. No I/O.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::budget::Size;
use super::proof::{Brought, Count, Method, Verdict};
use crate::config::Ack;
use crate::message::LiveRef;
use crate::model::{AckWatermark, Entry, EntryId, StreamName};

/// How soon a stream from which entries were removed is counted exactly again: single entries that were deleted
/// unread would make its count of passed entries too low.
const RECOUNTED: Duration = Duration::from_secs(1);

/// Streams are counted at this many different intervals, from [`RECOUNTED`] to twice that.
const COUNT_SLOTS: u32 = 16;
/// The largest entry with which a read begins to prove that it is whole, in bytes: it is transferred with every read.
const ANCHOR_BYTES_MAX: usize = 1024;

/// A stream's key in Redis.
pub(super) type Key = Arc<[u8]>;

/// One stream that the reader reads.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) stream: StreamName,
    pub(super) key: Key,
    pub(super) live: LiveRef,
    pub(super) transform: usize,
    /// The newest entry that was passed on.
    pub(super) cursor: EntryId,
    /// How many entries were ever added up to the cursor, if that is known.
    pub(super) ordinal: Option<u64>,
    pub(super) watermark: Arc<AckWatermark>,
    /// The position of the group in Redis, provided that nobody else moves it.
    acknowledged: EntryId,
    /// The size of its entries, if it is known.
    pub(super) size: Size,
    /// The hash of the entry at the cursor, if that was read and is small.
    anchor: Option<u64>,
    /// How the next read counts the stream, if it is counted.
    method: Method,
    /// How many entries the stream had when everything was read.
    length: Option<u64>,
    /// When the stream was last counted, in any way.
    counted_at: Option<Instant>,
    /// When it was last counted exactly.
    counted_exactly_at: Option<Instant>,
    /// Whether the stream is in the list of those with news.
    has_news: bool,
    /// Whether the stream is in the list of those with pending acknowledgements.
    is_pending: bool,
    read_at: Instant,
}

impl Subscription {
    pub(super) fn new(
        (stream, key): (StreamName, Key),
        (live, transform): (LiveRef, usize),
        (cursor, ordinal): (EntryId, Option<u64>),
        watermark: Arc<AckWatermark>,
        now: Instant,
    ) -> Self {
        Self {
            stream,
            key,
            live,
            transform,
            cursor,
            ordinal,
            watermark,
            acknowledged: cursor,
            size: Size::default(),
            anchor: None,
            method: if ordinal.is_some() { Method::Length } else { Method::Groups },
            length: None,
            counted_at: None,
            counted_exactly_at: None,
            has_news: false,
            is_pending: false,
            read_at: now,
        }
    }

    /// Whether this is the subscription that was started as `live` of `stream`. Each transform thread numbers its own
    /// streams, so only both together identify one.
    pub(super) fn is(&self, stream: &StreamName, live: LiveRef) -> bool {
        self.live == live && self.stream == *stream
    }

    /// How the next read proves that it is whole. Now and then the stream is counted, which also sets the position of
    /// its group.
    pub(super) fn method(&self, now: Instant) -> Method {
        // Streams that were counted together are not all counted again together.
        let slot = u32::try_from(self.live.index).unwrap_or(0) % COUNT_SLOTS;
        let interval = RECOUNTED + RECOUNTED * slot / COUNT_SLOTS;
        let is_counted = self.counted_at.is_some_and(|at| now.duration_since(at) < interval);
        match self.method {
            Method::Length if self.anchor.is_some() && is_counted => Method::Anchored,
            method => method,
        }
    }

    /// Whether this is the entry at the cursor, unchanged.
    pub(super) fn is_anchor(&self, entry: &Entry) -> bool {
        entry.id == self.cursor && self.anchor == Some(entry.fields.fingerprint())
    }

    /// Makes the next read count the stream.
    fn count_next(&mut self) {
        self.counted_at = None;
    }

    /// Judges the result of a read, and decides how the next read counts the stream.
    pub(super) fn judge(&mut self, count: &Count, brought: Brought, now: Instant) -> Verdict {
        match count.judge((self.cursor, self.ordinal), brought) {
            Verdict::Whole(ordinal) => {
                self.note_whole(ordinal, (count, brought), now);
                Verdict::Whole(ordinal)
            }
            Verdict::Unproven => match self.method {
                // XINFO STREAM of an empty stream transfers no entries.
                _ if self.size.is_small() || count.length() == Some(0) => self.count_again(Method::Info),
                Method::Anchored | Method::Length => self.count_again(Method::Groups),
                Method::Groups if !self.size.is_large() => self.count_again(Method::Info),
                Method::Groups | Method::Info => Verdict::Lost,
            },
            Verdict::Lost => Verdict::Lost,
        }
    }

    fn count_again(&mut self, method: Method) -> Verdict {
        self.method = method;
        Verdict::Unproven
    }

    fn note_whole(&mut self, ordinal: Option<u64>, (count, brought): (&Count, Brought), now: Instant) {
        self.ordinal = ordinal;
        let Some(length) = count.length() else {
            self.length = self.length.filter(|_| !brought.is_full).map(|before| before + brought.entries);
            return;
        };
        self.counted_at = Some(now);
        if !matches!(count, Count::Length(_)) {
            self.counted_exactly_at = Some(now);
        }
        let was_removed = self.length.is_some_and(|before| before + brought.entries != length);
        self.length = (!brought.is_full).then_some(length);
        let is_recounted =
            was_removed && self.counted_exactly_at.is_none_or(|at| now.duration_since(at) >= RECOUNTED);
        let length_will_do = !brought.is_full && length > brought.entries;
        self.method = match self.method {
            _ if length_will_do && !is_recounted => Method::Length,
            Method::Length if self.size.is_small() => Method::Info,
            Method::Length => Method::Groups,
            exact => exact,
        };
    }

    /// Takes a batch in: the cursor moves to its end. Entries at or below the cursor are dropped.
    fn advance(&mut self, entries: &mut Vec<Entry>, now: Instant) {
        let cursor = self.cursor;
        entries.retain(|entry| entry.id > cursor);
        if let Some(last) = entries.last() {
            self.cursor = last.id;
            let is_small = last.fields.len_bytes() <= ANCHOR_BYTES_MAX;
            self.anchor = is_small.then(|| last.fields.fingerprint());
        }
        if let Some(largest) = entries.iter().map(|entry| entry.fields.len_bytes()).max() {
            self.size.note(largest);
            self.read_at = now;
        }
    }

    /// The position to which its group should be set now.
    pub(super) fn position(&self, ack: Ack) -> EntryId {
        match ack {
            Ack::None => self.cursor,
            Ack::Written => {
                // If no delivery thread is attached, everything was handed over to history.
                let written = self.watermark.everybody().unwrap_or(self.cursor);
                written.min(self.cursor).max(self.acknowledged)
            }
        }
    }

    /// Whether its group has reached the cursor.
    pub(super) fn is_acknowledged(&self) -> bool {
        self.acknowledged >= self.cursor
    }
}

/// The index of a stream among a reader's streams, until the stream is removed.
pub(super) type Place = usize;

/// All streams of a reader.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    all: Slab<Subscription>,
    by_key: HashMap<Key, Place>,
    /// Streams with news, oldest news first; some of them may have been removed since.
    news: VecDeque<Place>,
    /// Streams with pending acknowledgements, in the order in which they are checked; some may have been removed
    /// since.
    pending: VecDeque<(Place, LiveRef)>,
    /// How many of them are still to be checked.
    to_acknowledge: usize,
    /// The place at which the next sweep begins.
    sweep_at: Place,
    /// Groups that stay for a while after their stream's last viewer left.
    lingering: HashMap<StreamName, Instant>,
}

impl Subscriptions {
    pub(super) fn insert(&mut self, subscription: Subscription) {
        self.lingering.remove(&subscription.stream);
        let key = Arc::clone(&subscription.key);
        let place = self.all.insert(subscription);
        if let Some(former) = self.by_key.insert(key, place) {
            self.all.remove(former);
        }
        // No push reports entries that arrived after its seam and before now.
        self.note(place);
    }

    /// Records that a stream has news. Returns whether it is one of the reader's streams.
    pub(super) fn note_news(&mut self, key: &[u8]) -> bool {
        let Some(&place) = self.by_key.get(key) else { return false };
        self.note(place);
        true
    }

    /// Records that the stream at a place has news.
    pub(super) fn note(&mut self, place: Place) {
        if let Some(found) = self.all.get_mut(place)
            && !std::mem::replace(&mut found.has_news, true)
        {
            self.news.push_back(place);
        }
    }

    /// Records that every stream may have news.
    pub(super) fn note_all_news(&mut self) {
        for (place, found) in &mut self.all {
            if !std::mem::replace(&mut found.has_news, true) {
                self.news.push_back(place);
            }
        }
    }

    /// Marks the next share of the streams, one in `shares`, as possibly having news, except those read since
    /// `since`.
    pub(super) fn sweep(&mut self, shares: usize, since: Instant) {
        let places = self.all.capacity();
        let from = if self.sweep_at < places { self.sweep_at } else { 0 };
        self.sweep_at = from + places.div_ceil(shares);
        for place in from..self.sweep_at.min(places) {
            if self.all.get(place).is_some_and(|found| found.read_at <= since) {
                self.note(place);
            }
        }
    }

    /// Puts back streams that could not be read yet: they come before all others with news.
    pub(super) fn put_back(&mut self, places: impl DoubleEndedIterator<Item = Place>) {
        for place in places.rev() {
            if let Some(found) = self.all.get_mut(place)
                && !std::mem::replace(&mut found.has_news, true)
            {
                self.news.push_front(place);
            }
        }
    }

    pub(super) fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// Removes and returns at most `max` streams from the list of those with news, oldest news first.
    pub(super) fn take_news(&mut self, max: usize) -> Vec<Place> {
        let mut places = Vec::with_capacity(max.min(self.news.len()));
        while places.len() < max
            && let Some(place) = self.news.pop_front()
        {
            // A place that was freed and reused is in the list of news twice.
            if self.all.get_mut(place).is_some_and(|found| std::mem::take(&mut found.has_news)) {
                places.push(place);
            }
        }
        places
    }

    /// Removes a stream if it is still the one that was started as `live`; its group is kept for a while.
    pub(super) fn remove(
        &mut self,
        key: &[u8],
        live: LiveRef,
        linger_until: Instant,
    ) -> Option<Subscription> {
        let place = self.find(key)?;
        (self.all.get(place)?.live == live).then(|| self.take(place, linger_until))?
    }

    /// Removes the stream at a place; its group is kept for a while.
    pub(super) fn take(&mut self, place: Place, linger_until: Instant) -> Option<Subscription> {
        let subscription = self.all.try_remove(place)?;
        self.by_key.remove(&subscription.key);
        self.lingering.insert(subscription.stream.clone(), linger_until);
        Some(subscription)
    }

    /// Removes all streams; their groups are kept for a while.
    pub(super) fn remove_all(&mut self, linger_until: Instant) -> Vec<Subscription> {
        self.news.clear();
        self.by_key.clear();
        (self.to_acknowledge, self.pending) = (0, VecDeque::new());
        let all: Vec<_> = self.all.drain().collect();
        for subscription in &all {
            self.lingering.insert(subscription.stream.clone(), linger_until);
        }
        all
    }

    /// The streams whose group is due for removal.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<StreamName> {
        let due: Vec<_> =
            self.lingering.iter().filter(|&(_, &at)| at <= now).map(|(stream, _)| stream.clone()).collect();
        for stream in &due {
            self.lingering.remove(stream);
        }
        due
    }

    /// Schedules a group that could not be removed for another attempt at `at`, unless its stream is read again.
    pub(super) fn linger(&mut self, stream: StreamName, key: &[u8], at: Instant) {
        if !self.by_key.contains_key(key) {
            self.lingering.insert(stream, at);
        }
    }

    /// Takes a batch of a stream in and returns the transform thread it goes to, if there is anything to pass on.
    /// Entries at or below the cursor are dropped.
    pub(super) fn advance(
        &mut self,
        place: Place,
        entries: &mut Vec<Entry>,
        now: Instant,
    ) -> Option<(usize, LiveRef)> {
        let found = self.all.get_mut(place)?;
        found.advance(entries, now);
        if !found.is_acknowledged() && !std::mem::replace(&mut found.is_pending, true) {
            self.pending.push_back((place, found.live));
        }
        Some((found.transform, found.live))
    }

    /// Records that the group of the stream at a place is at `position` now. Returns whether it was elsewhere before.
    pub(super) fn acknowledged(&mut self, place: Place, position: EntryId) -> bool {
        let before =
            self.all.get_mut(place).map(|found| std::mem::replace(&mut found.acknowledged, position));
        before.is_some_and(|before| before != position)
    }

    /// Makes the next read of the stream at a place count it, which shows whether it has its group and what is wrong
    /// with its key.
    pub(super) fn count_next(&mut self, place: Place) {
        if let Some(found) = self.all.get_mut(place) {
            found.count_next();
            self.note(place);
        }
    }

    /// Schedules one check of every stream with pending acknowledgements. Returns how many there are.
    pub(super) fn begin_acknowledging(&mut self) -> usize {
        self.to_acknowledge = self.pending.len();
        self.to_acknowledge
    }

    /// How many streams are left to be checked.
    pub(super) fn acknowledgements_left(&self) -> usize {
        self.to_acknowledge
    }

    /// Whether streams are left to be checked.
    pub(super) fn is_acknowledging(&self) -> bool {
        self.to_acknowledge > 0
    }

    /// Whether anything is unacknowledged.
    pub(super) fn has_unacked(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The next stream among those to be checked whose group has to move, and its new position. The stream stays in
    /// the list until Redis has confirmed [the position](Self::acknowledged).
    pub(super) fn next_acknowledgement(&mut self, ack: Ack) -> Option<(Place, EntryId)> {
        while self.to_acknowledge > 0
            && let Some((place, live)) = self.pending.pop_front()
        {
            self.to_acknowledge -= 1;
            let Some(found) = self.all.get_mut(place).filter(|found| found.live == live) else { continue };
            found.is_pending = !found.is_acknowledged();
            if found.is_pending {
                self.pending.push_back((place, live));
            }
            let position = found.position(ack);
            if position != found.acknowledged {
                return Some((place, position));
            }
        }
        None
    }

    pub(super) fn find(&self, key: &[u8]) -> Option<Place> {
        self.by_key.get(key).copied()
    }

    pub(super) fn get(&self, place: Place) -> Option<&Subscription> {
        self.all.get(place)
    }

    pub(super) fn get_mut(&mut self, place: Place) -> Option<&mut Subscription> {
        self.all.get_mut(place)
    }

    pub(super) fn places(&self) -> Vec<Place> {
        self.all.iter().map(|(place, _)| place).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Subscription> {
        self.all.iter().map(|(_, found)| found)
    }

    /// Whether some stream is known to have large entries.
    pub(super) fn has_large(&self) -> bool {
        self.iter().any(|found| found.size.is_large())
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

#[cfg(test)]
#[path = "subscriptions_tests.rs"]
mod tests;
