//! Judges every token: whether it arrived once and in order, or was lost, repeated or reordered. Pure.

use std::collections::BTreeSet;

use crate::token::Token;

/// How many missing tokens are remembered for a client, to distinguish a late token from a repeated one.
const MISSING_MAX: u64 = 100_000;

/// How one token arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// In order.
    InOrder,
    /// In order, after this many missing ones.
    Early(u64),
    /// After a later token.
    Late,
    /// A second time.
    Again,
    /// At a client of another stream.
    Astray,
}

/// The tokens of its stream that a client has received.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    stream: u64,
    /// The number of the next token.
    next: u64,
    /// Tokens below `next` that have not arrived.
    missing: BTreeSet<u64>,
    /// How many more tokens are missing than can be remembered.
    forgotten: u64,
}

impl Judge {
    /// For a client that has received nothing yet.
    pub(crate) fn new(stream: u64) -> Self {
        Self { stream, ..Self::default() }
    }

    /// For a client that has received everything before a token.
    pub(crate) fn at(stream: u64, next: u64) -> Self {
        Self { stream, next, ..Self::default() }
    }

    /// Whether anything has arrived.
    pub(crate) const fn has_begun(&self) -> bool {
        self.next > 0
    }

    /// The number of the next token.
    pub(crate) const fn next(&self) -> u64 {
        self.next
    }

    /// Records a token.
    pub(crate) fn take(&mut self, token: Token) -> Came {
        if token.stream != self.stream {
            return Came::Astray;
        }
        if token.number == self.next {
            self.next += 1;
            return Came::InOrder;
        }
        if token.number > self.next {
            let skipped = token.number - self.next;
            self.forgotten += skipped.saturating_sub(MISSING_MAX);
            self.missing.extend(self.next + skipped.saturating_sub(MISSING_MAX)..token.number);
            self.next = token.number + 1;
            return Came::Early(skipped);
        }
        if self.missing.remove(&token.number) { Came::Late } else { Came::Again }
    }

    /// How many of the stream's `total` tokens have not arrived.
    pub(crate) fn lost(&self, total: u64) -> u64 {
        total.saturating_sub(self.next) + self.missing.len() as u64 + self.forgotten
    }
}

/// Whether the judge detects every kind of fault. A bench that cannot fail would prove nothing.
pub(crate) fn judges_well() -> bool {
    let mut judge = Judge::new(3);
    let came: Vec<_> = [(3, 0), (3, 1), (3, 1), (3, 4), (3, 2), (4, 5)]
        .into_iter()
        .map(|(stream, number)| {
            let text = Token { stream, number, at_us: 1_234_567 }.text();
            Token::parse(&text).map(|token| judge.take(token))
        })
        .collect();
    let expected = [Came::InOrder, Came::InOrder, Came::Again, Came::Early(2), Came::Late, Came::Astray];
    came == expected.map(Some) && judge.lost(7) == 3
}
