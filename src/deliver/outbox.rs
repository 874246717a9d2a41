//! What waits for one client's socket: a queue of shared bytes.
//!
//! Chunks are shared between clients and never copied; a partial write moves an offset. A fresh or
//! drained outbox holds no memory worth mentioning. The bound is its owner's: see
//! [`Outbox::len_bytes`].

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Write};

use bytes::Bytes;

/// The most pieces of one vectored write.
const PIECES_MAX: usize = 64;
/// Room for chunks that a drained outbox keeps.
const CAPACITY_KEPT: usize = 4;

/// Bytes for the client, and what to report once the last of them has been taken.
#[derive(Clone, Debug)]
pub struct Chunk<M> {
    /// The bytes.
    pub bytes: Bytes,
    /// What the owner wants to hear when they are written.
    pub mark: Option<M>,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Everything was taken.
    Drained,
    /// The writer takes no more now.
    Blocked,
}

/// The queue of one client.
#[derive(Debug)]
pub struct Outbox<M> {
    chunks: VecDeque<Chunk<M>>,
    /// How much of the first chunk was taken. INVARIANT: at most its length; 0 when there is none.
    taken: usize,
    /// Bytes not taken yet.
    len_bytes: usize,
}

impl<M> Default for Outbox<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M> Outbox<M> {
    /// An empty outbox; nothing is allocated.
    #[must_use]
    pub const fn new() -> Self {
        Self { chunks: VecDeque::new(), taken: 0, len_bytes: 0 }
    }

    /// Adds bytes at the end.
    pub fn push(&mut self, chunk: Chunk<M>) {
        self.len_bytes += chunk.bytes.len();
        self.chunks.push_back(chunk);
    }

    /// Bytes that wait.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Whether nothing waits, neither bytes nor marks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Writes until everything is taken or `writer` would block, and hands each mark to `written` once
    /// the last byte of its chunk, and of all before it, has been taken.
    ///
    /// # Errors
    /// The writer's error; [`ErrorKind::WriteZero`] when it takes nothing without saying why.
    pub fn write_to(
        &mut self,
        writer: &mut impl Write,
        written: &mut impl FnMut(M),
    ) -> io::Result<WriteOutcome> {
        self.advance(0, written);
        while !self.chunks.is_empty() {
            let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
            let mut count = 0;
            let mut skip = self.taken;
            for (piece, chunk) in pieces.iter_mut().zip(&self.chunks) {
                *piece = IoSlice::new(&chunk.bytes[skip..]);
                skip = 0;
                count += 1;
            }
            match writer.write_vectored(&pieces[..count]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => self.advance(len, written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(WriteOutcome::Blocked),
                Err(error) => return Err(error),
            }
        }
        if self.chunks.capacity() > CAPACITY_KEPT {
            self.chunks = VecDeque::new();
        }
        Ok(WriteOutcome::Drained)
    }

    /// Takes `len` bytes off the front, with every chunk that this completes.
    fn advance(&mut self, len: usize, written: &mut impl FnMut(M)) {
        self.len_bytes -= len;
        self.taken += len;
        while let Some(first) = self.chunks.front()
            && first.bytes.len() <= self.taken
        {
            self.taken -= first.bytes.len();
            if let Some(mark) = self.chunks.pop_front().and_then(|chunk| chunk.mark) {
                written(mark);
            }
        }
    }
}
