//! The bare reader: the lowest cost to Redis of a reader of many streams. It has no clients, and it shares a process
//! with the producer, so it knows which streams have new entries without asking Redis.
//!
//! It reads exactly those streams with one XREADGROUP and, in the same round trip, acknowledges the entries of the
//! previous read, with one XACK per stream (with delivery.ack=none: NOACK and no XACK). Between two reads it pauses
//! for three times as long as the last reads took: less frequent reads, which return more entries at once, would cost
//! Redis less.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::judge::Judge;
use crate::load::{MeasuredCpu, Plan, Shared};
use crate::resp::{Item, Reader};
use crate::seen::Seen;
use crate::stage::Result;
use crate::token::now_us;
use crate::wire;

/// The share of Redis' time that the reader uses, and its longest pause.
const DUTY_PERCENT: u32 = 25;
const LINGER_MAX: Duration = Duration::from_millis(20);
/// How long the reader sleeps when no stream has new entries.
const LOOK: Duration = Duration::from_millis(1);
/// How many groups are created in one round trip.
const GROUPS_PER_TRIP: usize = 500;

struct Stream {
    key: String,
    judge: Judge,
    /// The ids to acknowledge, as arguments of a command.
    unacked: Vec<u8>,
    unacked_count: usize,
}

struct Bare<'a> {
    redis: TcpStream,
    acks: bool,
    shared: &'a Shared,
    streams: Vec<Stream>,
    by_key: HashMap<Vec<u8>, usize>,
    /// The streams that the last read requested.
    read: Vec<usize>,
    out: Vec<u8>,
    /// The bytes received and not yet parsed are `used..filled`; the rest is free.
    input: Vec<u8>,
    filled: usize,
    used: usize,
    reader: Reader,
    seen: Seen,
}

/// Creates a group on every stream and reads until it has all that they hold.
pub(crate) fn run(redis: SocketAddr, acks: bool, plan: &Plan, shared: &Shared) -> Result<Seen> {
    let socket = TcpStream::connect(redis)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let numbers = plan.first_stream..plan.first_stream + plan.streams;
    let streams: Vec<_> = numbers
        .map(|number| Stream {
            key: format!("llm:stream:bench-{number}:m"),
            judge: Judge::new(number as u64),
            unacked: Vec::new(),
            unacked_count: 0,
        })
        .collect();
    let keys = streams.iter().enumerate().map(|(index, stream)| (stream.key.clone().into_bytes(), index));
    let mut bare = Bare {
        redis: socket,
        acks,
        shared,
        by_key: keys.collect(),
        streams,
        read: Vec::new(),
        out: Vec::new(),
        input: vec![0; 1024 * 1024],
        filled: 0,
        used: 0,
        reader: Reader::default(),
        seen: Seen::new()?,
    };
    bare.create_groups()?;
    // Reported as clients do: all are connected, and all have received something.
    shared.connected.store(plan.clients, Ordering::Release);
    bare.read_all(plan)?;
    Ok(bare.seen)
}

impl Bare<'_> {
    fn create_groups(&mut self) -> io::Result<()> {
        for streams in self.streams.chunks(GROUPS_PER_TRIP) {
            let commands: String = streams
                .iter()
                .map(|stream| format!("XGROUP CREATE {} g 0 MKSTREAM\r\n", stream.key))
                .collect();
            self.redis.write_all(commands.as_bytes())?;
            let mut answers = vec![0; b"+OK\r\n".len() * streams.len()];
            self.redis.read_exact(&mut answers)?;
            if answers.contains(&b'-') {
                return Err(io::Error::other("Redis refused a group"));
            }
        }
        Ok(())
    }

    fn read_all(&mut self, plan: &Plan) -> Result<()> {
        let mut cost = Duration::ZERO;
        let mut cpu = MeasuredCpu::default();
        while !self.shared.failed() {
            cpu.look(self.shared)?;
            let (from, before) = (Instant::now(), self.seen.received);
            let news = self.streams.iter().zip(&self.shared.written);
            self.read = news
                .enumerate()
                .filter(|(_, (stream, written))| stream.judge.next() < written.load(Ordering::Acquire))
                .map(|(index, _)| index)
                .collect();
            if self.read.is_empty() {
                if self.shared.totals.get().is_some() {
                    break;
                }
                std::thread::sleep(LOOK);
                continue;
            }
            self.trip()?;
            self.shared.delivered.store(self.seen.received, Ordering::Release);
            if self.streams.iter().all(|stream| stream.judge.has_begun()) {
                self.shared.started.store(plan.clients, Ordering::Release);
            }
            let entries = usize::try_from(self.seen.received - before)?;
            let took = from.elapsed();
            cost = if cost.is_zero() { took } else { (cost * 3 + took) / 4 };
            if entries > 0 {
                std::thread::sleep((cost * (100 - DUTY_PERCENT) / DUTY_PERCENT).min(LINGER_MAX));
            }
        }
        self.seen.cpu = cpu.used();
        let totals = self.shared.totals.get().map_or(&[][..], Vec::as_slice);
        self.seen.lost =
            self.streams.iter().zip(totals).map(|(stream, &total)| stream.judge.lost(total)).sum();
        Ok(())
    }

    /// Acknowledges the entries of the previous round trip and reads the streams with new entries.
    fn trip(&mut self) -> Result<()> {
        self.out.clear();
        for stream in self.streams.iter_mut().filter(|stream| stream.unacked_count > 0) {
            write!(self.out, "*{}\r\n$4\r\nXACK\r\n", 3 + std::mem::take(&mut stream.unacked_count))?;
            wire::bulk(&mut self.out, stream.key.as_bytes())?;
            wire::bulk(&mut self.out, b"g")?;
            self.out.append(&mut stream.unacked);
        }
        let (options, words): (&[u8], _) = if self.acks { (b"", 5) } else { (b"$5\r\nNOACK\r\n", 6) };
        write!(self.out, "*{}\r\n$10\r\nXREADGROUP\r\n$5\r\nGROUP\r\n", words + 2 * self.read.len())?;
        self.out.extend_from_slice(b"$1\r\ng\r\n$1\r\nc\r\n");
        self.out.extend_from_slice(options);
        wire::bulk(&mut self.out, b"STREAMS")?;
        for &stream in &self.read {
            wire::bulk(&mut self.out, self.streams[stream].key.as_bytes())?;
        }
        for _ in &self.read {
            wire::bulk(&mut self.out, b">")?;
        }
        self.redis.write_all(&self.out)?;
        let mut current = 0;
        while !self.take(&mut current)? {
            self.input.copy_within(self.used..self.filled, 0);
            self.filled -= std::mem::take(&mut self.used);
            if self.filled == self.input.len() {
                self.input.resize(self.filled * 2, 0);
            }
            let n = self.redis.read(&mut self.input[self.filled..])?;
            if n == 0 {
                return Err("Redis closed the bare reader's connection".into());
            }
            self.filled += n;
        }
        Ok(())
    }

    /// Parses the bytes received. Returns whether the answer to the read is complete.
    fn take(&mut self, current: &mut usize) -> Result<bool> {
        let now = now_us();
        self.seen.look(self.shared);
        while let Some(item) = self.reader.next(&self.input[..self.filled], &mut self.used)? {
            match item {
                Item::Stream(key) => {
                    *current = *self.by_key.get(key).ok_or("an answer about another stream")?
                }
                Item::Entry { id, value } => {
                    let stream = &mut self.streams[*current];
                    if self.acks {
                        wire::bulk(&mut stream.unacked, id)?;
                        stream.unacked_count += 1;
                    }
                    let seen = &mut self.seen;
                    let whole = wire::tokens(value, |token| {
                        seen.take(stream.judge.take(token), token, now);
                    });
                    seen.frames += 1;
                    if !whole {
                        seen.surprise(String::from_utf8_lossy(value));
                    }
                }
                Item::ReplyEnd => return Ok(true),
                Item::Done | Item::News(_) => continue,
            }
            if self.reader.ends().1 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
