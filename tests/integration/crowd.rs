//! Crowds that join at once, each viewer with another `after`, also within raw entries with several frames, while the
//! producer writes, the answer ends by itself, or the stream is recreated: no viewer loses, repeats or reorders
//! anything, and none is left waiting.

use std::net::Shutdown;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::patience::{PATIENCE, wait_until};
use crate::support::producer::Producer;
use crate::support::random::Random;
use crate::support::redis::RedisServer;
use crate::support::transcript::{Ending, Transcript, right_after};
use crate::support::viewer::{KINDS, Kind, Viewer, view};

const SEED: u64 = 77;
const ENTRIES: usize = 1_500;
const WAVES: usize = 15;
const CROWD: usize = 12;
/// How many viewers join after an end.
const LATE: usize = 60;

/// A piece of text: its channel, its choice, and its characters.
type Piece = (&'static str, u64, String);

/// The content of the n-th entry: several channels, one channel twice, one piece, several choices, or nothing.
fn pieces_of(number: usize) -> Vec<Piece> {
    let piece = |channel, index, mark: char| (channel, index, format!("{mark}{number} "));
    match number % 6 {
        0 => vec![piece("reasoning", 0, 'r'), piece("content", 0, 'a'), piece("content", 1, 'b')],
        1 | 2 => vec![piece("content", 0, 'c')],
        3 => vec![piece("content", 0, 'd'), piece("content", 0, 'e'), piece("content", 0, 'f')],
        4 => Vec::new(),
        _ => vec![piece("content", 0, 'g'), piece("refusal", 0, 'h')],
    }
}

fn payload(pieces: &[Piece], finish: Option<&str>) -> String {
    let name = |channel| if channel == "reasoning" { "reasoning_content" } else { channel };
    let choice = |(channel, index, text): &Piece| json!({"index": index, "delta": {(name(*channel)): text}});
    let mut choices: Vec<Value> = pieces.iter().map(choice).collect();
    for choice in &mut choices {
        choice["finish_reason"] = finish.map_or(Value::Null, Into::into);
    }
    json!({"object": "chat.completion.chunk", "choices": choices}).to_string()
}

/// The positions at which viewers may begin, and the text that follows each.
#[derive(Default)]
struct Written {
    places: Vec<String>,
    pieces: Vec<Piece>,
}

impl Written {
    /// Adds an entry that was written under this id. If it leaves its generation finishing, its last frame has no id
    /// of its own.
    fn add(&mut self, id: &str, pieces: Vec<Piece>, is_finishing: bool) {
        let count = pieces.len();
        for (place, piece) in (1..).zip(pieces) {
            let is_last = place == count && !is_finishing;
            self.places.push(if is_last { id.to_owned() } else { format!("{id}.{place}") });
            self.pieces.push(piece);
        }
    }

    /// The characters that have to follow a position.
    fn after(&self, place: &str) -> Vec<String> {
        let had = self.places.iter().position(|known| known == place).map_or(0, |had| had + 1);
        assert!(had > 0 || place == "0", "{place} is a place");
        let pieces = self.pieces[had..].iter();
        pieces.flat_map(|(channel, index, text)| characters(channel, *index, text)).collect()
    }
}

fn characters(channel: &str, index: u64, text: &str) -> Vec<String> {
    text.chars().map(|char| format!("{channel} {index} {char}")).collect()
}

fn seen(transcript: &Transcript) -> Vec<String> {
    let delta = |value: &Value| {
        let (channel, index) = (value["channel"].as_str().unwrap_or("content"), value["index"].as_u64());
        characters(channel, index.unwrap_or(0), value["text"].as_str().unwrap())
    };
    transcript.of_kind("delta").flat_map(delta).collect()
}

/// Checks that everything after `after` came, once and in order, up to the end.
fn check(transcript: &Transcript, written: &Written, after: &str, end: &str) {
    transcript.expect_finished(end);
    assert!(transcript.of_kind("gap").next().is_none(), "{after}: {:?}", transcript.outline());
    assert!(seen(transcript) == written.after(after), "after {after}: not the rest, in order, once");
}

/// A place of the newest few, or the beginning.
fn choose(random: &mut Random, written: &Mutex<Written>) -> String {
    let written = written.lock().unwrap();
    let newest = written.places.len();
    let back = [3, 30, 300, newest][random.below(4)].min(newest);
    if random.below(12) == 0 {
        "0".to_owned()
    } else {
        written.places[newest - 1 - random.below(back)].clone()
    }
}

#[test]
fn a_crowd_resumes_inside_entries_while_they_are_written() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("stream.finish_grace=0").start();
    let (written, joined) = (Mutex::new(Written::default()), AtomicUsize::new(0));
    let mut producer = Producer::new(&redis, "s1", "m");
    let write = |producer: &mut Producer, number: usize| {
        let pieces = pieces_of(number);
        let mut written = written.lock().unwrap();
        let id = producer.write_fields("*", &[("openai", payload(&pieces, None).as_bytes())]);
        written.add(&id, pieces, false);
    };
    (0..60).for_each(|number| write(&mut producer, number));
    let transcripts = thread::scope(|scope| {
        let mut viewers = Vec::new();
        let mut random = Random::new(SEED);
        for wave in 0..WAVES {
            let count = (ENTRIES - 60) / WAVES;
            for kind in KINDS.into_iter().cycle().take(CROWD) {
                let after = choose(&mut random, &written);
                let (daemon, joined) = (&daemon, &joined);
                viewers.push(scope.spawn(move || {
                    let query = format!("after={after}");
                    let mut viewer = Viewer::open(daemon.public, kind, "s1/m", &query);
                    viewer.expect_open("live");
                    joined.fetch_add(1, Ordering::SeqCst);
                    (after, viewer.read_all())
                }));
            }
            for number in 60 + wave * count..60 + (wave + 1) * count {
                write(&mut producer, number);
                thread::sleep(Duration::from_micros(500));
            }
        }
        wait_until("everybody to be there", || joined.load(Ordering::SeqCst) == WAVES * CROWD);
        producer.write_fields("*", &[("openai", b"[DONE]")]);
        viewers.into_iter().map(|viewer| viewer.join().unwrap()).collect::<Vec<_>>()
    });
    let (written, end) = (written.into_inner().unwrap(), producer.ids.last().unwrap());
    for (after, transcript) in transcripts {
        check(&transcript, &written, &after, end);
    }
    assert_eq!(daemon.counter("entries_undecodable"), 0);
}

#[test]
fn viewers_that_join_while_an_answer_ends_by_itself_get_its_end() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("stream.finish_grace=350ms").start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let mut written = Written::default();
    for number in 0..6 {
        let pieces = pieces_of(number);
        let id = producer.write_fields("*", &[("openai", payload(&pieces, None).as_bytes())]);
        written.add(&id, pieces, false);
    }
    let live = Viewer::open(daemon.public, KINDS[0], "s1/m", "");
    // While a viewer stays, the daemon keeps its state of the stream beyond the end.
    let mut staying = Viewer::open(daemon.public, KINDS[0], "s1/m", "follow=1");
    staying.expect_open("live");
    let pieces = pieces_of(6);
    let id = producer.write_fields("*", &[("openai", payload(&pieces, Some("stop")).as_bytes())]);
    written.add(&id, pieces, true);
    producer.write_fields("*", &[("openai", br#"{"choices":[],"usage":{"n":1}}"#)]);
    // The end is written after the stream's newest entry, even if that has no frame.
    let end = right_after(&producer.write_fields("*", &[("data", br#"{"type":"heartbeat"}"#)]));
    let is_over = AtomicBool::new(false);
    let (done, mut sockets) = (AtomicUsize::new(0), vec![live.socket()]);
    let transcripts = thread::scope(|scope| {
        let (is_over, done) = (&is_over, &done);
        let read = |viewer: Viewer, after: String| {
            move || {
                let transcript = viewer.read_all();
                is_over.store(true, Ordering::SeqCst);
                done.fetch_add(1, Ordering::SeqCst);
                (after, transcript)
            }
        };
        let mut viewers = vec![scope.spawn(read(live, "0".to_owned()))];
        // Until a while after the end, so that viewers join at every moment of it.
        let mut late = 0;
        for (turn, kind) in KINDS.into_iter().cycle().enumerate() {
            late += usize::from(is_over.load(Ordering::SeqCst));
            if late > LATE {
                break;
            }
            let after = written.places[written.places.len() - 1 - turn % 9].clone();
            let viewer = Viewer::open(daemon.public, kind, "s1/m", &format!("after={after}"));
            sockets.push(viewer.socket());
            viewers.push(scope.spawn(read(viewer, after)));
            thread::sleep(Duration::from_millis(3));
        }
        // A viewer that is left waiting gets comments, so its own reads would never time out.
        let until = Instant::now() + PATIENCE;
        while done.load(Ordering::SeqCst) < viewers.len() && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        sockets.iter().for_each(|socket| drop(socket.shutdown(Shutdown::Both)));
        viewers.into_iter().map(|viewer| viewer.join().unwrap()).collect::<Vec<_>>()
    });
    for (after, transcript) in transcripts {
        check(&transcript, &written, &after, &end);
    }
}

/// How often the stream is deleted and recreated.
const ROUNDS: usize = 8;
const LENGTH: usize = 40;

/// The rounds and numbers of a viewer's tokens, and whether a gap came right before each.
fn rounds(transcript: &Transcript) -> Vec<(usize, usize, bool)> {
    let mut tokens = Vec::new();
    let mut after_gap = false;
    for frame in &transcript.frames {
        after_gap |= frame.kind() == "gap";
        for token in frame.value["text"].as_str().unwrap_or_default().split_whitespace() {
            let (round, number) = token.split_once(':').unwrap();
            tokens.push((round.parse().unwrap(), number.parse().unwrap(), std::mem::take(&mut after_gap)));
        }
    }
    tokens
}

#[test]
fn a_stream_begun_anew_under_a_crowd_is_told_from_its_beginning() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut connection = redis.connect();
    let mut ids: Vec<((usize, usize), String)> = Vec::new();
    let mut random = Random::new(SEED);
    let mut staying = None;
    let mut sockets = Vec::new();
    let done = AtomicUsize::new(0);
    let transcripts = thread::scope(|scope| {
        let (daemon, done) = (&daemon, &done);
        let mut viewers = Vec::new();
        for round in 0..ROUNDS {
            for number in 0..LENGTH {
                let data = json!({"type": "delta", "text": format!("{round}:{number} ")}).to_string();
                let add = ["XADD", "llm:stream:s1:m", "*", "data", &data].map(String::from).to_vec();
                if number == 0 {
                    // No viewer finds the name without a stream.
                    let delete = vec!["DEL".to_owned(), "llm:stream:s1:m".to_owned()];
                    let (_, id): (usize, String) = connection.run_at_once(&[delete, add]);
                    ids.push(((round, number), id));
                } else {
                    let command: Vec<&str> = add.iter().map(String::as_str).collect();
                    ids.push(((round, number), connection.run(&command)));
                }
                if staying.is_none() {
                    staying = Some(Viewer::open(daemon.public, KINDS[0], "s1/m", "follow=1"));
                }
                if number % 8 == 3 {
                    let back = [2, 20, 2 * LENGTH][random.below(3)].min(ids.len());
                    let (place, after) = ids[ids.len() - 1 - random.below(back)].clone();
                    let query = format!("after={after}");
                    let viewer = Viewer::open(daemon.public, KINDS[number / 8 % 2], "s1/m", &query);
                    sockets.push(viewer.socket());
                    viewers.push(scope.spawn(move || {
                        let transcript = viewer.read_all();
                        done.fetch_add(1, Ordering::SeqCst);
                        (place, transcript)
                    }));
                }
                thread::sleep(Duration::from_millis(2));
            }
        }
        connection.run::<String>(&["XADD", "llm:stream:s1:m", "*", "data", r#"{"type":"end"}"#]);
        let until = Instant::now() + PATIENCE;
        while done.load(Ordering::SeqCst) < viewers.len() && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        sockets.iter().for_each(|socket| drop(socket.shutdown(Shutdown::Both)));
        viewers.into_iter().map(|viewer| viewer.join().unwrap()).collect::<Vec<_>>()
    });
    for ((round, number), transcript) in transcripts {
        let tokens = rounds(&transcript);
        let mut expected = (round, number + 1);
        for (round, number, after_gap) in &tokens {
            let goes_on = (*round, *number) == expected && !after_gap;
            let begins_anew = *number == 0 && *after_gap && *round >= expected.0;
            assert!(
                goes_on || begins_anew,
                "{round}:{number}, not {expected:?}: {:#?}",
                transcript.outline()
            );
            expected = (*round, number + 1);
        }
        let ending = transcript.ending.unwrap();
        assert!(ending.is_orderly() && transcript.frames.last().unwrap().is_terminal(), "{transcript:#?}");
        assert!(tokens.is_empty() || expected == (ROUNDS - 1, LENGTH), "{:#?}", transcript.outline());
    }
}

#[test]
fn viewers_that_share_a_read_each_get_the_gap_of_their_own_position() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let now_ms = redis.connect().now_ms();
    producer.write_fields(&format!("{now_ms}-0"), &[("data", br#"{"type":"delta","text":"a"}"#)]);
    producer.end();
    // The read for the first viewer begins at the second viewer's position: slightly earlier, and before all entries.
    for _ in 0..5 {
        daemon.signal(libc::SIGSTOP);
        let places = [750, 1_000].map(|earlier| format!("{}-0", now_ms - earlier));
        let viewers = places
            .each_ref()
            .map(|after| Viewer::open(daemon.public, Kind::Sse, "s1/m", &format!("after={after}")));
        daemon.signal(libc::SIGCONT);
        for (after, viewer) in places.iter().zip(viewers) {
            let transcript = viewer.read_all();
            assert_eq!(transcript.open()["after"], after.as_str());
            assert_eq!(transcript.outline(), ["gap recreated null", "delta a", "end stop"]);
        }
    }
}

#[test]
fn nothing_is_given_of_a_stream_that_was_deleted() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    for (round, kind) in KINDS.into_iter().cycle().take(8).enumerate() {
        let mut producer = Producer::new(&redis, &format!("s{round}"), "m");
        producer.start("g");
        producer.tokens(0..9);
        let query = format!("after={}&wait=0", producer.ids[0]);
        let mut viewer = Viewer::open(daemon.public, kind, &producer.stream, &query);
        viewer.read_to(producer.ids.last().unwrap());
        redis.connect().run::<u64>(&["DEL", &producer.key]);
        // The second viewer could be served with what was read for the first a moment ago.
        let late = view(daemon.public, kind, &producer.stream, &query);
        let expected = match kind {
            Kind::WebSocket => Ending::Closed(4404),
            Kind::Sse => Ending::Status(404),
        };
        assert_eq!(late.ending, Some(expected), "{:#?}", late.outline());
        assert_eq!(late.of_kind("delta").count(), 0);
    }
}
