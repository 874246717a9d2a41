//! Answers about a stream that wait for its `open`, which comes first. Pure. Their bytes are bounded by the limit of
//! answers that may wait for a connection: beyond it, its client is not heard.

use std::collections::VecDeque;

/// Cost of one answer beside its bytes, in bytes.
const ANSWER_COST_BYTES: usize = 64;

/// Answers in JSON, in their order.
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

    /// Cost of all answers, in bytes.
    pub(super) const fn cost_bytes(&self) -> usize {
        self.cost_bytes
    }

    /// The answers, the first first.
    pub(super) fn into_answers(self) -> impl Iterator<Item = Vec<u8>> {
        self.answers.into_iter()
    }
}
