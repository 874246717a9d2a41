//! A replay thread: reads history by XRANGE for late, resumed and slow clients.
//!
//! Requests of several jobs share a round trip. Each asks for as many entries as are likely to fit into a bounded
//! number of bytes (`pace`); whatever exceeds that is dropped and read again. So a long history is read in many small
//! reads that take turns with others, and live reading, which has its own threads and connections, is never delayed.
//!
//! An unreachable Redis is an answer like any other ([`ReplayRead::Unavailable`]): the requester decides when to ask
//! again. If the connection is lost while replies arrive, it is opened again at once and each request is sent alone,
//! so that only the request that caused the loss is reported as unavailable.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pace::{Manner, Pace, Plan, READ_BYTES_GOAL, Seen, TRIP_BYTES_GOAL};
use super::ranges::{Answers, Question, Understood, ask, start_of, understand};
use crate::decode::checkpoints::{Checkpoints, Way};
use crate::message::{ReplayBatch, ReplayRead, ReplayRequest, ReplayStep, now_us, shard};
use crate::model::{After, EntryId, HISTORY_HELD_MAX, LARGE_BYTES, Ledger, Position};
use crate::observe::Registry;
use crate::queue::{Receiver, SendError, Sender};
use crate::redis::{Connector, Keys, RangeReply, RedisError};
use crate::stop::Stop;
use crate::{pulse, warn_limited};

/// How often an idle thread tries to connect again.
const AWAY_CHECK: Duration = Duration::from_millis(100);
/// How often a thread that waits for room checks whether the daemon stops.
const STOP_CHECK: Duration = Duration::from_millis(100);
/// How often waiting requests are checked.
const WAITING_CHECK: Duration = Duration::from_millis(2);
/// Large entries are read only while there is room for them. Clients that do not read may occupy all of it; then
/// others get a large entry after this time, up to a bound that is never exceeded.
const LARGE_PATIENCE: Duration = Duration::from_secs(1);
const HELD_PARTS_MAX: usize = 4;

/// Whether a read may be made while `held` bytes are held.
fn may_be_read(held: usize, plan: Plan, waited: Duration) -> bool {
    let is_small = plan.expected_bytes / plan.count.max(1) <= LARGE_BYTES;
    let room = if waited < LARGE_PATIENCE { HISTORY_HELD_MAX } else { HELD_PARTS_MAX * HISTORY_HELD_MAX };
    is_small || held == 0 || held.saturating_add(plan.expected_bytes) <= room
}

/// The connection, queues and shared state that a replay thread is built from.
pub struct ReplayParts {
    /// Opens its connection.
    pub connector: Connector,
    /// The names of the keys.
    pub keys: Arc<Keys>,
    /// The requests of all delivery threads.
    pub requests: Receiver<ReplayRequest>,
    /// The transform threads that decode the answers, by shard.
    pub transforms: Vec<Sender<ReplayBatch>>,
    /// Counts the bytes that were read and not sent yet.
    pub ledger: Arc<Ledger>,
    /// Where scans of long histories stood.
    pub checkpoints: Arc<Checkpoints>,
    /// The metrics.
    pub registry: Arc<Registry>,
    /// Set when the thread is to end.
    pub stop: Stop,
}

/// A running replay thread.
pub struct Replay {
    parts: ReplayParts,
    pace: Pace,
    /// Requests that wait for their turn, the oldest first: at most one for each viewer.
    waiting: VecDeque<Waiting>,
    /// When the waiting requests were last checked.
    looked_at: Instant,
}

/// A request that waits for its turn.
struct Waiting {
    request: ReplayRequest,
    since: Instant,
}

/// The questions of one round trip.
#[derive(Default)]
struct Trip {
    questions: Vec<Question>,
    /// The number of bytes that they are expected to return.
    expected: usize,
}

/// Why a round trip returned nothing.
enum Failure {
    /// The connection was lost or stalled while replies were awaited.
    Cut(RedisError),
    /// Redis cannot be reached at present.
    Outage,
}

impl Replay {
    /// A thread that has not read anything yet.
    #[must_use]
    pub fn new(parts: ReplayParts) -> Self {
        Self { parts, pace: Pace::default(), waiting: VecDeque::new(), looked_at: Instant::now() }
    }

    /// Serves requests until the daemon stops.
    pub fn run(mut self) {
        while !self.parts.stop.requested() {
            pulse::beat();
            let mut trip = Trip::default();
            self.gather_waiting(&mut trip, Instant::now());
            if trip.questions.is_empty() {
                match self.parts.requests.recv_unless(&self.parts.stop, self.patience()) {
                    Some(request) => self.add(request, &mut trip, Instant::now()),
                    None => self.parts.connector.keep(Instant::now()),
                }
            }
            self.gather_new(&mut trip, Instant::now());
            if !trip.questions.is_empty() {
                self.serve(trip.questions);
            }
        }
    }

    /// How long to wait for the next request.
    fn patience(&self) -> Duration {
        match (self.waiting.is_empty(), self.parts.connector.is_open()) {
            (false, _) => WAITING_CHECK,
            (true, true) => pulse::WAIT_MAX,
            (true, false) => AWAY_CHECK,
        }
    }

    fn has_room(&self, trip: &Trip) -> bool {
        trip.questions.len() < self.pace.requests_per_trip() && trip.expected < TRIP_BYTES_GOAL
    }

    /// Adds the waiting requests that can be served now.
    fn gather_waiting(&mut self, trip: &mut Trip, now: Instant) {
        if self.waiting.is_empty() || now.duration_since(self.looked_at) < WAITING_CHECK {
            return;
        }
        self.looked_at = now;
        for _ in 0..self.waiting.len() {
            if !self.has_room(trip) {
                // The requests that were not checked come first next time.
                return;
            }
            let Some(waiting) = self.waiting.pop_front() else { return };
            if let Some(back) = self.admit(waiting, trip, now) {
                self.waiting.push_back(back);
            }
        }
    }

    /// Adds new requests.
    fn gather_new(&mut self, trip: &mut Trip, now: Instant) {
        while self.has_room(trip)
            && let Some(request) = self.parts.requests.try_recv()
        {
            self.add(request, trip, now);
        }
    }

    fn add(&mut self, request: ReplayRequest, trip: &mut Trip, now: Instant) {
        if let Some(back) = self.admit(Waiting { request, since: now }, trip, now) {
            self.waiting.push_back(back);
        }
    }

    /// Adds a request to the round trip, unless it has to wait.
    fn admit(&mut self, mut waiting: Waiting, trip: &mut Trip, now: Instant) -> Option<Waiting> {
        let request = &mut waiting.request;
        match self.way(request, now) {
            Way::Read => request.jump = None,
            Way::Jump(checkpoint) => request.jump = Some(checkpoint),
            Way::Wait => return Some(waiting),
        }
        let plan = self.plan(&waiting.request, now);
        let waited = now.duration_since(waiting.since);
        if !may_be_read(self.parts.ledger.large() + trip.expected, plan, waited) {
            return Some(waiting);
        }
        trip.expected += plan.expected_bytes;
        let request = waiting.request;
        let start = start_of(&request);
        trip.questions.push(Question { request, start, count: plan.count, manner: plan.manner });
        None
    }

    /// Where a scan continues.
    fn way(&self, request: &ReplayRequest, now: Instant) -> Way {
        const END: Position = Position::whole(EntryId::MAX);
        let (from, target) = match &request.step {
            ReplayStep::Open { after: After::At(after), .. } => (EntryId::ZERO, *after),
            ReplayStep::Open { .. } => (EntryId::ZERO, END),
            ReplayStep::Search(search) => match search.target {
                Some(target) => (search.from, target),
                None => return Way::Read,
            },
            ReplayStep::Continue { .. } | ReplayStep::State(_) | ReplayStep::Probe => return Way::Read,
        };
        if target.id <= from {
            return Way::Read;
        }
        self.parts.checkpoints.way(&request.stream, request.job, (from, target), now)
    }

    fn plan(&mut self, request: &ReplayRequest, now: Instant) -> Plan {
        let wanted_bytes = match &request.step {
            ReplayStep::Continue { .. } => request.budget_bytes,
            _ => READ_BYTES_GOAL,
        };
        self.pace.plan(&request.stream, (request.count, wanted_bytes), now)
    }

    fn question_alone(&mut self, request: ReplayRequest, now: Instant) -> Question {
        let plan = self.plan(&request, now);
        let (start, manner) = (start_of(&request), plan.manner.max(Manner::Alone));
        Question { request, start, count: plan.count, manner }
    }

    fn serve(&mut self, trip: Vec<Question>) {
        let now = Instant::now();
        let (refused, trip): (Vec<_>, Vec<_>) = trip
            .into_iter()
            .partition(|asked| self.pace.is_refused(&asked.request.stream, &asked.start, now));
        for question in refused {
            self.conclude(question, ReplayRead::Unavailable);
        }
        let (together, mut alone): (Vec<_>, Vec<_>) =
            trip.into_iter().partition(|question| question.manner == Manner::Together);
        if !together.is_empty() {
            alone.extend(self.serve_together(together));
        }
        for question in alone {
            self.serve_alone(question.request);
        }
    }

    /// Serves questions in one round trip; returns those that have to be sent alone.
    fn serve_together(&mut self, questions: Vec<Question>) -> Vec<Question> {
        match self.ask(&questions) {
            Ok(answers) => self.conclude_all(questions, answers),
            Err(Failure::Outage) => {
                for question in questions {
                    self.conclude(question, ReplayRead::Unavailable);
                }
                Vec::new()
            }
            Err(Failure::Cut(_)) => {
                let now = Instant::now();
                for question in &questions {
                    self.pace.failed(&question.request.stream, question.count, now);
                }
                questions
            }
        }
    }

    /// Serves one request in round trips of its own, with smaller and smaller replies until one arrives.
    fn serve_alone(&mut self, request: ReplayRequest) {
        let mut request = request;
        loop {
            let now = Instant::now();
            let question = self.question_alone(request, now);
            let (start, count) = (question.start.clone(), question.count);
            let error = match self.ask(std::slice::from_ref(&question)) {
                Ok(answers) => {
                    self.conclude_all(vec![question], answers);
                    return;
                }
                Err(Failure::Outage) => return self.conclude(question, ReplayRead::Unavailable),
                Err(Failure::Cut(error)) => error,
            };
            let stream = &question.request.stream;
            if self.parts.stop.requested() || !self.pace.failed(stream, count, now) {
                warn_limited!(
                    key: stream; %stream, after = start, %error,
                    "Redis cuts the connection instead of sending one entry of history: raise its \
                     client-output-buffer-limit for normal clients above the size of the entries"
                );
                self.pace.refuse(stream, &start, now);
                return self.conclude(question, ReplayRead::Unavailable);
            }
            request = question.request;
        }
    }

    /// Makes a round trip and handles its failure.
    fn ask(&mut self, questions: &[Question]) -> Result<Answers, Failure> {
        let now = Instant::now();
        let connector = &mut self.parts.connector;
        let answer = connector.ask(now, |link| ask(link, &self.parts.keys, questions));
        match answer {
            Ok(answers) => {
                let errors = answers.ranges.iter().filter_map(|range| range.as_ref().err());
                match errors
                    .into_iter()
                    .find(|error| error.server_kind().is_some_and(|kind| kind.is_outage()))
                {
                    Some(outage) => connector.lost(outage, now),
                    None => connector.works(),
                }
                Ok(answers)
            }
            Err(Some(error @ (RedisError::Closed | RedisError::Io(_) | RedisError::Protocol(_)))) => {
                // Opening a new connection shows whether Redis itself is down.
                connector.close();
                Err(Failure::Cut(error))
            }
            Err(Some(error)) => {
                if matches!(error, RedisError::Timeout) {
                    for question in questions {
                        self.pace.failed(&question.request.stream, question.count, now);
                    }
                }
                connector.lost(&error, now);
                Err(Failure::Outage)
            }
            Err(None) => Err(Failure::Outage),
        }
    }

    /// Passes on all answers; returns the questions that have to be sent alone.
    fn conclude_all(&mut self, questions: Vec<Question>, answers: Answers) -> Vec<Question> {
        let mut starved = Vec::new();
        let mut ranges = answers.ranges.into_iter();
        for question in questions {
            let read = match ranges.next() {
                Some(range) => range.and_then(|found| {
                    self.learn(&question, &found);
                    understand(&question, found)
                }),
                None => Ok(Understood::Read(ReplayRead::Unavailable)),
            };
            match read {
                Ok(Understood::Read(read)) => self.conclude(question, read),
                Ok(Understood::Starved) => {
                    self.pace.starved(&question.request.stream, Instant::now());
                    starved.push(question);
                }
                Err(error) => {
                    let stream = &question.request.stream;
                    warn_limited!(key: stream; %stream, %error, "history could not be read");
                    self.conclude(question, ReplayRead::Unavailable);
                }
            }
        }
        starved
    }

    fn learn(&mut self, question: &Question, found: &RangeReply) {
        let seen =
            Seen { asked: question.count, found: found.found, kept: found.entries.len(), bytes: found.bytes };
        self.pace.found(&question.request.stream, seen, Instant::now());
    }

    /// Counts the result of a read and passes it on.
    fn conclude(&self, question: Question, read: ReplayRead) {
        let counters = self.parts.registry.counters();
        counters.replay_reads.add(1);
        let mut batch = ReplayBatch { request: question.request, read, read_us: now_us(), held: None };
        if let ReplayRead::Found { entries, .. } = &batch.read {
            counters.replay_entries.add(entries.len() as u64);
            batch.held = Some(self.parts.ledger.hold_reply(batch.len_bytes()));
        }
        self.hand_over(batch);
    }

    /// Waits for room: `transform` never waits for a replay thread, so there will be room.
    fn hand_over(&self, batch: ReplayBatch) {
        let transform = &self.parts.transforms[shard(&batch.request.stream, self.parts.transforms.len())];
        let mut batch = batch;
        while !self.parts.stop.requested() {
            match transform.send_timeout(batch, STOP_CHECK) {
                Ok(()) | Err(SendError::Closed(_)) => return,
                Err(SendError::Full(back)) => batch = back,
            }
        }
    }
}
