//! The producer: pipelined XADDs over one plain connection, on an open-loop schedule.
//!
//! A token contains the time just before its XADD was written. How late that write was relative to the schedule is
//! measured separately, so that a producer that falls behind is detected and is not mistaken for a fast server.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;

use crate::load::{LATENESS_US_MAX, Manner, MeasuredCpu, Pace, Plan, Shared, Transport};
use crate::publisher::{Feed, Publisher};
use crate::token::{Token, now_us};
use crate::wire::{self, stored_id};

/// How many replies may be outstanding before the producer reads some, on a schedule.
const OUTSTANDING_PACED: usize = 256;
/// How many replies may be outstanding when it writes as fast as possible.
const OUTSTANDING_FLOOD: usize = 1_024;
/// How many tokens of each stream one write of the flood contains.
const FLOOD_ROUNDS: usize = 4;
/// Tokens due within one tick are written together, as producers on one machine would. Shorter ticks would mostly
/// measure how often the bench itself wakes up.
const TICK: Duration = Duration::from_millis(1);
/// How often the producer, while it waits, checks whether it has to stop.
const LOOK: Duration = Duration::from_millis(5);

/// The producer's part of a run's result.
pub(crate) struct Produced {
    /// How many tokens each stream got.
    pub(crate) totals: Vec<u64>,
    /// How late each write was relative to its schedule, µs.
    pub(crate) late_us: Histogram<u64>,
    /// Processor time of the producer's thread within the measured window.
    pub(crate) cpu: Duration,
}

/// How long the keys of ended streams stay; all viewers have everything by then.
const EXPIRY: Duration = Duration::from_secs(30);

struct Producer<'a> {
    redis: TcpStream,
    /// Receives the tokens instead of Redis, if set.
    publisher: Option<Box<dyn Publisher>>,
    shared: &'a Shared,
    first_stream: usize,
    /// Each stream's XADD: the parts in front of the id, and between the id and the value.
    xadds: Vec<[Vec<u8>; 2]>,
    /// Whether tokens get predictable ids ([`stored_id`]), from which late clients resume.
    known_ids: bool,
    totals: Vec<u64>,
    out: Vec<u8>,
    input: Vec<u8>,
    /// The streams of the tokens that have not been written yet.
    unwritten: Vec<usize>,
    outstanding: usize,
    at_line_start: bool,
}

/// Writes one token into every stream once all clients are connected, then follows the plan until it is requested to
/// stop. The feed says whether Redis gets the tokens, or the server that is listening there.
pub(crate) fn run(
    redis: SocketAddr,
    (feed, server): (Feed, SocketAddr),
    plan: &Plan,
    shared: &Shared,
) -> Result<Produced, Box<dyn Error + Send + Sync>> {
    precise_sleep();
    let socket = TcpStream::connect(redis)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut producer = Producer {
        redis: socket,
        publisher: feed.publisher(server)?,
        shared,
        first_stream: plan.first_stream,
        known_ids: false,
        xadds: (0..plan.streams)
            .map(|stream| feed.xadd(plan.first_stream + stream))
            .collect::<std::io::Result<_>>()?,
        totals: vec![0; plan.streams],
        out: Vec::new(),
        input: vec![0; 64 * 1024],
        unwritten: Vec::new(),
        outstanding: 0,
        at_line_start: true,
    };
    let mut late_us = Histogram::new_with_max(LATENESS_US_MAX, 3)?;
    let mut cpu = MeasuredCpu::default();
    match plan.pace {
        Pace::Stored(entries) => producer.store(entries)?,
        Pace::Births { .. } => {}
        _ if plan.manner == Manner::Late => {}
        // Over SSE the response to a request begins only once the stream exists.
        _ if plan.transport == Transport::Sse => producer.round()?,
        _ => {
            if shared.wait_for(|| shared.connected.load(Ordering::Acquire) == plan.clients) {
                producer.round()?;
            }
        }
    }
    if shared.wait_for(|| shared.go.load(Ordering::Acquire)) {
        if plan.backlog > 0 {
            producer.known_ids = plan.manner == Manner::Late;
            producer.store(plan.backlog)?;
            producer.known_ids = false;
        }
        match plan.pace {
            Pace::PerSecond(rate) => producer.scheduled((rate, TICK), &mut late_us, &mut cpu)?,
            Pace::Steps { per_second, every } => {
                producer.scheduled((per_second, every), &mut late_us, &mut cpu)?;
            }
            Pace::Flood => producer.flood(&mut cpu)?,
            Pace::Quiet => producer.quiet()?,
            Pace::Stored(_) => {}
            Pace::Births { announced } => producer.births(announced, plan.duration)?,
        }
    }
    if plan.manner == Manner::Passing {
        producer.end_all()?;
    }
    producer.settle(0)?;
    cpu.look(shared)?;
    Ok(Produced { totals: producer.totals, late_us, cpu: cpu.used() })
}

impl Producer<'_> {
    /// Writes `rate` tokens a second into each stream, spread evenly over each period in ticks.
    fn scheduled(
        &mut self,
        (rate, tick): (f64, Duration),
        late_us: &mut Histogram<u64>,
        cpu: &mut MeasuredCpu,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let streams = self.totals.len();
        let per_tick = rate * f64::from(u32::try_from(streams)?) * tick.as_secs_f64();
        let mut due = Instant::now();
        let (mut next, mut owed) = (0, 0.0);
        while !self.shared.stopped() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            owed += per_tick;
            let (now, at_us, wall_us) = (Instant::now(), now_us(), wall_us());
            while owed > 1.0 - 1e-9 {
                late_us.saturating_record(u64::try_from((now - due).as_micros())?);
                self.token(next, at_us, wall_us)?;
                next = (next + 1) % streams;
                owed -= 1.0;
            }
            self.write()?;
            self.settle(OUTSTANDING_PACED)?;
            cpu.look(self.shared)?;
            due += tick;
        }
        Ok(())
    }

    fn flood(&mut self, cpu: &mut MeasuredCpu) -> Result<(), Box<dyn Error + Send + Sync>> {
        while !self.shared.stopped() {
            let (at_us, wall_us) = (now_us(), wall_us());
            for _ in 0..FLOOD_ROUNDS {
                for stream in 0..self.totals.len() {
                    self.token(stream, at_us, wall_us)?;
                }
            }
            self.write()?;
            self.settle(OUTSTANDING_FLOOD)?;
            cpu.look(self.shared)?;
        }
        Ok(())
    }

    /// Creates one stream after another within the time, and the remaining ones at its end.
    fn births(&mut self, announced: bool, time: Duration) -> Result<(), Box<dyn Error + Send + Sync>> {
        let streams = self.totals.len();
        let (from, pause) = (Instant::now(), time / u32::try_from(streams)?);
        for stream in 0..streams {
            let due = from + pause * u32::try_from(stream)?;
            while !self.shared.stopped() && Instant::now() < due {
                std::thread::sleep(due.saturating_duration_since(Instant::now()).min(LOOK));
            }
            self.token(stream, now_us(), wall_us())?;
            if announced {
                self.announce(stream)?;
            }
            self.write()?;
            self.settle(0)?;
        }
        Ok(())
    }

    /// Appends the announcement of a stream.
    fn announce(&mut self, stream: usize) -> std::io::Result<()> {
        let key = format!("llm:stream:bench-{}:m", self.first_stream + stream);
        self.out.extend_from_slice(b"*5\r\n$4\r\nXADD\r\n$12\r\nllm:announce\r\n$1\r\n*\r\n$6\r\nstream\r\n");
        wire::bulk(&mut self.out, key.as_bytes())?;
        self.outstanding += 1;
        Ok(())
    }

    /// Writes nothing, and at the end one token into each stream, to prove that the clients are still connected.
    fn quiet(&mut self) -> Result<(), Box<dyn Error + Send + Sync>> {
        while !self.shared.stopped() {
            std::thread::sleep(LOOK);
        }
        self.round()
    }

    /// Writes this many tokens into each stream, as fast as possible.
    fn store(&mut self, entries: u64) -> Result<(), Box<dyn Error + Send + Sync>> {
        for _ in 0..entries {
            if self.shared.failed() {
                break;
            }
            self.fill()?;
        }
        self.finish()?;
        self.shared.stored.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes one token into each stream and waits for the replies.
    fn round(&mut self) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.fill()?;
        self.finish()
    }

    /// Appends one token for each stream; some may remain unwritten.
    fn fill(&mut self) -> Result<(), Box<dyn Error + Send + Sync>> {
        for stream in 0..self.totals.len() {
            self.token(stream, now_us(), wall_us())?;
            let unwritten = self.publisher.as_ref().map_or(self.out.len(), |publisher| publisher.unwritten());
            if unwritten > 64 * 1024 {
                self.write()?;
                self.settle(OUTSTANDING_FLOOD)?;
            }
        }
        Ok(())
    }

    /// Writes all pending tokens and waits for all replies.
    fn finish(&mut self) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.write()?;
        self.settle(0)
    }

    /// Ends every stream, and lets its key expire.
    fn end_all(&mut self) -> std::io::Result<()> {
        let expiry = EXPIRY.as_secs().to_string();
        for stream in 0..self.totals.len() {
            let end =
                format!("{{\"type\":\"end\",\"seq\":{},\"finish_reason\":\"stop\"}}", self.totals[stream]);
            let [before_id, after_id] = &self.xadds[stream];
            self.out.extend_from_slice(before_id);
            self.out.extend_from_slice(b"$1\r\n*\r\n");
            self.out.extend_from_slice(after_id);
            wire::bulk(&mut self.out, end.as_bytes())?;
            self.out.extend_from_slice(b"*3\r\n$6\r\nEXPIRE\r\n");
            let key = format!("llm:stream:bench-{}:m", self.first_stream + stream);
            wire::bulk(&mut self.out, key.as_bytes())?;
            wire::bulk(&mut self.out, expiry.as_bytes())?;
            self.outstanding += 2;
        }
        self.write()
    }

    /// Appends the XADD of the stream's next token to the output.
    fn token(&mut self, stream: usize, at_us: u64, wall_us: u64) -> std::io::Result<()> {
        let number = self.totals[stream];
        self.totals[stream] += 1;
        self.unwritten.push(stream);
        let stream_number = self.first_stream + stream;
        let token = Token { stream: stream_number as u64, number, at_us };
        let mut value = [0_u8; 160];
        let mut rest = &mut value[..];
        write!(rest, "{{\"type\":\"delta\",\"seq\":{number},\"ts\":{wall_us},\"text\":\"")?;
        rest.write_all(&token.text())?;
        rest.write_all(b"\"}")?;
        let unused = rest.len();
        let value = &value[..value.len() - unused];
        if let Some(publisher) = &mut self.publisher {
            return publisher.put(stream_number, value);
        }
        let [before_id, after_id] = &self.xadds[stream];
        self.out.extend_from_slice(before_id);
        if self.known_ids {
            wire::bulk(&mut self.out, stored_id(number).as_bytes())?;
        } else {
            self.out.extend_from_slice(b"$1\r\n*\r\n");
        }
        self.out.extend_from_slice(after_id);
        write!(self.out, "${}\r\n", value.len())?;
        self.out.extend_from_slice(value);
        self.out.extend_from_slice(b"\r\n");
        self.outstanding += 1;
        Ok(())
    }

    fn write(&mut self) -> std::io::Result<()> {
        match &mut self.publisher {
            Some(publisher) => publisher.write()?,
            None => self.redis.write_all(&self.out)?,
        }
        self.out.clear();
        for stream in self.unwritten.drain(..) {
            self.shared.written[stream].fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    /// Reads replies until at most `limit` are outstanding.
    fn settle(&mut self, limit: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        if let Some(publisher) = &mut self.publisher {
            return publisher.settle(limit);
        }
        while self.outstanding > limit {
            let n = self.redis.read(&mut self.input)?;
            if n == 0 {
                return Err("Redis closed the producer's connection".into());
            }
            for &byte in &self.input[..n] {
                if self.at_line_start && byte == b'-' {
                    return Err("Redis refused an XADD".into());
                }
                self.outstanding -= usize::from(self.at_line_start && matches!(byte, b'$' | b':'));
                self.at_line_start = byte == b'\n';
            }
        }
        Ok(())
    }
}

fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Asks the kernel not to round this thread's sleeps up by its usual 50 µs. If it refuses, sleeps are less precise.
fn precise_sleep() {
    // SAFETY: PR_SET_TIMERSLACK takes one number, accesses no memory and affects only the calling thread.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000) };
}
