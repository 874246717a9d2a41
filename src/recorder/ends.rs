//! Ends of generations that no producer writes: after the grace period, and for producers that were given up.
//!
//! The entry gets the id right after the newest one, so Redis refuses it if anything has followed: of all instances
//! that try, exactly one succeeds. Nothing is kept for later: a transform thread whose end could not be written asks
//! again if the end is still needed.

use std::time::Instant;

use ::redis::{Cmd, cmd};

use crate::message::Control;
use crate::message::record::{EndGeneration, EndKind, EndOutcome};
use crate::model::EntryId;
use crate::queue::{Receiver, Sender};
use crate::redis::{Keys, Link, RedisError, Reply, ServerErrorKind};

use super::WriteContext;

/// The most ends written in one round trip.
const ENDS_PER_TRIP: usize = 64;

/// Writes the ends in its queue.
pub(super) struct Ends {
    queue: Receiver<EndGeneration>,
    transforms: Vec<Sender<Control>>,
}

impl Ends {
    pub(super) const fn new(queue: Receiver<EndGeneration>, transforms: Vec<Sender<Control>>) -> Self {
        Self { queue, transforms }
    }

    /// When there is an end to write.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        (!self.queue.is_empty()).then_some(now)
    }

    /// Writes some ends and answers the transform threads that requested them.
    ///
    /// # Errors
    /// If Redis does not reply.
    pub(super) fn tend(&mut self, link: &mut Link, context: WriteContext<'_>) -> Result<(), RedisError> {
        let ends: Vec<EndGeneration> =
            std::iter::from_fn(|| self.queue.try_recv()).take(ENDS_PER_TRIP).collect();
        if ends.is_empty() {
            return Ok(());
        }
        let places: Vec<Option<EntryId>> = ends.iter().map(|end| place(end.newest)).collect();
        let commands: Vec<Cmd> = ends
            .iter()
            .zip(&places)
            .filter_map(|(end, id)| Some(command(context.keys, end, (*id)?)))
            .collect();
        let replies = match link.call_all(&commands) {
            Ok(replies) => replies,
            Err(error) => {
                ends.into_iter().for_each(|end| self.answer(end, EndOutcome::Unwritten));
                return Err(error);
            }
        };
        let mut replies = replies.iter();
        for (end, id) in ends.into_iter().zip(places) {
            let reply = id.and_then(|id| Some((id, replies.next()?)));
            let outcome = reply.map_or(EndOutcome::Unwritten, |(id, reply)| outcome(&end, id, reply));
            if matches!(outcome, EndOutcome::Written(_)) {
                match end.kind {
                    EndKind::Grace => context.counters.grace_ends_written.inc(),
                    EndKind::ProducerLost => context.counters.producers_lost_written.inc(),
                }
            }
            self.answer(end, outcome);
        }
        Ok(())
    }

    /// Answers the transform threads while Redis is down.
    pub(super) fn give_up(&self) {
        while let Some(end) = self.queue.try_recv() {
            self.answer(end, EndOutcome::Unwritten);
        }
    }

    fn answer(&self, end: EndGeneration, outcome: EndOutcome) {
        let EndGeneration { stream, newest, kind, transform, .. } = end;
        // A transform thread that has no room now asks again.
        let _ = self.transforms[transform].try_send(Control::EndAnswered { stream, newest, kind, outcome });
    }
}

/// The id right after an entry; `None` if the entry has the last id of its millisecond.
fn place(newest: EntryId) -> Option<EntryId> {
    newest.n.checked_add(1).map(|n| EntryId::new(newest.ms, n))
}

fn command(keys: &Keys, end: &EndGeneration, id: EntryId) -> Cmd {
    cmd("XADD").arg(keys.stream(&end.stream)).arg("NOMKSTREAM").arg(id).arg("data").arg(&end.data).take()
}

fn outcome(end: &EndGeneration, id: EntryId, reply: &Reply) -> EndOutcome {
    match reply.error() {
        None if reply.is_null() => EndOutcome::Followed,
        None => EndOutcome::Written(id),
        // Another entry was written meanwhile: the id is not above the newest one any more.
        Some(error)
            if error.kind() == ServerErrorKind::Other && error.message.contains("equal or smaller") =>
        {
            EndOutcome::Followed
        }
        Some(error) => {
            tracing::debug!(stream = %end.stream, %error, "the end of a generation cannot be written");
            EndOutcome::Unwritten
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::RedisClock;
    use crate::model::StreamName;
    use crate::observe::Counters;
    use crate::queue;
    use crate::redis::testing::RedisServer;

    fn name() -> StreamName {
        "s/m:1".parse().unwrap()
    }

    struct World {
        server: RedisServer,
        keys: Keys,
        counters: Counters,
        requests: Sender<EndGeneration>,
        answers: Receiver<Control>,
        ends: Ends,
    }

    impl World {
        fn new() -> Self {
            let (requests, queue) = queue::bounded("ends", 8);
            let (transform, answers) = queue::bounded("control", 8);
            Self {
                server: RedisServer::start(&[]),
                keys: Keys::new("llm", "s", "i"),
                counters: Counters::default(),
                requests,
                answers,
                ends: Ends::new(queue, vec![transform]),
            }
        }

        fn ask(&self, newest: EntryId) {
            let data = r#"{"type":"end","finish_reason":"stop"}"#.to_owned();
            let end = EndGeneration { stream: name(), newest, data, kind: EndKind::Grace, transform: 0 };
            self.requests.try_send(end).unwrap();
        }

        fn answer(&self) -> EndOutcome {
            match self.answers.try_recv() {
                Some(Control::EndAnswered { outcome, .. }) => outcome,
                other => panic!("{other:?}"),
            }
        }

        fn end(&mut self, newest: EntryId) -> EndOutcome {
            self.ask(newest);
            let mut link = self.server.link();
            let (now_us, now) = (0, Instant::now());
            let clock = RedisClock::default();
            let context = WriteContext {
                keys: &self.keys,
                clock: &clock,
                counters: &self.counters,
                now_us,
                now,
                me: "i",
            };
            self.ends.tend(&mut link, context).unwrap();
            self.answer()
        }
    }

    #[test]
    fn a_generation_is_ended_once_and_only_where_nothing_followed() {
        let mut world = World::new();
        let mut link = world.server.link();
        assert_eq!(world.end(EntryId::new(9, 0)), EndOutcome::Followed, "there is no stream");
        let key = world.keys.stream(&name());
        link.call(&Cmd::xadd(key.as_str(), "9-4", &[("data", "{}")])).unwrap();
        assert_eq!(world.end(EntryId::new(9, 2)), EndOutcome::Followed, "it spoke");
        let id = EntryId::new(9, 5);
        assert_eq!(world.end(EntryId::new(9, 4)), EndOutcome::Written(id));
        assert_eq!(world.end(EntryId::new(9, 4)), EndOutcome::Followed, "it is done");
        assert_eq!(world.counters.grace_ends_written.get(), 1);
        let range = Cmd::xrange_all(key.as_str());
        let last = link.call(&range).unwrap().entries().unwrap().pop().unwrap();
        assert_eq!(last.id, id);
        let data = String::from_utf8(last.fields.get("data").unwrap().to_vec()).unwrap();
        assert_eq!(data, r#"{"type":"end","finish_reason":"stop"}"#);
    }

    #[test]
    fn an_end_that_cannot_be_written_is_answered_as_unwritten() {
        let mut world = World::new();
        assert_eq!(world.end(EntryId::new(9, u64::MAX)), EndOutcome::Unwritten, "no id can follow");
        let key = world.keys.stream(&name());
        let mut link = world.server.link();
        link.call(&Cmd::set(key.as_str(), "no stream")).unwrap();
        assert_eq!(world.end(EntryId::new(9, 4)), EndOutcome::Unwritten);
        world.ask(EntryId::new(9, 4));
        world.ends.give_up();
        assert_eq!(world.answer(), EndOutcome::Unwritten);
    }
}
