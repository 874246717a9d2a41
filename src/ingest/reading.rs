//! How a reader reads. Most reads are one XREAD that begins with the entry at the cursor, which proves that nothing
//! after it was trimmed. Once a second, and whenever that entry is gone, a stream is read in a transaction that sets
//! the position of its group, counts the stream, and reads what follows the cursor. The proof is judged in
//! [`proof`](super::proof). A stream that has lost entries is broken: history reports to the viewers what was lost.
//!
//! Entries are read by XREAD from the cursor on, not by XREADGROUP from the group's position. So other clients that
//! use the group take no entries away, and Redis keeps no list of entries that are pending for some milliseconds
//! (measured: XREADGROUP takes 16 instead of 10 µs of Redis' time per token). The group shows the progress of the
//! instance: its position is the newest entry that has been written to every socket
//! ([`acknowledging`](super::acknowledging)), so it lags behind by what has not been written. The group also marks
//! the stream: a stream that was deleted and recreated has no group, which the command that sets the position
//! detects, and it does not have the entry at the cursor.
//!
//! A read is bounded in bytes ([`budget`](super::budget)) and in entries.

use std::time::{Duration, Instant};

use super::acknowledging::set_position;
use super::budget::{Share, divide};
use super::proof::{Brought, Count, Method, Verdict};
use super::reader::Reader;
use super::subscriptions::{Place, Subscription};
use crate::message::LiveNews;
use crate::model::{Entry, EntryId};
use crate::redis::{RedisError, Reply, Results, ServerError, ServerErrorKind, StreamEntries};
use crate::warn_limited;

/// The most entries that one round trip reads or acknowledges: some milliseconds of Redis' time, in which it serves
/// nobody else. If more is waiting, the next round trip follows at once.
pub(super) const ENTRIES_PER_TRIP: usize = 4096;
/// The least number of entries requested of one stream, if their size allows it.
const COUNT_MIN: usize = 16;
/// Reads that follow one another before the reader does other work.
const READS_IN_A_ROW_MAX: usize = 16;
/// The most streams that are read at once, so that others do not wait long for Redis.
const KEYS_PER_READ_MAX: usize = 256;

/// The outcome of a read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReadEnd {
    /// The number of entries read.
    pub(super) entries: usize,
    /// Whether a stream had more than one read returns, more streams had news, or some have to be read again.
    pub(super) is_full: bool,
    /// How long Redis took to answer, if it answered at once.
    pub(super) took: Duration,
    /// How long the read waited for news.
    pub(super) waited: Duration,
}

/// One stream of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    place: Place,
    method: Method,
    /// The position to which its group is set: only of a stream that is counted.
    position: Option<EntryId>,
}

/// The streams that a round trip reads.
#[derive(Debug)]
pub(super) struct Requested {
    /// The streams whose reads begin with the entry at the cursor: one command.
    anchored: Option<Share<Asked>>,
    /// The streams that are counted: one transaction.
    counted: Vec<Share<Asked>>,
    /// Whether streams with news did not fit.
    is_cut: bool,
    /// The index of the first reply.
    begins_at: usize,
}

/// A read that was asked for.
struct AskedRead {
    requested: Requested,
    at: Instant,
    is_cut: bool,
    /// Whether looking for its replies at once would be in vain.
    may_sleep: bool,
}

/// The result of a read, yet to be passed on.
pub(super) struct Found {
    pub(super) end: ReadEnd,
    news: Vec<(usize, LiveNews)>,
    broken: Vec<Subscription>,
}

/// The result of a read for one stream.
struct Fresh {
    asked: Asked,
    count: Count,
    entries: Vec<Entry>,
    is_full: bool,
}

impl Reader {
    /// Reads the streams with news. If more news arrives with a reply, the next read is sent before that reply's
    /// entries are passed on, so that Redis works on it meanwhile.
    pub(super) fn read_news(&mut self) -> Result<ReadEnd, RedisError> {
        let mut reading = self.ask_for_news(true)?;
        let mut end = ReadEnd::default();
        for left in (0..READS_IN_A_ROW_MAX).rev() {
            let Some(AskedRead { requested, at, is_cut, may_sleep }) = reading else { break };
            let replies = self.await_replies(None, may_sleep)?;
            let took = at.elapsed();
            self.note_pushes()?;
            let found = self.take_in(&replies, requested)?;
            end = ReadEnd { took, is_full: found.end.is_full || is_cut, ..found.end };
            let goes_on = left > 0 && self.parts.commands.is_empty() && !self.parts.draining.requested();
            let next = if goes_on { self.ask_for_news(false) } else { Ok(None) };
            // Entries that have arrived are passed on, whether or not the next read can be sent.
            self.pass_on(found);
            reading = next?;
        }
        Ok(end)
    }

    /// Asks for what the streams with news have; `None` where there are none.
    fn ask_for_news(&mut self, is_first: bool) -> Result<Option<AskedRead>, RedisError> {
        let places = self.subscriptions.take_news(KEYS_PER_READ_MAX);
        if places.is_empty() {
            return Ok(None);
        }
        let is_cut = places.len() == KEYS_PER_READ_MAX;
        self.pipeline.clear();
        let requested = self.add_reads(places);
        let at = Instant::now();
        let may_sleep = self.send_pipeline()? && is_first;
        Ok(Some(AskedRead { requested, at, is_cut, may_sleep }))
    }

    /// Adds the commands that read these streams to the round trip. Streams that do not fit are put back among those
    /// with news.
    pub(super) fn add_reads(&mut self, places: Vec<Place>) -> Requested {
        let now = Instant::now();
        let share = (ENTRIES_PER_TRIP / places.len().max(1)).max(COUNT_MIN);
        let count_max = share.min(self.parts.delivery.read_count);
        let Self { subscriptions, budget, parts, .. } = self;
        let sized = places.into_iter().filter_map(|place| {
            let found = subscriptions.get(place)?;
            let method = found.method(now);
            let position = (method != Method::Anchored).then(|| found.position(parts.delivery.ack));
            let asked = Asked { place, method, position };
            Some((asked, budget.entry_bytes(found.size, now)))
        });
        let (shares, left) = divide(sized, budget.bytes(), count_max);
        let is_cut = !left.is_empty();
        self.subscriptions.put_back(left.into_iter().map(|asked| asked.place));
        let begins_at = self.pipeline.len();
        let (anchored, counted) = separate(shares);
        if let Some(share) = &anchored {
            self.add_xread(share);
        }
        if !counted.is_empty() {
            self.pipeline.command("MULTI", 0);
            for share in &counted {
                for &asked in &share.streams {
                    self.add_count(asked);
                }
                self.add_xread(share);
            }
            self.pipeline.command("EXEC", 0);
        }
        Requested { anchored, counted, is_cut, begins_at }
    }

    /// Adds the commands that count a stream and acknowledge what was written of it.
    fn add_count(&mut self, Asked { place, method, position }: Asked) {
        let Self { parts, pipeline, subscriptions, .. } = self;
        let (Some(found), Some(position)) = (subscriptions.get(place), position) else { return };
        let group = parts.keys.group();
        if method == Method::Groups {
            // At the end with nothing read, and at the beginning.
            let mut command = pipeline.command("XGROUP", 6);
            command.arg("SETID").arg(&found.key).arg(group).arg("$").arg("ENTRIESREAD").arg("0");
            drop(command);
            pipeline.command("XINFO", 2).arg("GROUPS").arg(&found.key);
            pipeline.command("XGROUP", 4).arg("SETID").arg(&found.key).arg(group).arg("0");
            pipeline.command("XINFO", 2).arg("GROUPS").arg(&found.key);
            set_position(pipeline, &parts.keys, &found.key, found.cursor);
            pipeline.command("XINFO", 2).arg("GROUPS").arg(&found.key);
        }
        set_position(pipeline, &parts.keys, &found.key, position);
        match method {
            Method::Info => pipeline.command("XINFO", 2).arg("STREAM").arg(&found.key),
            Method::Anchored | Method::Length | Method::Groups => pipeline.command("XLEN", 1).arg(&found.key),
        };
    }

    fn add_xread(&mut self, share: &Share<Asked>) {
        let Self { pipeline, subscriptions, .. } = self;
        let streams = || {
            let found = |asked: &Asked| Some((asked.method, subscriptions.get(asked.place)?));
            share.streams.iter().filter_map(found)
        };
        let mut command = pipeline.command("XREAD", 3 + 2 * share.streams.len());
        command.arg("COUNT").number(share.count).arg("STREAMS");
        for (_, found) in streams() {
            command.arg(&found.key);
        }
        for (method, found) in streams() {
            command.id(if method == Method::Anchored { found.cursor.before() } else { found.cursor });
        }
    }

    /// Takes the results of a read.
    pub(super) fn take_in(&mut self, replies: &[Reply], requested: Requested) -> Result<Found, RedisError> {
        let replies = &replies[requested.begins_at..];
        let counters = self.parts.registry.counters();
        counters.reads.add(1);
        counters.bytes_read.add(replies.iter().map(|reply| reply.len_bytes() as u64).sum());
        let (mut fresh, mut gone, mut again) = (Vec::new(), Vec::new(), Vec::new());
        let mut is_bounded = requested.is_cut;
        if let Some(share) = &requested.anchored {
            fresh = self.understand_anchored(share, &replies[0], &mut again)?;
            is_bounded |= share.is_bounded_by_bytes && fresh.iter().any(|fresh| fresh.is_full);
        }
        if let (Some(executed), false) = (replies.last(), requested.counted.is_empty()) {
            if let Some(error) = executed.error() {
                // EXEC fails if a command was refused when it was queued; the reply to that command has the cause.
                return Err(RedisError::Server(replies.iter().find_map(Reply::error).unwrap_or(error)));
            }
            let mut results = executed.results()?;
            for share in &requested.counted {
                let found = self.understand(share, &mut results, &mut gone)?;
                if found.is_empty() {
                    // Something is wrong with one of these streams, so none was read.
                    again.extend(share.streams.iter().map(|asked| asked.place));
                }
                is_bounded |= share.is_bounded_by_bytes && found.iter().any(|fresh| fresh.is_full);
                fresh.extend(found);
            }
        }
        self.parts.connector.works();
        if is_bounded {
            self.budget.was_full(Instant::now());
        }
        if fresh.iter().all(|fresh| fresh.entries.is_empty()) {
            self.parts.registry.counters().reads_empty.add(1);
        }
        let mut broken = Vec::new();
        for (place, error) in gone {
            let Some(subscription) = self.take(place) else { continue };
            let key = String::from_utf8_lossy(&subscription.key);
            if error.kind() == ServerErrorKind::WrongType {
                warn_limited!(%key, "the key of a live stream is not a stream any more");
            } else {
                tracing::debug!(%key, %error, "a group is gone");
            }
            broken.push(subscription);
        }
        let is_again = !again.is_empty();
        self.subscriptions.put_back(again.into_iter());
        let mut found = self.judge(fresh, broken);
        found.end.is_full |= requested.is_cut || is_again;
        Ok(found)
    }

    /// Takes the reply to the XREAD of streams from the entry at the cursor on. If one of the keys is not a stream,
    /// which the error does not name, nothing was read: all are counted next.
    fn understand_anchored(
        &mut self,
        share: &Share<Asked>,
        reply: &Reply,
        again: &mut Vec<Place>,
    ) -> Result<Vec<Fresh>, RedisError> {
        let streams = match reply.streams() {
            Err(RedisError::Server(error)) if error.kind() == ServerErrorKind::WrongType => {
                for asked in &share.streams {
                    self.subscriptions.count_next(asked.place);
                    again.push(asked.place);
                }
                return Ok(Vec::new());
            }
            streams => streams?,
        };
        self.assign(share, streams)
    }

    /// Assigns what an XREAD from the entry at the cursor on returned.
    fn assign(&self, share: &Share<Asked>, streams: Vec<StreamEntries>) -> Result<Vec<Fresh>, RedisError> {
        let mut streams = streams.into_iter().peekable();
        let mut fresh = Vec::with_capacity(share.streams.len());
        for &asked in &share.streams {
            let Some(found) = self.subscriptions.get(asked.place) else { continue };
            // Redis replies in the order of the request.
            let entries =
                streams.next_if(|read| *found.key == *read.key).map_or_else(Vec::new, |read| read.entries);
            let is_anchored = entries.first().is_some_and(|first| found.is_anchor(first));
            let is_full = entries.len() >= share.count;
            fresh.push(Fresh { asked, count: Count::Anchored(is_anchored), entries, is_full });
        }
        all_are_assigned(streams)?;
        Ok(fresh)
    }

    /// Takes the results of one XREAD and of the counts before it. Adds streams that have lost their group to `gone`;
    /// if one of the keys is not a stream, nothing was read.
    fn understand(
        &self,
        share: &Share<Asked>,
        results: &mut Results<'_>,
        gone: &mut Vec<(Place, ServerError)>,
    ) -> Result<Vec<Fresh>, RedisError> {
        let gone_before = gone.len();
        let mut counts = Vec::with_capacity(share.streams.len());
        for &asked in &share.streams {
            let count = read_count(asked.method, self.parts.keys.group(), results)?;
            counts.push((asked, count.map_err(|error| gone.push((asked.place, error))).ok()));
        }
        let mut streams = match results.streams() {
            Err(RedisError::Server(_)) if gone.len() > gone_before => return Ok(Vec::new()),
            streams => streams?.into_iter().peekable(),
        };
        let mut fresh = Vec::with_capacity(counts.len());
        for (asked, count) in counts {
            // Redis replies in the order of the request.
            let is_its = |read: &StreamEntries| {
                self.subscriptions.get(asked.place).is_some_and(|found| *found.key == *read.key)
            };
            let entries = streams.next_if(is_its).map_or_else(Vec::new, |read| read.entries);
            let is_full = entries.len() >= share.count;
            fresh.extend(count.map(|count| Fresh { asked, count, entries, is_full }));
        }
        all_are_assigned(streams)?;
        Ok(fresh)
    }

    /// Separates the reads that are whole from the streams that have lost entries.
    fn judge(&mut self, fresh: Vec<Fresh>, mut broken: Vec<Subscription>) -> Found {
        let now = Instant::now();
        let mut news = Vec::with_capacity(fresh.len());
        let mut end = ReadEnd::default();
        for Fresh { asked: Asked { place, position, .. }, count, mut entries, is_full } in fresh {
            if position.is_some_and(|position| self.subscriptions.acknowledged(place, position)) {
                self.parts.registry.counters().acks_sent.inc();
            }
            let Some(found) = self.subscriptions.get_mut(place) else { continue };
            let anchors = u64::from(count == Count::Anchored(true));
            let brought = Brought { entries: entries.len() as u64 - anchors, is_full };
            match found.judge(&count, brought, now) {
                Verdict::Whole(_) => {}
                Verdict::Unproven => {
                    end.is_full = true;
                    self.subscriptions.note(place);
                    continue;
                }
                Verdict::Lost => {
                    broken.extend(self.take(place));
                    continue;
                }
            }
            if is_full {
                end.is_full = true;
                self.subscriptions.note(place);
            }
            let Some((transform, live)) = self.subscriptions.advance(place, &mut entries, now) else {
                continue;
            };
            if entries.is_empty() {
                continue;
            }
            end.entries += entries.len();
            news.push((transform, LiveNews::Entries(live, entries)));
        }
        self.parts.registry.counters().entries_read.add(end.entries as u64);
        Found { end, news, broken }
    }

    /// Passes on what was read.
    pub(super) fn pass_on(&mut self, found: Found) -> ReadEnd {
        self.hand_over(found.news);
        self.report_broken(found.broken);
        found.end
    }
}

/// Separates the streams whose reads begin with the entry at the cursor from those that are counted. Each of the
/// former gets room for that entry.
fn separate(shares: Vec<Share<Asked>>) -> (Option<Share<Asked>>, Vec<Share<Asked>>) {
    let mut anchored: Option<Share<Asked>> = None;
    let mut counted = Vec::with_capacity(shares.len());
    for share in shares {
        let Share { streams, count, is_bounded_by_bytes } = share;
        let (with_anchor, others): (Vec<_>, Vec<_>) =
            streams.into_iter().partition(|asked| asked.method == Method::Anchored);
        if !with_anchor.is_empty() {
            anchored = Some(Share { streams: with_anchor, count: count + 1, is_bounded_by_bytes });
        }
        if !others.is_empty() {
            counted.push(Share { streams: others, count, is_bounded_by_bytes });
        }
    }
    (anchored, counted)
}

/// Fails if Redis returned a stream that was not requested.
fn all_are_assigned(mut streams: impl Iterator<Item = StreamEntries>) -> Result<(), RedisError> {
    if streams.next().is_some() {
        return Err(RedisError::Protocol("streams that were not requested, or in another order".into()));
    }
    Ok(())
}

/// The results of the commands that count one stream; the inner error means that it has no group to read by.
fn read_count(
    method: Method,
    group: &str,
    results: &mut Results<'_>,
) -> Result<Result<Count, ServerError>, RedisError> {
    let lags = if method == Method::Groups {
        Some((read_lag(group, results)?, read_lag(group, results)?, read_lag(group, results)?))
    } else {
        None
    };
    let set = results.done();
    let count = match lags {
        Some(lags) => results.count().map(|length| understand_lags(lags, length)),
        None if method == Method::Info => results.stream_info().map(|info| Count::Info(Box::new(info))),
        None => results.count().map(Count::Length),
    };
    match set.and(count) {
        Ok(count) => Ok(Ok(count)),
        Err(RedisError::Server(error)) => match error.kind() {
            ServerErrorKind::NoGroup | ServerErrorKind::NoSuchKey | ServerErrorKind::WrongType => {
                Ok(Err(error))
            }
            _ => Err(RedisError::Server(error)),
        },
        Err(error) => Err(error),
    }
}

/// The group's lag after its position was set; `None` also where Redis does not report lags (before Redis 7).
fn read_lag(group: &str, results: &mut Results<'_>) -> Result<Option<u64>, RedisError> {
    let set = results.done();
    let lag = results.lag_of(group);
    match set.and(lag) {
        Err(RedisError::Server(_)) => Ok(None),
        lag => lag,
    }
}

/// Derives the count from the group's lag at three positions: at the end with nothing read, at the beginning, and at
/// the cursor.
///
/// At the end, the lag is the number of entries ever added, or 0 if Redis cannot tell, for example because the newest
/// entry was deleted. At the beginning, it is the number of entries in the stream, unless single entries were deleted
/// among them. At the cursor, it is that same number if the cursor lies before the first entry, and smaller or
/// unknown otherwise.
fn understand_lags(
    (at_end, at_beginning, at_cursor): (Option<u64>, Option<u64>, Option<u64>),
    length: u64,
) -> Count {
    let all = Some(length);
    let has_read_ones = length > 0 && at_beginning == all && at_cursor != all;
    Count::Groups { length, added: at_end.filter(|&added| added > 0), has_read_ones }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lags_tell_what_was_added_and_whether_read_entries_are_left() {
        for (lags, length, added, has_read_ones) in [
            ((Some(9), Some(4), Some(4)), 4, Some(9), false),
            ((Some(9), Some(4), Some(3)), 4, Some(9), true),
            ((Some(9), Some(4), None), 4, Some(9), true),
            ((Some(9), None, None), 4, Some(9), false),
            ((Some(0), Some(4), None), 4, None, true),
            ((None, None, None), 4, None, false),
            ((Some(0), Some(0), Some(0)), 0, None, false),
        ] {
            assert_eq!(understand_lags(lags, length), Count::Groups { length, added, has_read_ones });
        }
    }
}
