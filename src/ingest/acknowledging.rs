//! How a reader acknowledges what is written.
//!
//! Acknowledgements are gathered and travel with the next read. A burst's are spread over several trips: Redis looks
//! every id up, and whoever writes tokens meanwhile waits.

use std::time::{Duration, Instant};

use super::reader::Reader;
use super::reading::ENTRIES_PER_TRIP;
use crate::config;
use crate::event::EntryId;
use crate::redis::{Command, Keys, RedisError};

/// Acknowledgements are gathered this long.
const ACK_INTERVAL: Duration = Duration::from_millis(200);
/// A trip that reads few streams acknowledges at most so many, others as many as they read.
const STREAMS_PER_TRIP_MIN: usize = 32;
/// Streams that are acknowledged in one trip while nothing is read.
const STREAMS_ALONE: usize = 128;

impl Reader {
    /// What is to be acknowledged with the next trip, which reads `streams`.
    pub(super) fn due_acknowledgements(&mut self, streams: usize) -> Vec<Command> {
        let now = Instant::now();
        let mut commands = Vec::new();
        if now.duration_since(self.acked_at) >= ACK_INTERVAL {
            self.acked_at = now;
            self.subscriptions.begin_acknowledging();
            if !self.wakes_read.is_empty() && self.parts.delivery.ack == config::Ack::Written {
                let wake = self.parts.keys.wake(self.parts.index);
                commands.push(xack(&self.parts.keys, wake.as_bytes(), &self.wakes_read));
            }
            self.wakes_read.clear();
        }
        let mut acked = 0;
        while acked < ENTRIES_PER_TRIP
            && commands.len() < streams.max(STREAMS_PER_TRIP_MIN)
            && let Some((key, ids)) = self.subscriptions.next_acknowledgement()
        {
            acked += ids.len();
            commands.push(xack(&self.parts.keys, &key, &ids));
        }
        self.parts.registry.counters().acks_sent.add(acked as u64);
        commands
    }

    /// Acknowledges without reading, while there is nothing to read.
    pub(super) fn acknowledge_alone(&mut self) -> Result<(), RedisError> {
        loop {
            let commands = self.due_acknowledgements(STREAMS_ALONE);
            self.trip(&commands)?;
            if !self.subscriptions.is_acknowledging() {
                return Ok(());
            }
        }
    }

    pub(super) fn acknowledge_last(&mut self) -> Result<(), RedisError> {
        // The connection was closed where it was waiting for news.
        if self.parts.connector.link(Instant::now()).is_none() {
            return Err(RedisError::Closed);
        }
        self.acked_at = Instant::now().checked_sub(ACK_INTERVAL).unwrap_or(self.acked_at);
        self.acknowledge_alone()
    }
}

pub(super) fn xack(keys: &Keys, key: &[u8], ids: &[EntryId]) -> Command {
    ids.iter().fold(Command::new("XACK").arg(key).arg(keys.group()), |command, &id| command.id(id))
}
