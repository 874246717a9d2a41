//! Commands, encoded as they are built.

use std::fmt;

pub use itoa::Integer as Number;

use crate::model::EntryId;

/// The longest entry id, in bytes.
const ID_BYTES_MAX: usize = 41;
/// The buffer that a pipeline keeps between two uses, in bytes.
const PIPELINE_KEPT_BYTES: usize = 256 * 1024;

/// One command: a name and its arguments, already in the form in which they are sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Command {
    /// Arguments so far, the name included.
    count: u64,
    /// The arguments as bulk strings, without the array head in front of them.
    body: Vec<u8>,
}

impl Command {
    /// A command without arguments. A subcommand is its first argument.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { count: 0, body: Vec::with_capacity(128) }.arg(name)
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<[u8]>) -> Self {
        self.add(argument.as_ref());
        self
    }

    /// Several more arguments.
    #[must_use]
    pub fn args<A: AsRef<[u8]>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        for argument in arguments {
            self.add(argument.as_ref());
        }
        self
    }

    /// A number as the next argument.
    #[must_use]
    pub fn number(mut self, number: impl Number) -> Self {
        self.add(itoa::Buffer::new().format(number).as_bytes());
        self
    }

    /// An entry id as the next argument, `ms-n`.
    #[must_use]
    pub fn id(mut self, id: EntryId) -> Self {
        let (text, len) = id_text(id);
        self.add(&text[..len]);
        self
    }

    /// The command's name.
    #[must_use]
    pub fn name(&self) -> &str {
        // The body begins with `$<len>\r\n<name>\r\n`.
        let name = self.body.split(|&b| b == b'\n').nth(1).and_then(|line| line.strip_suffix(b"\r"));
        name.and_then(|name| std::str::from_utf8(name).ok()).unwrap_or("a command")
    }

    fn add(&mut self, argument: &[u8]) {
        self.count += 1;
        bulk(&mut self.body, argument);
    }

    /// Appends the whole command.
    pub(super) fn encode(&self, output: &mut Vec<u8>) {
        head(output, b'*', self.count);
        output.extend_from_slice(&self.body);
    }
}

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

/// Without the arguments, which may be secrets or a user's text.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {} arguments", self.name(), self.count - 1)
    }
}

/// Commands one behind the other in one buffer, which is used again: for paths on which an allocation for each
/// command counts.
#[derive(Debug, Default)]
pub struct Pipeline {
    bytes: Vec<u8>,
    commands: usize,
}

impl Pipeline {
    /// Begins anew. Unless it has grown very large the buffer is kept.
    pub fn clear(&mut self) {
        self.commands = 0;
        self.bytes.clear();
        self.bytes.shrink_to(PIPELINE_KEPT_BYTES);
    }

    /// How many commands there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.commands
    }

    /// Whether there is no command.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.commands == 0
    }

    /// Begins a command, which `arguments` arguments must follow.
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

/// An entry id as text, and how many bytes of the array it takes.
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
    use super::*;

    fn encoded(command: &Command) -> String {
        let mut output = Vec::new();
        command.encode(&mut output);
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        let command = Command::new("XADD").arg("k").id(EntryId::new(12, 0)).arg("data").arg(b"");
        assert_eq!(
            encoded(&command),
            "*5\r\n$4\r\nXADD\r\n$1\r\nk\r\n$4\r\n12-0\r\n$4\r\ndata\r\n$0\r\n\r\n"
        );
        assert_eq!(
            encoded(&Command::new("DEL").args(["a", "b"])),
            "*3\r\n$3\r\nDEL\r\n$1\r\na\r\n$1\r\nb\r\n"
        );
    }

    #[test]
    fn the_encoding_is_the_redis_crates() {
        let ours =
            Command::new("SET").arg("k").number(-7).number(usize::MAX).number(i64::MIN).id(EntryId::MAX);
        let theirs = ::redis::cmd("SET")
            .arg("k")
            .arg(-7)
            .arg(usize::MAX)
            .arg(i64::MIN)
            .arg(EntryId::MAX.to_string())
            .get_packed_command();
        assert_eq!(encoded(&ours).into_bytes(), theirs);
    }

    #[test]
    fn a_pipeline_is_its_commands() {
        let mut pipeline = Pipeline::default();
        for _ in 0..2 {
            pipeline.clear();
            pipeline.command("XACK", 3).arg("k").arg(b"g").id(EntryId::new(12, 3));
            pipeline.command("XLEN", 1).number(7);
            let one = Command::new("XACK").arg("k").arg("g").id(EntryId::new(12, 3));
            assert_eq!(
                pipeline.bytes(),
                (encoded(&one) + &encoded(&Command::new("XLEN").number(7))).as_bytes()
            );
            assert_eq!(pipeline.len(), 2);
        }
    }

    #[test]
    fn arguments_stay_out_of_logs() {
        assert_eq!(format!("{:?}", Command::new("AUTH").arg("secret")), "AUTH with 1 arguments");
    }
}
