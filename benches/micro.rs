//! The steps that a token passes through, each measured alone, in nanoseconds per entry or frame.
//!
//! `cargo bench --bench micro` measures; with `-- --test` each step runs once, as a smoke test. `end_to_end` measures
//! the whole path, with sockets and Redis.

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use llm_bridge::decode::{Assembler, DecodeContext, plain};
use llm_bridge::deliver::outbox::{Chunk, Outbox};
use llm_bridge::deliver::websocket::{Decoder, Incoming, text_frame};
use llm_bridge::model::{Entry, EntryId, Fields, Frame, Position, StreamName, StreamState, merge};
use llm_bridge::provider::Margin;
use llm_bridge::redis::Reply;
use redis::FromRedisValue as _;
use redis::streams::StreamReadReply;
use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};

/// How many entries a batch has.
const BATCH: u64 = 64;
/// The text of a measured token: 35 bytes, as in `end_to_end`.
const TEXT: &str = "the quick brown fox jumps over them";

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for steps in [resp, decoding, assembling, encoding, delivering, websocket] {
        steps(&mut criterion);
    }
    criterion.final_summary();
}

fn native(number: u64, text: &str) -> String {
    format!(r#"{{"type":"delta","seq":{number},"ts":1763800000000000,"text":"{text}"}}"#)
}

fn entry(number: u64, data: &str) -> Entry {
    let fields = Fields::from_pairs(&[(b"data", data.as_bytes())]);
    Entry { id: EntryId::new(1_763_800_000_000, number), fields }
}

/// The same entry, with fields.
fn flat(number: u64) -> Entry {
    let seq = number.to_string();
    let fields: [(&[u8], &[u8]); 4] = [
        (b"type", b"chunk"),
        (b"content", TEXT.as_bytes()),
        (b"seq", seq.as_bytes()),
        (b"ts", b"1763800000000000"),
    ];
    Entry { id: EntryId::new(1_763_800_000_000, number), fields: Fields::from_pairs(&fields) }
}

fn batch() -> Vec<Entry> {
    (0..BATCH).map(|number| entry(number, &native(number, TEXT))).collect()
}

fn assembler() -> Assembler {
    let name = StreamName::new("session", "model").expect("both parts keep the rule for names");
    Assembler::new(name, Position::ZERO, StreamState::default())
}

/// A frame for each entry.
fn frames() -> Vec<Arc<Frame>> {
    let mut assembler = assembler();
    for entry in batch() {
        assembler.push(&entry, 1);
        assembler.cut();
    }
    assembler.take(2)
}

/// The reply to an XREADGROUP: `streams` streams with `entries` new entries each.
fn answer(streams: u64, entries: u64) -> Bytes {
    let mut answer = format!("*{streams}\r\n");
    for stream in 0..streams {
        let key = format!("llm:stream:session-{stream}:model");
        write!(answer, "*2\r\n${}\r\n{key}\r\n*{entries}\r\n", key.len()).expect("a String takes everything");
        for number in 0..entries {
            let (id, data) = (EntryId::new(1_763_800_000_000, number).to_string(), native(number, TEXT));
            write!(
                answer,
                "*2\r\n${}\r\n{id}\r\n*2\r\n$4\r\ndata\r\n${}\r\n{data}\r\n",
                id.len(),
                data.len()
            )
            .expect("a String takes everything");
        }
    }
    answer.into()
}

fn resp(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("resp");
    for (name, streams, entries) in [("1x1", 1, 1), ("64x1", BATCH, 1), ("1x64", 1, BATCH)] {
        let answer = answer(streams, entries);
        let read = || Reply::parse(black_box(answer.clone())).and_then(|reply| reply.streams());
        assert_eq!(read().map(|streams| streams.len() as u64).ok(), Some(streams), "{name}");
        group.throughput(Throughput::Elements(streams * entries));
        group.bench_function(BenchmarkId::new("stream_entries", name), |bencher| bencher.iter(read));
        // The same entries parsed by the crate: it builds a tree with an allocation for each string and list, and
        // from that a map with owned names and values for each entry.
        let read = || {
            let value = redis::parse_redis_value(black_box(&answer)).ok()?;
            StreamReadReply::from_redis_value(value).ok()
        };
        assert_eq!(read().map(|read| read.keys.len() as u64), Some(streams), "{name}");
        group.bench_function(BenchmarkId::new("redis_crate", name), |bencher| bencher.iter(read));
    }
    group.finish();
}

fn decoding(criterion: &mut Criterion) {
    let escaped = r#"\"the quick\"\n\tbrown \u00e4 fox\\ jumps"#;
    let tool = r#"{"type":"tool_call","index":0,"id":"call_9","name":"search","arguments":"{\"q\":"}"#;
    let inputs = [
        ("delta", native(7, TEXT)),
        ("delta_escaped", native(7, escaped)),
        ("delta_4k", native(7, &TEXT.repeat(117))),
        ("tool_call", tool.to_owned()),
        ("malformed", r#"{"type":"delta","seq":-1}"#.to_owned()),
    ];
    let context = DecodeContext::default();
    let mut group = criterion.benchmark_group("decode");
    for (name, data) in inputs {
        let entry = entry(7, &data);
        let decodes = |entry: &Entry| plain(entry, &context, &Margin::default()).is_some();
        assert_eq!(decodes(&entry), name != "malformed", "{name}");
        group.throughput(Throughput::Bytes(data.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| decodes(black_box(&entry))));
    }
    let flat = flat(7);
    group.throughput(Throughput::Bytes(flat.fields.values_bytes() as u64));
    group.bench_function("flat", |bencher| {
        bencher.iter(|| plain(black_box(&flat), &context, &Margin::default()).is_some());
    });
    group.finish();
}

fn assembling(criterion: &mut Criterion) {
    let (entries, frames) = (batch(), frames());
    let flat_entries: Vec<Entry> = (0..BATCH).map(flat).collect();
    let mut group = criterion.benchmark_group("assemble");
    group.throughput(Throughput::Elements(BATCH));
    for (name, entries) in [("merged", &entries), ("merged_flat", &flat_entries)] {
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                assembler,
                |assembler| {
                    for entry in entries {
                        assembler.push(entry, 1);
                    }
                    assembler.take(2)
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.bench_function("apart", |bencher| {
        bencher.iter_batched_ref(
            assembler,
            |assembler| {
                for entry in &entries {
                    assembler.push(entry, 1);
                    assembler.cut();
                }
                assembler.take(2)
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("merge_frames", |bencher| bencher.iter(|| merge(black_box(&frames))));
    group.finish();
}

/// Formats a frame for one kind of client and returns the length in bytes.
type Form = fn(&Frame) -> usize;

fn encoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Elements(BATCH));
    let forms: [(&str, Form); 3] = [
        // This form is made together with the frame, so only sharing it is measured.
        ("websocket_shared", |frame| frame.websocket().len()),
        ("sse", |frame| frame.sse().len()),
        ("multiplexed", |frame| frame.multiplexed().len()),
    ];
    for (name, form) in forms {
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                frames,
                |frames| frames.iter().map(|frame| form(frame)).sum::<usize>(),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// Accepts everything at once, like a socket with room.
struct Sink;

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(black_box(bytes).len())
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(black_box(pieces).iter().map(|piece| piece.len()).sum())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A frame queued for a client.
struct Shared(Arc<Frame>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.websocket()
    }
}

fn delivering(criterion: &mut Criterion) {
    let frames = frames();
    let mut group = criterion.benchmark_group("outbox");
    for (name, count) in [("one_frame", 1), ("64_frames", frames.len())] {
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                Outbox::<Shared>::new,
                |outbox| {
                    for frame in &frames[..count] {
                        outbox.push(Chunk::Marked(Shared(Arc::clone(frame))));
                    }
                    let mut written = 0;
                    let outcome = outbox.write_to(&mut Sink, usize::MAX, &mut |_| written += 1);
                    (outcome.is_ok(), written)
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// A client's text message, masked as all frames of clients are.
fn masked(text: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![0x81];
    match u8::try_from(text.len()) {
        Ok(len @ 0..=125) => frame.push(0x80 | len),
        _ => {
            frame.push(0x80 | 126);
            let len = u16::try_from(text.len()).expect("the bench's messages are short");
            frame.extend_from_slice(&len.to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    frame.extend(text.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A client that has sent these bytes and sends no more; it accepts everything.
struct Peer {
    bytes: Vec<u8>,
    read: usize,
}

impl Peer {
    /// The crate's server socket for such a client. `None`: with the crate's default read buffer.
    fn socket(bytes: &[u8], read_buffer_bytes: Option<usize>) -> WebSocket<Self> {
        let mut config = WebSocketConfig::default();
        if let Some(bytes) = read_buffer_bytes {
            config = config.read_buffer_size(bytes);
        }
        let peer = Self { bytes: bytes.to_vec(), read: 0 };
        WebSocket::from_raw_socket(peer, Role::Server, Some(config))
    }
}

impl io::Read for Peer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = &self.bytes[self.read..];
        if rest.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        self.read += len;
        Ok(len)
    }
}

impl io::Write for Peer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(black_box(bytes).len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The bytes that this process has allocated and not freed.
fn allocated_bytes() -> usize {
    // SAFETY: it has no arguments and returns a struct of numbers.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

/// Prints the memory of a connection whose client has sent one message and now listens, as most do.
#[allow(clippy::print_stdout, reason = "a result of the bench, for which criterion has no measure")]
fn websocket_memory(bytes: &[u8]) {
    fn each<T>(make: impl Fn() -> T) -> usize {
        const CONNECTIONS: usize = 1_000;
        let before = allocated_bytes();
        let kept: Vec<T> = (0..CONNECTIONS).map(|_| make()).collect();
        let after = allocated_bytes();
        drop(kept);
        after.saturating_sub(before) / CONNECTIONS
    }
    let ours = each(|| {
        let mut decoder = Decoder::new();
        let message = decoder.next(&mut &bytes[..]).expect("the message is well formed");
        assert!(message.is_some());
        decoder
    });
    let crates = |read_buffer_bytes| {
        each(|| {
            let mut socket = Peer::socket(bytes, read_buffer_bytes);
            let message = socket.read().expect("the message is well formed");
            assert!(message.is_text());
            socket
        })
    };
    println!(
        "websocket: bytes of a connection that listens: {ours}; tungstenite {}, with a read buffer of 4 KiB {}",
        crates(None),
        crates(Some(4096))
    );
}

fn websocket(criterion: &mut Criterion) {
    let ack = br#"{"type":"ack","id":"1763800000040-0"}"#;
    let mut group = criterion.benchmark_group("websocket");
    for (name, message) in [("decode_ack", ack.to_vec()), ("decode_16k", vec![b'x'; 16 * 1024])] {
        let bytes = masked(&message);
        let text = String::from_utf8(message).expect("the bench's messages are text");
        assert_eq!(Decoder::new().next(&mut &bytes[..]), Ok(Some(Incoming::Text(text))), "{name}");
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |bencher| {
            let mut decoder = Decoder::new();
            bencher.iter(|| decoder.next(&mut black_box(&bytes[..])).is_ok_and(|message| message.is_some()));
        });
        group.bench_function(format!("tungstenite_{name}"), |bencher| {
            let mut socket = Peer::socket(&bytes, None);
            bencher.iter(|| {
                socket.get_mut().read = 0;
                socket.read().is_ok_and(|message| message.is_text())
            });
        });
    }
    let text = native(7, TEXT);
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode_text", |bencher| bencher.iter(|| text_frame(black_box(&text))));
    // The daemon's form is made once for all viewers of a stream; the crate's is made for each viewer.
    group.bench_function("tungstenite_encode_text", |bencher| {
        let mut socket = Peer::socket(&[], None);
        let message = tungstenite::Message::text(text.clone());
        bencher.iter(|| socket.send(black_box(message.clone())).is_ok());
    });
    group.finish();
    websocket_memory(&masked(ack));
}
