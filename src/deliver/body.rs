//! The body of a request, read as it arrives: with a known length, or in chunks. Pure.
//!
//! The limit of the resource bounds the body. Chunk extensions and trailers are ignored; each line may have
//! `LINE_BYTES_MAX` bytes.

use super::http_error::HttpError;
use super::input::Input;
use super::request::Request;

/// The longest line between chunks, in bytes.
const LINE_BYTES_MAX: usize = 256;
/// The largest number of trailer lines that are ignored.
const TRAILERS_MAX: usize = 16;

/// A body that is being received.
#[derive(Debug)]
pub enum Body {
    /// The remaining bytes of a body of known length.
    Length(usize),
    /// A chunked body.
    Chunked(Chunks),
}

/// The chunks of a body.
#[derive(Debug)]
pub struct Chunks {
    body: Vec<u8>,
    bytes_max: usize,
    expects: Expects,
}

/// The next part of a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    Size,
    /// The remaining bytes of a chunk.
    Data(usize),
    /// The line end after a chunk.
    LineEnd,
    /// The trailer lines after the last chunk, with their number so far.
    Trailer(usize),
}

impl Body {
    /// The body of a request, of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// 413 if its head announces more.
    pub fn of(request: &Request, bytes_max: usize) -> Result<Self, HttpError> {
        if request.is_chunked {
            return Ok(Self::Chunked(Chunks { body: Vec::new(), bytes_max, expects: Expects::Size }));
        }
        let bytes = usize::try_from(request.content_length.unwrap_or(0)).unwrap_or(usize::MAX);
        if bytes > bytes_max { Err(too_large(bytes_max)) } else { Ok(Self::Length(bytes)) }
    }

    /// Whether nothing more has to be received.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        matches!(self, Self::Length(0))
    }

    /// Takes the body's bytes from the input; returns the whole body once it is complete.
    ///
    /// # Errors
    /// 400 or 413 if it is malformed or too large: the end of the body is then unknown.
    pub fn take(&mut self, input: &mut Input) -> Result<Option<Vec<u8>>, HttpError> {
        match self {
            Self::Length(bytes) if input.len() < *bytes => Ok(None),
            Self::Length(bytes) => {
                let body = input.rest()[..*bytes].to_vec();
                input.advance(*bytes);
                Ok(Some(body))
            }
            Self::Chunked(chunks) => chunks.take(input),
        }
    }

    /// How many more bytes to read for the body, if `buffered` were read already: the exact number for a known length,
    /// `if_chunked` for a chunked body.
    #[must_use]
    pub const fn wants(&self, buffered: usize, if_chunked: usize) -> usize {
        match self {
            Self::Length(bytes) => bytes.saturating_sub(buffered),
            Self::Chunked(_) => if_chunked,
        }
    }

    /// The memory that the received part takes, in bytes.
    #[must_use]
    pub const fn cost_bytes(&self) -> usize {
        match self {
            Self::Length(_) => 0,
            Self::Chunked(chunks) => chunks.body.capacity(),
        }
    }
}

impl Chunks {
    fn take(&mut self, input: &mut Input) -> Result<Option<Vec<u8>>, HttpError> {
        let mut at = 0;
        let result = self.advance(input.rest(), &mut at);
        input.advance(at);
        Ok(result?.then(|| std::mem::take(&mut self.body)))
    }

    /// Parses the input as far as it has arrived. Returns whether the body is complete.
    fn advance(&mut self, input: &[u8], at: &mut usize) -> Result<bool, HttpError> {
        loop {
            let rest = &input[*at..];
            match self.expects {
                Expects::Data(bytes) => {
                    let taken = bytes.min(rest.len());
                    self.body.extend_from_slice(&rest[..taken]);
                    *at += taken;
                    if taken < bytes {
                        self.expects = Expects::Data(bytes - taken);
                        return Ok(false);
                    }
                    self.expects = Expects::LineEnd;
                }
                Expects::LineEnd => {
                    let Some(line) = line(rest, at)? else { return Ok(false) };
                    if !line.is_empty() {
                        return Err(malformed());
                    }
                    self.expects = Expects::Size;
                }
                Expects::Size => {
                    let Some(line) = line(rest, at)? else { return Ok(false) };
                    let bytes = size(line).ok_or_else(malformed)?;
                    if self.body.len().saturating_add(bytes) > self.bytes_max {
                        return Err(too_large(self.bytes_max));
                    }
                    self.expects = if bytes == 0 { Expects::Trailer(0) } else { Expects::Data(bytes) };
                }
                Expects::Trailer(lines) => {
                    let Some(line) = line(rest, at)? else { return Ok(false) };
                    if line.is_empty() {
                        return Ok(true);
                    }
                    if lines == TRAILERS_MAX {
                        return Err(malformed());
                    }
                    self.expects = Expects::Trailer(lines + 1);
                }
            }
        }
    }
}

/// A line without its end; `None` if it is incomplete.
fn line<'a>(rest: &'a [u8], at: &mut usize) -> Result<Option<&'a [u8]>, HttpError> {
    let Some(end) = rest.iter().take(LINE_BYTES_MAX).position(|&b| b == b'\n') else {
        return if rest.len() < LINE_BYTES_MAX { Ok(None) } else { Err(malformed()) };
    };
    *at += end + 1;
    rest[..end].strip_suffix(b"\r").map(Some).ok_or_else(malformed)
}

/// The size of a chunk, without extensions.
fn size(line: &[u8]) -> Option<usize> {
    let digits = line.split(|&b| b == b';').next()?.trim_ascii_end();
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn malformed() -> HttpError {
    HttpError::bad_request("the chunks of the body are malformed")
}

fn too_large(bytes_max: usize) -> HttpError {
    HttpError::new(413, "body_too_large", format!("the body has at most {bytes_max} bytes"))
}

#[cfg(test)]
mod tests {
    use super::super::request::{Parsed, parse};
    use super::*;

    const BYTES_MAX: usize = 64 * 1024;

    /// Reads a body from input in pieces of this size. Returns the body and the bytes after it.
    fn read(text: &str, piece: usize) -> Result<Option<(String, String)>, u16> {
        let chunks = Chunks { body: Vec::new(), bytes_max: BYTES_MAX, expects: Expects::Size };
        let (mut body, mut input) = (Body::Chunked(chunks), Input::default());
        let mut pieces = text.as_bytes().chunks(piece);
        while let Some(piece) = pieces.next() {
            input.push(piece);
            if let Some(whole) = body.take(&mut input).map_err(|error| error.status)? {
                pieces.for_each(|piece| input.push(piece));
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                return Ok(Some((text(&whole), text(input.rest()))));
            }
        }
        Ok(None)
    }

    #[test]
    fn chunks_are_joined_regardless_of_how_they_arrive() {
        let text = "5\r\nhello\r\n1;a=\"b\"\r\n \r\n00A \r\n0123456789\r\n0\r\nx: y\r\n\r\nGET /";
        for piece in [1, 2, 3, 7, 1000] {
            let expected = ("hello 0123456789".to_owned(), "GET /".to_owned());
            assert_eq!(read(text, piece), Ok(Some(expected)), "{piece}");
            assert_eq!(read("0\r\n\r\n", piece), Ok(Some((String::new(), String::new()))));
            assert_eq!(read("5\r\nhel", piece), Ok(None));
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        let long = format!("1;{}\r\nx\r\n0\r\n\r\n", "x".repeat(LINE_BYTES_MAX));
        let trailers = format!("0\r\n{}\r\n", "a: b\r\n".repeat(TRAILERS_MAX + 1));
        for text in [
            "x\r\n\r\n",
            "-1\r\n",
            "+1\r\nx",
            "\r\n",
            "1\r\nxx\r\n0\r\n\r\n",
            "1\nx\r\n",
            "fffffffff\r\n",
            &long,
            &trailers,
        ] {
            assert_eq!(read(text, 1000), Err(400), "{text}");
        }
        assert_eq!(read("ffffff\r\nx", 1), Err(413));
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_at_once() {
        let of = |len: &str| {
            let head = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {len}\r\n\r\n");
            let Parsed::Complete { request, .. } = parse(head.as_bytes()) else { panic!("{len}") };
            Body::of(&request, 100).map(|body| body.wants(0, 0)).map_err(|error| (error.status, error.code))
        };
        assert_eq!((of("0"), of("100")), (Ok(0), Ok(100)));
        let too_large = Err((413, "body_too_large"));
        assert_eq!((of("101"), of("18446744073709551615")), (too_large, too_large));
    }

    #[test]
    fn a_body_of_known_length_is_taken_whole() {
        let (mut input, mut body) = (Input::default(), Body::Length(5));
        input.push(b"hel");
        assert_eq!((body.take(&mut input).unwrap(), body.wants(input.len(), 100)), (None, 2));
        input.push(b"lo, GET");
        assert_eq!(body.take(&mut input).unwrap().as_deref(), Some(&b"hello"[..]));
        assert_eq!(input.rest(), b", GET");
    }
}
