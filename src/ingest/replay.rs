//! A replay thread: reads history by XRANGE for late, resumed and slow clients.
//!
//! Requests of several jobs share a round trip. Each asks for a bounded number of entries, so a long
//! history is many small reads between which others get their turn, and live reading, which has its own
//! threads and connections, is never delayed. Redis being away is an answer like any other
//! ([`ReplayRead::Unavailable`]): who asked decides when to ask again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::message::{KeyFacts, ReplayBatch, ReplayRead, ReplayRequest, ReplayStep, now_us, shard};
use crate::event::{EntryId, Position};
use crate::observe::Registry;
use crate::queue::{Receiver, SendError, Sender};
use crate::redis::{Command, Connector, Keys, Link, RedisError, Reply, ServerErrorKind, StreamInfo};
use crate::stop::Stop;
use crate::warn_limited;

/// Requests that share one round trip.
const REQUESTS_PER_TRIP_MAX: usize = 16;
/// What they should find together, in entries, as far as that can be foreseen: Redis works a pipeline off without looking at
/// anybody else, and so many take it a quarter of a millisecond.
const TRIP_ENTRIES_GOAL: usize = 500;
/// What the replies of one round trip should take together at most, as far as that can be foreseen: XRANGE
/// counts entries, and how large they are is seen only when they are there.
const TRIP_BYTES_GOAL: usize = 16 * 1024 * 1024;

/// How often a waiting thread looks whether the daemon stops.
const STOP_CHECK: Duration = Duration::from_millis(100);

/// What a replay thread works with.
pub struct Replay {
    /// Makes its connection.
    pub connector: Connector,
    /// The names of the keys.
    pub keys: Arc<Keys>,
    /// What is asked, by all delivery threads.
    pub requests: Receiver<ReplayRequest>,
    /// Where the answers are decoded, by shard.
    pub transforms: Vec<Sender<ReplayBatch>>,
    /// Where to count.
    pub registry: Arc<Registry>,
    /// When to end.
    pub stop: Stop,
    /// What was found lately.
    pub lately: Lately,
}

/// What the reads of a replay thread found lately: larger ones count at once, smaller ones by and by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lately {
    /// What an entry takes, in bytes.
    entry_bytes: usize,
    /// Entries of a read.
    entries: usize,
}

impl Lately {
    fn note(&mut self, entries: usize, bytes: usize) {
        let smoothed = |before: usize, seen: usize| seen.max((before * 7 + seen) / 8);
        self.entries = smoothed(self.entries, entries);
        if let Some(entry_bytes) = bytes.checked_div(entries) {
            self.entry_bytes = smoothed(self.entry_bytes, entry_bytes);
        }
    }

    /// How many requests make a round trip.
    fn requests_per_trip(&self) -> usize {
        (TRIP_ENTRIES_GOAL / self.entries.max(1)).clamp(1, REQUESTS_PER_TRIP_MAX)
    }
}

impl Replay {
    /// Serves requests until the daemon stops.
    pub fn run(mut self) {
        while !self.stop.requested() {
            let Some(first) = self.requests.recv_timeout(STOP_CHECK) else {
                self.connector.keep(Instant::now());
                continue;
            };
            let mut trip = vec![first];
            while trip.len() < self.lately.requests_per_trip()
                && let Some(request) = self.requests.try_recv()
            {
                trip.push(request);
            }
            self.serve(trip);
        }
    }

    fn serve(&mut self, mut trip: Vec<ReplayRequest>) {
        let count_max = (TRIP_BYTES_GOAL / trip.len() / self.lately.entry_bytes.max(1)).max(1);
        for request in &mut trip {
            request.count = request.count.min(count_max);
        }
        let now = Instant::now();
        let answer = self.connector.ask(now, |link| ask(link, &self.keys, &trip));
        let outage = match &answer {
            Ok(replies) => replies.iter().find_map(Reply::error).filter(|error| error.kind().is_outage()),
            Err(_) => None,
        };
        match (&answer, outage) {
            (Ok(_), None) => self.connector.works(),
            (Ok(_), Some(error)) => self.connector.lost(&RedisError::Server(error), now),
            (Err(Some(error)), _) => self.connector.lost(error, now),
            (Err(None), _) => {}
        }
        let mut replies = answer.map(Vec::into_iter);
        let read_us = now_us();
        for request in trip {
            let read = match &mut replies {
                Ok(replies) => understand(&request, replies.next(), replies.next()),
                Err(_) => Ok(ReplayRead::Unavailable),
            };
            let read = read.unwrap_or_else(|error| {
                warn_limited!(key: request.stream; stream = %request.stream, %error, "history could not be read");
                ReplayRead::Unavailable
            });
            let counters = self.registry.counters();
            counters.replay_reads.add(1);
            if let ReplayRead::Found { entries, .. } = &read {
                counters.replay_entries.add(entries.len() as u64);
                let bytes: usize = entries.iter().map(|entry| entry.fields.len_bytes()).sum();
                self.lately.note(entries.len(), bytes);
            }
            self.hand_over(ReplayBatch { request, read, read_us });
        }
    }

    /// Waits for room: `transform` never waits for a replay thread, so room comes.
    fn hand_over(&self, batch: ReplayBatch) {
        let transform = &self.transforms[shard(&batch.request.stream, self.transforms.len())];
        let mut batch = batch;
        while !self.stop.requested() {
            match transform.send_timeout(batch, STOP_CHECK) {
                Ok(()) | Err(SendError::Closed(_)) => return,
                Err(SendError::Full(back)) => batch = back,
            }
        }
    }
}

/// Sends all requests, then receives two replies for each.
fn ask(link: &mut Link, keys: &Keys, trip: &[ReplayRequest]) -> Result<Vec<Reply>, RedisError> {
    let commands = trip.iter().flat_map(|request| {
        let key = keys.stream(&request.stream);
        let (start, end) = range(&request.step);
        let info = Command::new("XINFO").arg("STREAM").arg(&key);
        let read = Command::new("XRANGE").arg(&key).arg(start).arg(end).arg("COUNT").number(request.count);
        [info, read]
    });
    link.call_all(&commands.collect::<Vec<Command>>())
}

/// The two ends of the XRANGE that a step needs.
fn range(step: &ReplayStep) -> (String, String) {
    match step {
        ReplayStep::Open { .. } | ReplayStep::Probe => ("-".into(), "+".into()),
        ReplayStep::Search(search) => (beyond(Position::whole(search.from)), "+".into()),
        ReplayStep::State(search) => (beyond(Position::whole(search.from)), "+".into()),
        ReplayStep::Continue { from, until } => {
            (beyond(from.position), until.map_or_else(|| "+".into(), |id| id.to_string()))
        }
    }
}

/// The start of a range that leaves out what `position` covers. An entry of which only some frames were
/// received is read again.
fn beyond(position: Position) -> String {
    match position {
        Position::ZERO => "-".into(),
        Position { id, .. } if position.covers_entry() => format!("({id}"),
        Position { id, .. } => id.to_string(),
    }
}

fn understand(
    request: &ReplayRequest,
    info: Option<Reply>,
    entries: Option<Reply>,
) -> Result<ReplayRead, RedisError> {
    let (Some(info), Some(entries)) = (info, entries) else {
        return Ok(ReplayRead::Unavailable);
    };
    if let Some(error) = info.error() {
        return match error.kind() {
            ServerErrorKind::NoSuchKey => Ok(ReplayRead::Missing),
            ServerErrorKind::WrongType => Ok(ReplayRead::WrongType),
            _ => Err(RedisError::Server(error)),
        };
    }
    if let Some(error) = entries.error() {
        return Err(RedisError::Server(error));
    }
    let facts = facts(&info.stream_info()?);
    let entries = entries.entries()?;
    let until = match &request.step {
        ReplayStep::Continue { until, .. } => *until,
        _ => None,
    };
    let reached = entries.last().map(|entry| entry.id) >= until && until.is_some();
    let exhausted = reached || entries.len() < request.count;
    Ok(ReplayRead::Found { facts, entries, exhausted })
}

fn facts(info: &StreamInfo) -> KeyFacts {
    KeyFacts {
        last_generated: info.last_generated_id,
        first: info.first,
        length: info.length,
        added: info.entries_added,
        max_deleted: info.max_deleted_id.filter(|&id| id != EntryId::ZERO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_small_while_much_is_found() {
        let mut lately = Lately::default();
        assert_eq!(lately.requests_per_trip(), REQUESTS_PER_TRIP_MAX);
        lately.note(250, 25_000);
        assert_eq!((lately.requests_per_trip(), lately.entry_bytes), (2, 100));
        lately.note(9_000, 9_000_000);
        assert_eq!((lately.requests_per_trip(), lately.entry_bytes), (1, 1_000));
        for _ in 0..100 {
            lately.note(0, 0);
        }
        assert_eq!((lately.requests_per_trip(), lately.entry_bytes), (REQUESTS_PER_TRIP_MAX, 1_000));
    }
}
