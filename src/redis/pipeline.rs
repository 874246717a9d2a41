//! The commands of the hot path, encoded as they are built; all others are built by the `redis` crate.

use ::redis::{RedisWrite, ToRedisArgs, ToSingleRedisArg};
pub use itoa::Integer as Number;

use crate::model::EntryId;

/// The longest entry id, in bytes.
const ID_BYTES_MAX: usize = 41;
/// The buffer size up to which a pipeline keeps its buffer between two uses, in bytes.
const PIPELINE_KEPT_BYTES: usize = 256 * 1024;

/// Commands in one buffer that is reused: for paths on which an allocation per command matters.
#[derive(Debug, Default)]
pub struct Pipeline {
    bytes: Vec<u8>,
    commands: usize,
}

impl Pipeline {
    /// Removes all commands. The buffer is kept unless it has grown very large.
    pub fn clear(&mut self) {
        self.commands = 0;
        self.bytes.clear();
        self.bytes.shrink_to(PIPELINE_KEPT_BYTES);
    }

    /// The number of commands.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.commands
    }

    /// Whether there are no commands.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.commands == 0
    }

    /// Begins a command, which exactly `arguments` arguments must follow.
    pub fn command(&mut self, name: &str, arguments: usize) -> Arguments<'_> {
        self.commands += 1;
        head(&mut self.bytes, b'*', arguments + 1);
        bulk(&mut self.bytes, name.as_bytes());
        Arguments { bytes: &mut self.bytes, left: arguments }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The arguments of a command in a [`Pipeline`].
#[derive(Debug)]
pub struct Arguments<'a> {
    bytes: &'a mut Vec<u8>,
    left: usize,
}

impl Arguments<'_> {
    /// The next argument.
    pub fn arg(&mut self, argument: impl AsRef<[u8]>) -> &mut Self {
        debug_assert!(self.left > 0, "more arguments than announced");
        self.left -= 1;
        bulk(self.bytes, argument.as_ref());
        self
    }

    /// A number as the next argument.
    pub fn number(&mut self, number: impl Number) -> &mut Self {
        self.arg(itoa::Buffer::new().format(number))
    }

    /// An entry id as the next argument, `ms-n`.
    pub fn id(&mut self, id: EntryId) -> &mut Self {
        let (text, len) = id_text(id);
        self.arg(&text[..len])
    }
}

impl Drop for Arguments<'_> {
    fn drop(&mut self) {
        debug_assert!(self.left == 0 || std::thread::panicking(), "fewer arguments than announced");
    }
}

/// Writes `ms-n`, as a pipeline does.
impl ToRedisArgs for EntryId {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let (text, len) = id_text(*self);
        out.write_arg(&text[..len]);
    }
}

impl ToSingleRedisArg for EntryId {}

fn bulk(output: &mut Vec<u8>, argument: &[u8]) {
    head(output, b'$', argument.len());
    output.extend_from_slice(argument);
    output.extend_from_slice(b"\r\n");
}

fn head(output: &mut Vec<u8>, kind: u8, count: impl Number) {
    output.push(kind);
    output.extend_from_slice(itoa::Buffer::new().format(count).as_bytes());
    output.extend_from_slice(b"\r\n");
}

/// An entry id as text, and its length in the array.
fn id_text(id: EntryId) -> ([u8; ID_BYTES_MAX], usize) {
    let mut text = [0; ID_BYTES_MAX];
    let mut len = 0;
    for (part, end) in [(id.ms, &b"-"[..]), (id.n, b"")] {
        for piece in [itoa::Buffer::new().format(part).as_bytes(), end] {
            text[len..len + piece.len()].copy_from_slice(piece);
            len += piece.len();
        }
    }
    (text, len)
}

#[cfg(test)]
mod tests {
    use ::redis::{Cmd, cmd};

    use super::*;

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        let mut pipeline = Pipeline::default();
        pipeline.command("XADD", 4).arg("k").id(EntryId::new(12, 0)).arg("data").arg(b"");
        assert_eq!(
            String::from_utf8_lossy(pipeline.bytes()),
            "*5\r\n$4\r\nXADD\r\n$1\r\nk\r\n$4\r\n12-0\r\n$4\r\ndata\r\n$0\r\n\r\n"
        );
    }

    #[test]
    fn the_encoding_is_the_redis_crates() {
        let mut pipeline = Pipeline::default();
        pipeline.command("SET", 5).arg("k").number(-7).number(usize::MAX).number(i64::MIN).id(EntryId::MAX);
        let theirs = cmd("SET").arg("k").arg(-7).arg(usize::MAX).arg(i64::MIN).arg(EntryId::MAX).take();
        assert_eq!(pipeline.bytes(), theirs.get_packed_command());
        let as_text =
            cmd("SET").arg("k").arg(-7).arg(usize::MAX).arg(i64::MIN).arg(EntryId::MAX.to_string()).take();
        assert_eq!(pipeline.bytes(), as_text.get_packed_command());
    }

    #[test]
    fn a_pipeline_is_its_commands() {
        let mut pipeline = Pipeline::default();
        for _ in 0..2 {
            pipeline.clear();
            pipeline.command("XACK", 3).arg("k").arg(b"g").id(EntryId::new(12, 3));
            pipeline.command("XLEN", 1).number(7);
            let commands = [Cmd::xack("k", "g", &[EntryId::new(12, 3)]), Cmd::xlen(7)];
            assert_eq!(pipeline.bytes(), commands.map(|command| command.get_packed_command()).concat());
            assert_eq!(pipeline.len(), 2);
        }
    }
}
