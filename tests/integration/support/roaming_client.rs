//! Viewers that lose their connection again and again and resume with their last id, at this instance or another. The
//! frames of all their connections form one log per stream, which is compared with the ledger of the stream's
//! producer.

use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::producer::{Item, LAST, Ledger};
use super::random::Random;
use super::transcript::{Ending, Frame, Transcript, id_order};
use super::viewer::{Kind, Viewer};
use super::websocket::{Incoming, WebSocketClient};

/// How long a viewer waits after it was refused, or found nothing new.
const PAUSE: Duration = Duration::from_millis(20);

/// How much of a frame is shown in a failure.
const SHOWN: usize = 160;

/// The two instances that viewers move between.
pub(crate) struct World {
    publics: [SocketAddr; 2],
    /// How often each instance has ended, times two, plus one while it is ending.
    ends: [AtomicUsize; 2],
    /// A thread has failed, and all others have to stop.
    pub(crate) is_abandoned: AtomicBool,
}

impl World {
    pub(crate) fn new(publics: [SocketAddr; 2]) -> Self {
        Self { publics, ends: Default::default(), is_abandoned: AtomicBool::new(false) }
    }

    /// Lets an instance end, which excuses it for cutting its viewers.
    pub(crate) fn end(&self, instance: usize, end: impl FnOnce()) {
        self.ends[instance].fetch_add(1, Ordering::SeqCst);
        end();
        self.ends[instance].fetch_add(1, Ordering::SeqCst);
    }

    fn ends(&self, instance: usize) -> usize {
        self.ends[instance].load(Ordering::SeqCst)
    }

    pub(crate) fn abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::SeqCst)
    }
}

/// A thread that panics while holding it makes all others stop.
pub(crate) struct Together<'a>(pub(crate) &'a World);

impl Drop for Together<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.is_abandoned.store(true, Ordering::SeqCst);
        }
    }
}

/// How a viewer's current connection is disturbed from outside.
#[derive(Default)]
pub(crate) struct ConnectionFault(Mutex<Hold>);

#[derive(Default)]
struct Hold {
    socket: Option<TcpStream>,
    is_cut: bool,
    rest: Option<Duration>,
}

impl ConnectionFault {
    /// Cuts the connection.
    pub(crate) fn cut(&self) {
        let mut hold = self.0.lock().unwrap();
        hold.is_cut = true;
        if let Some(socket) = hold.socket.take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Makes the viewer read nothing for `time`.
    pub(crate) fn rest(&self, time: Duration) {
        self.0.lock().unwrap().rest = Some(time);
    }

    fn tie(&self, socket: TcpStream) {
        let mut hold = self.0.lock().unwrap();
        hold.socket = Some(socket);
        hold.is_cut = false;
    }

    fn is_cut(&self) -> bool {
        self.0.lock().unwrap().is_cut
    }

    fn rest_if_told(&self) {
        let rest = self.0.lock().unwrap().rest.take();
        if let Some(time) = rest {
            thread::sleep(time);
        }
    }
}

/// The frames of one viewer of one stream, over all of its connections.
#[allow(clippy::struct_excessive_bools, reason = "three independent facts about one viewer")]
pub(crate) struct Log {
    /// The viewer's name, for messages about failures.
    pub(crate) name: String,
    pub(crate) stream: String,
    follow: bool,
    batch_ms: usize,
    /// The frames with an id, and between them the `open` frames and the gaps, in order.
    pub(crate) seen: Vec<Frame>,
    /// Everything that arrived, and on which connection.
    pub(crate) story: Vec<String>,
    cursor: String,
    connection: Transcript,
    /// Whether it has asked to be unsubscribed.
    is_leaving: bool,
    is_finished: bool,
}

impl Log {
    pub(crate) fn new(name: String, stream: &str, random: &mut Random) -> Self {
        Self {
            name,
            stream: stream.to_owned(),
            follow: !random.once_in(3),
            batch_ms: random.pick(&[0, 0, 5, 50, 200]),
            seen: Vec::new(),
            story: Vec::new(),
            cursor: "0".into(),
            connection: Transcript::default(),
            is_leaving: false,
            is_finished: false,
        }
    }

    /// The story around the n-th frame.
    fn around(&self, number: usize) -> String {
        let raw: Option<String> = self.seen.get(number).map(|frame| frame.raw.chars().take(SHOWN).collect());
        let line = self.story.iter().position(|line| Some(line) == raw.as_ref()).unwrap_or(self.story.len());
        self.story[line.saturating_sub(30)..(line + 10).min(self.story.len())].join("\n")
    }

    fn query(&self) -> String {
        let follow = if self.follow { "&follow=1" } else { "" };
        format!("after={}&batch_ms={}{follow}", self.cursor, self.batch_ms)
    }

    fn begin(&mut self, instance: usize) {
        self.story.push(format!("--- to instance {instance} after {}", self.cursor));
        self.connection = Transcript::default();
        self.is_leaving = false;
    }

    /// Takes the next frame of the current connection.
    fn push(&mut self, frame: Frame) {
        self.story.push(frame.raw.chars().take(SHOWN).collect());
        let is_first = self.connection.last_id().is_none();
        self.connection.push(frame.clone(), None);
        if frame.kind() == "open" {
            let (asked, after) = (id_order(&self.cursor), id_order(frame.value["after"].as_str().unwrap()));
            assert_eq!(asked, after, "{}: asked for {}, {}", self.name, self.cursor, frame.raw);
        }
        if let Some(id) = frame.id() {
            // A viewer that resumes at the end without following gets the end again.
            let is_repeated = is_first && !self.follow && frame.is_terminal() && id == self.cursor;
            if is_repeated {
                return;
            }
            let grows = id_order(&self.cursor) < id_order(id);
            assert!(grows, "{}: ids grow over connections: {} after {}", self.name, frame.raw, self.cursor);
            id.clone_into(&mut self.cursor);
        }
        if frame.value["finish_reason"] == LAST {
            self.is_finished = true;
        }
        if frame.id().is_some() || matches!(frame.kind(), "open" | "gap") {
            self.seen.push(frame);
        }
    }

    /// Whether the connection, or the subscription, may be ended because the answer is complete.
    fn is_over(&self) -> bool {
        let last = self.connection.frames.iter().rfind(|frame| frame.kind() != "status");
        !self.follow && last.is_some_and(Frame::is_terminal)
    }

    fn expect_over(&self) {
        assert!(self.is_over(), "{}: ended in order after {:?}", self.name, self.connection.frames.last());
    }

    fn was_draining(&self) -> bool {
        self.connection.frames.last().is_some_and(|frame| frame.value["state"] == "draining")
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if thread::panicking() && thread::current().name() == Some(&self.name) {
            let newest = self.story.len().saturating_sub(40);
            eprintln!("--- {}, from its {newest}th line\n{}", self.name, self.story[newest..].join("\n"));
        }
    }
}

/// A viewer that joins when all is over, and stays.
pub(crate) fn witness(public: SocketAddr, kind: Kind, mut log: Log) -> (Viewer, Log) {
    log.follow = true;
    log.begin(usize::MAX);
    let mut viewer = Viewer::open(public, kind, &log.stream, &log.query());
    while !log.is_finished {
        let Some(frame) = viewer.next() else { panic!("{}: {:?}", log.name, viewer.transcript.ending) };
        log.push(frame.clone());
    }
    (viewer, log)
}

/// A viewer that is connected or about to connect.
pub(crate) struct RoamingClient<'a> {
    pub(crate) world: &'a World,
    pub(crate) fault: &'a ConnectionFault,
    pub(crate) random: Random,
}

/// A connection's place in time: whether its end is excused.
struct Stay {
    instance: usize,
    ends: usize,
}

impl RoamingClient<'_> {
    /// Views one stream until its last terminal frame.
    pub(crate) fn view(mut self, kind: Kind, mut logs: Vec<Log>) -> Vec<Log> {
        let [log] = &mut *logs else { panic!("one stream a connection") };
        while !log.is_finished && !self.world.abandoned() {
            let stay = self.arrive();
            let public = self.world.publics[stay.instance];
            let Some(viewer) = Viewer::try_open(public, kind, &log.stream, &log.query()) else {
                thread::sleep(PAUSE);
                continue;
            };
            self.fault.tie(viewer.socket());
            log.begin(stay.instance);
            let ending = self.read(viewer, log);
            log.story.push(format!("--- {ending:?}"));
            match ending {
                None => {}
                Some(Ending::Cut) => self.expect_excused(&log.name, &stay),
                Some(Ending::Status(503)) => {}
                Some(Ending::Closed(1001)) => assert!(log.was_draining(), "{}: told nothing", log.name),
                Some(Ending::Complete) if log.was_draining() => {}
                Some(Ending::Complete) if !log.is_over() => self.expect_excused(&log.name, &stay),
                Some(Ending::Closed(1000) | Ending::Complete) => log.expect_over(),
                Some(Ending::Status(204)) => {
                    let last = log.seen.iter().rfind(|frame| frame.kind() != "open");
                    let is_over = !log.follow && last.is_some_and(Frame::is_terminal);
                    assert!(is_over, "{}: 204 after {last:?}", log.name);
                }
                Some(other) => panic!("{}: {other:?}", log.name),
            }
            if ending.is_some() && !self.fault.is_cut() {
                thread::sleep(PAUSE);
            }
        }
        logs
    }

    fn read(&mut self, mut viewer: Viewer, log: &mut Log) -> Option<Ending> {
        while !log.is_finished {
            self.fault.rest_if_told();
            match viewer.next() {
                Some(frame) => log.push(frame.clone()),
                None => return viewer.transcript.ending,
            }
        }
        None
    }

    /// Views several streams over one connection at a time, until the last terminal frame of each.
    pub(crate) fn view_all(mut self, mut logs: Vec<Log>) -> Vec<Log> {
        while !logs.iter().all(|log| log.is_finished) && !self.world.abandoned() {
            let stay = self.arrive();
            let public = self.world.publics[stay.instance];
            let Some(mut client) = WebSocketClient::try_connect(public, "/v1/ws") else {
                thread::sleep(PAUSE);
                continue;
            };
            self.fault.tie(client.socket());
            let is_sent = logs.iter_mut().filter(|log| !log.is_finished).all(|log| {
                log.begin(stay.instance);
                subscribe(&mut client, log)
            });
            let instance = stay.instance;
            let end = if is_sent { self.read_all(&mut client, instance, &mut logs) } else { Incoming::Cut };
            match end {
                Incoming::Cut => self.expect_excused(&logs[0].name, &stay),
                Incoming::Closed(1001) => {}
                Incoming::Text(_) => break,
                other => panic!("{}: {other:?}", logs[0].name),
            }
        }
        logs
    }

    /// Reads until everything has arrived (a text) or the connection ends.
    fn read_all(&mut self, client: &mut WebSocketClient, instance: usize, logs: &mut [Log]) -> Incoming {
        loop {
            self.fault.rest_if_told();
            let text = match client.receive() {
                Incoming::Text(text) => text,
                ending => return ending,
            };
            let frame = Frame::new(text);
            if frame.value["state"] == "draining" {
                continue;
            }
            let stream = frame.value["stream"].as_str().unwrap_or_else(|| panic!("{}", frame.raw));
            let log = logs.iter_mut().find(|log| log.stream == stream).unwrap();
            if log.is_finished {
                continue;
            }
            if frame.kind() != "unsubscribed" {
                log.push(frame);
                if log.follow && !log.is_leaving && self.random.once_in(100) {
                    log.is_leaving = true;
                    client.try_send_text(&json!({"type": "unsubscribe", "stream": log.stream}).to_string());
                }
            } else if frame.value["reason"] == "ended" || frame.value["reason"] == "requested" {
                if frame.value["reason"] == "ended" {
                    log.expect_over();
                    thread::sleep(PAUSE);
                }
                log.begin(instance);
                subscribe(client, log);
            } else {
                panic!("{}: {}", log.name, frame.raw);
            }
            if logs.iter().all(|log| log.is_finished) {
                return Incoming::Text(String::new());
            }
        }
    }

    fn arrive(&mut self) -> Stay {
        let instance = self.random.below(2);
        Stay { instance, ends: self.world.ends(instance) }
    }

    fn expect_excused(&self, name: &str, stay: &Stay) {
        let ends = self.world.ends(stay.instance);
        let has_ended = ends != stay.ends || ends % 2 == 1;
        let is_excused = has_ended || self.fault.is_cut() || self.world.abandoned();
        assert!(is_excused, "{name}: cut off by instance {}, which lives", stay.instance);
    }
}

/// Subscribes to a stream at the end of its log. Returns false if the connection is cut.
fn subscribe(client: &mut WebSocketClient, log: &Log) -> bool {
    let message: Value = json!({
        "type": "subscribe",
        "stream": log.stream,
        "after": log.cursor,
        "follow": log.follow,
        "batch_ms": log.batch_ms,
    });
    client.try_send_text(&message.to_string())
}

/// How far a viewer's log has been compared.
#[derive(Default)]
struct Place {
    /// The first item that may come.
    next: usize,
    /// The gap frames since the last item.
    gaps: Vec<Frame>,
    /// How many of those came over earlier connections.
    gaps_before: usize,
    /// Whether nothing has arrived since the connection was opened.
    is_reopened: bool,
}

impl Ledger {
    /// Compares a viewer's log with the ledger. The error describes the defect of the log.
    pub(crate) fn account(&self, log: &Log) -> Result<(), String> {
        let places: HashMap<&str, usize> =
            self.items.iter().enumerate().map(|(place, item)| (item.label.as_str(), place)).collect();
        let mut place = Place::default();
        for (number, frame) in log.seen.iter().enumerate() {
            let checked = self.follow(&places, &mut place, frame);
            checked.map_err(|wrong| format!("{}: {wrong}\n{}", log.name, log.around(number)))?;
        }
        let rest = self.expect_named(place.next..self.items.len(), &place.gaps);
        rest.map_err(|wrong| format!("{}: {wrong}\n{}", log.name, log.around(log.seen.len())))
    }

    fn follow(&self, places: &HashMap<&str, usize>, at: &mut Place, frame: &Frame) -> Result<(), String> {
        if frame.kind() == "open" {
            (at.gaps_before, at.is_reopened) = (at.gaps.len(), true);
            return Ok(());
        }
        if frame.kind() == "gap" {
            at.gaps.push(frame.clone());
            return self.check_gap(frame, &at.gaps[at.gaps_before..]);
        }
        let pieces = pieces(frame);
        let count = frame.value["count"].as_u64().unwrap_or(1);
        if count != pieces.len() as u64 {
            return Err(format!("counts {count}, holds {}: {}", pieces.len(), frame.raw));
        }
        for (label, text) in pieces {
            let place = *places.get(label).ok_or_else(|| format!("nobody wrote {}", frame.raw))?;
            let item = &self.items[place];
            if text.is_some_and(|text| text != item.text) {
                return Err(format!("another text than {:?}: {}", item.text, frame.raw));
            }
            if place < at.next && !self.may_come_again(place, at) {
                return Err(format!("{label} again or late: {}", frame.raw));
            }
            // A viewer that has received nothing yet does not miss deleted items.
            let seen_or_there = |left_out: &usize| at.next > 0 || self.items[*left_out].era == item.era;
            let first = (at.next..place).find(seen_or_there).unwrap_or(place);
            self.expect_named(first..place, &at.gaps)?;
            let has_begun_anew = self.items[..at.next].last().is_some_and(|before| before.era != item.era);
            if has_begun_anew && at.gaps.is_empty() {
                return Err(format!("begun anew, which nobody said: {}", frame.raw));
            }
            *at = Place { next: place + 1, ..Place::default() };
        }
        self.check_id(frame, at.next - 1)
    }

    /// Whether the last item may come once more. If its first copy was trimmed away before the viewer resumed, or
    /// together with what a gap has reported, nobody can know that the second one is a retry.
    fn may_come_again(&self, place: usize, at: &Place) -> bool {
        let is_copy_unknown = self.is_trimmed && self.items[place].attempts > 1;
        is_copy_unknown && place + 1 == at.next && (at.is_reopened || !at.gaps.is_empty())
    }

    fn check_gap(&self, gap: &Frame, of_connection: &[Frame]) -> Result<(), String> {
        let member = |name: &str| gap.value[name].as_str().ok_or_else(|| format!("no {name}: {}", gap.raw));
        let eras = self.items.last().map_or(0, |item| item.era);
        let is_expected = match member("reason")? {
            "trimmed" => self.is_trimmed,
            "recreated" => eras > 0,
            _ => false,
        };
        if !is_expected {
            return Err(format!("not to be expected: {}", gap.raw));
        }
        // Those that follow one another from the same position add up.
        let same = of_connection.iter().rev().take_while(|other| other.value["after"] == gap.value["after"]);
        let lost: Option<u64> = same.map(|gap| gap.value["lost"].as_u64()).sum();
        let Some(lost) = lost.filter(|_| eras == 0) else { return Ok(()) };
        let (after, next) = (id_order(member("after")?), id_order(member("next")?));
        let is_after = |item: &Item| item.id.as_ref().is_some_and(|id| after < id_order(id));
        let is_before = |item: &Item| item.id.as_ref().is_some_and(|id| id_order(id) < next);
        let known = self.items.iter().filter(|item| is_after(item) && is_before(item)).count() as u64;
        // Attempts that were not confirmed may have been lost as well, from the viewer's last item on.
        let is_had = |item: &Item| item.id.as_ref().is_some_and(|id| id_order(id) <= after);
        let first = self.items.iter().rposition(is_had).map_or(0, |last| last + 1);
        let end = self.items.iter().rposition(is_before).map_or(first, |last| last + 2);
        let around = &self.items[first.min(end)..end.min(self.items.len())];
        let perhaps: usize = around.iter().map(|item| item.attempts - usize::from(item.id.is_some())).sum();
        if !(known..=known + perhaps as u64).contains(&lost) {
            return Err(format!("{known} and perhaps {perhaps} were lost: {}", gap.raw));
        }
        Ok(())
    }

    /// Checks that every item left out was not confirmed, is not shown, or was reported by a gap.
    fn expect_named(&self, left_out: std::ops::Range<usize>, gaps: &[Frame]) -> Result<(), String> {
        for item in &self.items[left_out] {
            let Some(id) = item.id.as_ref().filter(|_| item.is_shown) else { continue };
            let names = |gap: &Frame| {
                let end = |name: &str| gap.value[name].as_str().map(id_order);
                end("after") < Some(id_order(id)) && end("next").is_some_and(|next| id_order(id) < next)
            };
            if !gaps.iter().any(names) {
                return Err(format!("{} ({id}) is missing, {} gaps", item.label, gaps.len()));
            }
        }
        Ok(())
    }

    /// Checks that a frame has the id of its last entry, or of its first copy.
    fn check_id(&self, frame: &Frame, place: usize) -> Result<(), String> {
        let item = &self.items[place];
        let Some(id) = &item.id else { return Ok(()) };
        let (delivered, confirmed) = (id_order(frame.id().unwrap()), id_order(id));
        let is_right = delivered == confirmed || item.attempts > 1 && delivered < confirmed;
        if is_right { Ok(()) } else { Err(format!("{} has the id {id}: {}", item.label, frame.raw)) }
    }
}

/// The labels of a frame's entries, with a delta's texts.
fn pieces(frame: &Frame) -> Vec<(&str, Option<&str>)> {
    let member = |name: &str| frame.value[name].as_str().unwrap_or_else(|| panic!("{}", frame.raw));
    match frame.kind() {
        "start" => vec![(member("generation"), None)],
        "delta" => {
            let label = |text| str::split(text, ' ').next().unwrap();
            member("text").split_inclusive(';').map(|text| (label(text), Some(text))).collect()
        }
        "end" => vec![(member("finish_reason"), None)],
        "error" => vec![(member("code"), None)],
        "custom" => vec![(frame.value["data"]["label"].as_str().unwrap(), None)],
        _ => panic!("unexpected {}", frame.raw),
    }
}
