//! The bytes that wait for one client's socket: a queue of shared chunks.
//!
//! Frames are shared between clients and never copied; a partial write moves an offset. A new or drained outbox holds
//! no significant memory. The owner enforces the limit: see [`Outbox::len_bytes`].

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Write};

use bytes::Bytes;

/// The most pieces in one vectored write.
const PIECES_MAX: usize = 64;

/// The cost of a chunk besides its bytes: its place in the queue, its mark, and its frame, which may be kept for this
/// client alone.
pub const CHUNK_COST_BYTES: usize = 512;

/// Bytes for the client.
#[derive(Clone, Debug)]
pub enum Chunk<M> {
    /// For this client alone.
    Own(Bytes),
    /// Shared; the mark, which holds the bytes, is returned once the last of them has been written.
    Marked(M),
}

impl<M> From<Bytes> for Chunk<M> {
    fn from(bytes: Bytes) -> Self {
        Self::Own(bytes)
    }
}

impl<M> From<Vec<u8>> for Chunk<M> {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Own(bytes.into())
    }
}

impl<M: AsRef<[u8]>> Chunk<M> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Marked(mark) => mark.as_ref(),
        }
    }
}

/// The result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Everything was written.
    Drained,
    /// The writer accepts no more now.
    Blocked,
    /// The allowed number of bytes was written, and more wait.
    Paused,
}

/// The queue of one client.
#[derive(Debug)]
pub struct Outbox<M> {
    chunks: VecDeque<Chunk<M>>,
    /// How many bytes of the first chunk were written. INVARIANT: at most its length; 0 if there is none.
    taken: usize,
    /// The number of bytes not written yet.
    len_bytes: usize,
    /// The cost of all answers that were added since none waited, in bytes. The cost of those that still wait is at
    /// most this.
    answers_cost_bytes: usize,
    /// The number of waiting bytes up to the end of the last answer.
    answers_end: usize,
}

impl<M: AsRef<[u8]>> Default for Outbox<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: AsRef<[u8]>> Outbox<M> {
    /// An empty outbox; nothing is allocated.
    #[must_use]
    pub const fn new() -> Self {
        Self { chunks: VecDeque::new(), taken: 0, len_bytes: 0, answers_cost_bytes: 0, answers_end: 0 }
    }

    /// Adds bytes at the end.
    pub fn push(&mut self, chunk: Chunk<M>) {
        self.len_bytes += chunk.bytes().len();
        self.chunks.push_back(chunk);
    }

    /// Adds bytes of an answer at the end.
    pub fn push_answer(&mut self, chunk: Chunk<M>) {
        self.answers_cost_bytes += chunk.bytes().len() + CHUNK_COST_BYTES;
        self.push(chunk);
        self.answers_end = self.len_bytes;
    }

    /// An upper bound of the cost of the answers that wait, in bytes: the cost of all that were added since none
    /// waited.
    #[must_use]
    pub const fn answers_cost_bytes(&self) -> usize {
        self.answers_cost_bytes
    }

    /// The number of waiting bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// The bytes held for the client, including [`CHUNK_COST_BYTES`] per chunk: the measure of budgets.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        self.len_bytes + self.chunks.len() * CHUNK_COST_BYTES
    }

    /// Whether nothing waits, neither bytes nor marks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Writes until everything is written, `writer` would block, or it has accepted `bytes_max`, and passes each mark
    /// to `written` once the last byte of its chunk, and of all chunks before it, has been written.
    ///
    /// # Errors
    /// The writer's error; [`ErrorKind::WriteZero`] if it accepts nothing without an error.
    pub fn write_to(
        &mut self,
        writer: &mut impl Write,
        bytes_max: usize,
        written: &mut impl FnMut(M),
    ) -> io::Result<WriteOutcome> {
        self.advance(0, written);
        let mut allowed = bytes_max;
        while !self.chunks.is_empty() {
            if allowed == 0 {
                return Ok(WriteOutcome::Paused);
            }
            let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
            let mut count = 0;
            let (mut skip, mut room) = (self.taken, allowed);
            for (piece, chunk) in pieces.iter_mut().zip(&self.chunks) {
                let bytes = &chunk.bytes()[skip..];
                let bytes = &bytes[..bytes.len().min(room)];
                *piece = IoSlice::new(bytes);
                skip = 0;
                count += 1;
                room -= bytes.len();
                if room == 0 {
                    break;
                }
            }
            let result = match &pieces[..count] {
                // The most frequent case in live text, and the cheaper call.
                [single] => writer.write(single),
                several => writer.write_vectored(several),
            };
            match result {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => {
                    self.advance(len, written);
                    allowed -= len;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(WriteOutcome::Blocked),
                Err(error) => return Err(error),
            }
        }
        self.chunks = VecDeque::new();
        Ok(WriteOutcome::Drained)
    }

    /// Drops all chunks of which nothing was written.
    pub fn drop_unstarted(&mut self) {
        self.chunks.truncate(usize::from(self.taken > 0));
        self.len_bytes = self.chunks.front().map_or(0, |first| first.bytes().len() - self.taken);
        self.answers_end = self.answers_end.min(self.len_bytes);
    }

    /// Removes `len` bytes from the front, with every chunk that this completes.
    fn advance(&mut self, len: usize, written: &mut impl FnMut(M)) {
        self.len_bytes -= len;
        self.taken += len;
        self.answers_end = self.answers_end.saturating_sub(len);
        if self.answers_end == 0 {
            self.answers_cost_bytes = 0;
        }
        while let Some(first) = self.chunks.front()
            && first.bytes().len() <= self.taken
        {
            self.taken -= first.bytes().len();
            if let Some(Chunk::Marked(mark)) = self.chunks.pop_front() {
                written(mark);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A mark that holds bytes and a number.
    struct Marked(Vec<u8>, usize);

    impl AsRef<[u8]> for Marked {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    /// Accepts the scripted number of bytes in each call; 0 means that it would block. The first call, and each call
    /// after an odd number, is interrupted.
    struct Stingy {
        script: Vec<usize>,
        interrupted: bool,
        got: Vec<u8>,
    }

    impl Write for Stingy {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.write_vectored(&[IoSlice::new(bytes)])
        }

        fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
            assert!(!pieces.is_empty() && pieces.len() <= PIECES_MAX);
            if !std::mem::replace(&mut self.interrupted, true) {
                return Err(ErrorKind::Interrupted.into());
            }
            let Some(room) = self.script.pop().filter(|&room| room > 0) else {
                return Err(ErrorKind::WouldBlock.into());
            };
            self.interrupted = room % 2 == 0;
            let offered = pieces.iter().flat_map(|piece| piece.iter().copied());
            let before = self.got.len();
            self.got.extend(offered.take(room));
            Ok(self.got.len() - before)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_drained_outbox_frees_its_memory() {
        let mut outbox = Outbox::new();
        assert_eq!(outbox.chunks.capacity(), 0);
        for mark in 0..1000 {
            outbox.push(Chunk::Marked(Marked(b"x".to_vec(), mark)));
        }
        let mut marks = 0;
        let outcome = outbox.write_to(&mut Vec::new(), usize::MAX, &mut |_| marks += 1).unwrap();
        assert_eq!((outcome, marks, outbox.len_bytes()), (WriteOutcome::Drained, 1000, 0));
        assert_eq!(outbox.chunks.capacity(), 0);
    }

    #[test]
    fn a_writer_that_takes_nothing_is_an_error() {
        let mut outbox = Outbox::<Marked>::new();
        outbox.push(Bytes::new().into());
        let outcome = outbox.write_to(&mut &mut [][..], usize::MAX, &mut |_| {}).unwrap();
        assert_eq!(outcome, WriteOutcome::Drained);
        outbox.push(Bytes::from_static(b"x").into());
        let error = outbox.write_to(&mut &mut [][..], usize::MAX, &mut |_| {}).unwrap_err();
        assert_eq!((error.kind(), outbox.len_bytes()), (ErrorKind::WriteZero, 1));
    }

    #[test]
    fn answers_count_until_the_last_of_them_is_written() {
        let mut outbox = Outbox::<Marked>::new();
        let write = |outbox: &mut Outbox<Marked>, bytes| {
            outbox.write_to(&mut Vec::new(), bytes, &mut |_| {}).unwrap()
        };
        outbox.push_answer(Bytes::from_static(b"answer").into());
        outbox.push(Bytes::from_static(b"a frame that comes after it").into());
        assert_eq!(outbox.answers_cost_bytes(), 6 + CHUNK_COST_BYTES);
        assert_eq!(write(&mut outbox, 5), WriteOutcome::Paused);
        assert_eq!(outbox.answers_cost_bytes(), 6 + CHUNK_COST_BYTES);
        assert_eq!(write(&mut outbox, 1), WriteOutcome::Paused);
        assert_eq!(outbox.answers_cost_bytes(), 0);
        outbox.push_answer(Bytes::from_static(b"x").into());
        assert_eq!(write(&mut outbox, usize::MAX), WriteOutcome::Drained);
        assert_eq!(outbox.answers_cost_bytes(), 0);
    }

    proptest! {
        /// For all amounts that the writer may accept: bytes are written in order, and a mark is reported by the write
        /// that completes it.
        #[test]
        fn bytes_and_marks_keep_their_order(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..200),
            scripts in prop::collection::vec(prop::collection::vec(0_usize..300, 0..8), 0..30),
        ) {
            let mut outbox = Outbox::new();
            let mut sink = Stingy { script: Vec::new(), interrupted: false, got: Vec::new() };
            let (mut expected, mut ends) = (Vec::new(), Vec::new());
            let mut marks = Vec::new();
            let mut to_push = chunks.into_iter();
            for script in scripts.into_iter().chain([vec![usize::MAX; 100]]) {
                for bytes in to_push.by_ref().take(if script.len() == 100 { usize::MAX } else { 9 }) {
                    expected.extend_from_slice(&bytes);
                    ends.push(expected.len());
                    outbox.push(Chunk::Marked(Marked(bytes, ends.len() - 1)));
                }
                let (script_len, had) = (script.len(), sink.got.len());
                sink.script = script;
                let bytes_max = if script_len == 100 { usize::MAX } else { 700 };
                let outcome =
                    outbox.write_to(&mut sink, bytes_max, &mut |Marked(_, mark)| marks.push(mark)).unwrap();
                prop_assert!(sink.got.len() - had <= bytes_max);
                prop_assert_eq!(outbox.len_bytes(), expected.len() - sink.got.len());
                prop_assert_eq!(outcome == WriteOutcome::Drained, outbox.is_empty());
                // An empty chunk is complete as soon as it is at the front.
                let complete: Vec<usize> = (0..ends.len()).filter(|&mark| ends[mark] <= sink.got.len()).collect();
                prop_assert_eq!(&marks, &complete);
            }
            prop_assert!(outbox.is_empty());
            prop_assert_eq!(sink.got, expected);
        }
    }
}
