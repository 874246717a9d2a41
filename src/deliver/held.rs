//! Answers about a stream that are held until its `open` is sent, because `open` comes first. Pure. Their bytes count
//! towards the limit of answers that may wait for a connection; beyond it, no more input of the client is processed.

use std::collections::VecDeque;

/// The cost of one answer besides its bytes, in bytes.
const ANSWER_COST_BYTES: usize = 64;

/// Answers in JSON, in order.
#[derive(Debug, Default)]
pub(super) struct Held {
    answers: VecDeque<Vec<u8>>,
    cost_bytes: usize,
}

impl Held {
    /// Adds an answer and returns its cost in bytes.
    pub(super) fn push(&mut self, json: Vec<u8>) -> usize {
        let cost = json.len() + ANSWER_COST_BYTES;
        self.cost_bytes += cost;
        self.answers.push_back(json);
        cost
    }

    /// The cost of all answers, in bytes.
    pub(super) const fn cost_bytes(&self) -> usize {
        self.cost_bytes
    }

    /// The answers, oldest first.
    pub(super) fn into_answers(self) -> impl Iterator<Item = Vec<u8>> {
        self.answers.into_iter()
    }
}
