//! Whether anything follows the newest entry of a finishing generation.

use std::collections::VecDeque;

use crate::event::{EntryId, StreamName};
use crate::redis::{Command, Keys, Link, RedisError, Reply};
use crate::warn_limited;

/// Questions that are held; whoever asks more asks again later.
const QUESTIONS_MAX: usize = 4096;
/// Questions asked in one round trip.
const QUESTIONS_PER_TRIP: usize = 64;

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) stream: StreamName,
    pub(super) newest: EntryId,
    /// The transform thread that asks.
    pub(super) transform: usize,
}

/// The questions that are yet to be asked.
#[derive(Debug, Default)]
pub(super) struct Questions(VecDeque<Question>);

impl Questions {
    pub(super) fn add(&mut self, question: Question) {
        if self.0.len() < QUESTIONS_MAX {
            self.0.push_back(question);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Asks some; those after whose entry nothing followed, with the time at which that was so, ms by Redis' clock.
    ///
    /// # Errors
    /// When Redis could not be asked; the questions are dropped, and asked anew by those who have them.
    pub(super) fn ask(&mut self, link: &mut Link, keys: &Keys) -> Result<Vec<(Question, u64)>, RedisError> {
        let some: Vec<Question> = self.0.drain(..self.0.len().min(QUESTIONS_PER_TRIP)).collect();
        let behind = |question: &Question| {
            let key = keys.stream(&question.stream);
            Command::new("XRANGE").arg(key).arg(format!("({}", question.newest)).args(["+", "COUNT", "1"])
        };
        // The time comes first: an entry written later than the look has an id that is not below it.
        let mut commands = vec![Command::new("TIME")];
        commands.extend(some.iter().map(behind));
        let replies = link.call_all(&commands)?;
        let Some(redis_us) = replies.first().and_then(Reply::time_us) else { return Ok(Vec::new()) };
        let mut alone = Vec::new();
        for (question, reply) in some.into_iter().zip(&replies[1..]) {
            if let Some(error) = reply.error() {
                warn_limited!(key: question.stream; stream = %question.stream, %error, "Redis refuses to say whether anything follows");
            } else if reply.entries()?.is_empty() {
                alone.push((question, redis_us / 1000));
            }
        }
        Ok(alone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::testing::RedisServer;

    #[test]
    fn what_follows_an_entry_is_seen() {
        let server = RedisServer::start(&[]);
        let (mut link, keys) = (server.link(), Keys::new("llm", "s", "i"));
        let stream: StreamName = "s/m:1".parse().unwrap();
        let key = keys.stream(&stream);
        link.call(&Command::new("XADD").args([key.as_str(), "9-4", "data", "{}"])).unwrap();
        let mut questions = Questions::default();
        for n in [3, 4] {
            questions.add(Question { stream: stream.clone(), newest: EntryId::new(9, n), transform: 0 });
        }
        let alone = questions.ask(&mut link, &keys).unwrap();
        let [(question, redis_ms)] = &alone[..] else { panic!("nothing follows one of them: {alone:?}") };
        assert_eq!(question.newest, EntryId::new(9, 4));
        assert!(*redis_ms > 1_700_000_000_000, "{redis_ms}");
        assert!(questions.is_empty());
    }
}
