//! A thread that answers one request after another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer_progress::{self, AnswerProgress};
use super::lease::Lease;
use super::order::Order;
use crate::config;
use crate::model::EntryId;
use crate::produce::upstream::{Answer, Outcome, Request, Upstream};
use crate::produce::{CancelWatch, Failure, Generation, ProduceError, Producer, RedisWires};
use crate::queue::{Receiver, Sender};
use crate::redis::{Backoff, Keys, Link, RedisError, Target};
use crate::{error_limited, warn_limited};

/// How long the thread waits for work before it checks whether there will be more.
const WAIT: Duration = Duration::from_millis(200);
/// The shortest and the longest pause between attempts to read what another worker has left.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long a thread that has to abandon an answer tries to write its terminal entry.
const FAREWELL: Duration = Duration::from_secs(3);

/// A request to be answered.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) order: Order,
    pub(super) lease: Lease,
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The stream has its terminal entry: the request is finished.
    Answered,
    /// No viewer has seen any of the answer: another worker may answer the request.
    Left,
    /// Another worker has the request.
    Lost,
    /// The stream accepts no entries, so it cannot be answered.
    Unwritable,
}

/// The outcome of a request.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) id: EntryId,
    pub(super) fate: Fate,
}

/// One thread's state; all threads have clones of the same.
#[derive(Clone)]
pub(super) struct Worker {
    pub(super) redis: config::Redis,
    pub(super) target: Target,
    pub(super) keys: Arc<Keys>,
    pub(super) consumer: String,
    pub(super) upstream: Upstream,
    pub(super) jobs: Receiver<Job>,
    pub(super) dones: Sender<Done>,
}

impl Worker {
    /// Answers requests until `is_over` returns true.
    pub(super) fn run(&self, is_over: impl Fn() -> bool) {
        while !is_over() {
            let Some(job) = self.jobs.recv_timeout(WAIT) else { continue };
            let began = Instant::now();
            let (fate, outcome) = self.answer(&job);
            let (stream, request) = (&job.order.name, job.order.id);
            tracing::info!(%stream, %request, outcome, took = ?began.elapsed(), "done with a request");
            // The queue has room for one report per request.
            if let Err(error) = self.dones.try_send(Done { id: request, fate }) {
                error_limited!(%error, %request, "the end of an answer could not be reported");
            }
        }
    }

    /// Answers a request. Returns its outcome, and a description for the log.
    fn answer(&self, job: &Job) -> (Fate, String) {
        let order = &job.order;
        let wires = RedisWires::new(&self.redis, &order.name);
        let cancels = CancelWatch::new(&self.redis, &order.name);
        let (Ok(wires), Ok(cancels)) = (wires, cancels) else {
            // It was possible at the start.
            return left();
        };
        let mut producer = Producer::new(wires.while_held(self.keys.running(&order.name), &self.consumer));
        let progress = if order.is_taken_over { self.look(job) } else { Some(AnswerProgress::Nothing) };
        match progress {
            None => return given_up(&job.lease),
            Some(AnswerProgress::Whole) => {
                return (Fate::Answered, "answered before, by another worker".to_owned());
            }
            Some(AnswerProgress::Partial) => {
                let message = "the worker that wrote this answer is gone, and nobody can continue it";
                return end(&mut producer, &job.lease, ("relay_lost", message));
            }
            Some(AnswerProgress::Nothing) => {}
        }
        producer.name_next(order.generation.clone());
        let request = match self.request(order) {
            Ok(request) => request,
            Err(message) => {
                producer.push(Generation::start_unnumbered);
                return end(&mut producer, &job.lease, ("bad_request", &message));
            }
        };
        // A request to cancel that came after this request but before its answer began also counts.
        let mut cancels = cancels.since(order.id);
        let stop = || job.lease.must_stop();
        match Answer::new(&self.upstream, &mut producer, &mut cancels, &stop).run(&request) {
            Outcome::Ended => (Fate::Answered, "answered".to_owned()),
            Outcome::Cancelled => (Fate::Answered, "cancelled".to_owned()),
            Outcome::Failed(failure) => (Fate::Answered, format!("failed: {failure}")),
            Outcome::Unwritable(error) => {
                error_limited!(key: order.name; %error, stream = %order.name, "an answer could not be written");
                if job.lease.must_stop() { given_up(&job.lease) } else { unwritable() }
            }
            Outcome::Stopped { .. } if job.lease.is_lost() => given_up(&job.lease),
            Outcome::Stopped { token_came: false } => left(),
            Outcome::Stopped { token_came: true } => {
                let message = "the worker that wrote this answer was stopped in its middle";
                end(&mut producer, &job.lease, ("relay_stopped", message))
            }
        }
    }

    /// The request for the server, or why there is none.
    fn request(&self, order: &Order) -> Result<Request, String> {
        let body = order.body.as_ref().map_err(ToString::to_string)?;
        Request::new(body, order.model.as_deref(), &self.upstream).map_err(|error| error.to_string())
    }

    /// How far another worker has progressed with the answer; `None` if this worker has to abandon it too.
    fn look(&self, job: &Job) -> Option<AnswerProgress> {
        let key = self.redis.stream_key.key(&job.order.name);
        let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX, job.order.id.ms);
        let look = || -> Result<AnswerProgress, RedisError> {
            let mut link = Link::connect(&self.target, "llm-bridge-relay-look")?;
            answer_progress::take_over(&mut link, &key, &job.order)
        };
        loop {
            if job.lease.must_stop() {
                return None;
            }
            match look() {
                Ok(progress) => return Some(progress),
                Err(error) => {
                    warn_limited!(key: job.order.name; %error, stream = %job.order.name, "the progress of another worker cannot be read");
                    std::thread::sleep(backoff.next());
                }
            }
        }
    }
}

fn given_up(lease: &Lease) -> (Fate, String) {
    if lease.is_lost() { (Fate::Lost, "taken over by another worker".to_owned()) } else { left() }
}

fn left() -> (Fate, String) {
    (Fate::Left, "handed back for another worker".to_owned())
}

fn unwritable() -> (Fate, String) {
    (Fate::Unwritable, "not answered: its stream accepts no entries".to_owned())
}

/// Writes the terminal entry of an answer without one.
fn end(
    producer: &mut Producer<RedisWires>,
    lease: &Lease,
    (code, message): (&'static str, &str),
) -> (Fate, String) {
    producer.push(|generation, ts| generation.error(code, message, ts));
    let until = Instant::now() + FAREWELL;
    match producer.flush(|| lease.is_lost() || (Instant::now() >= until && lease.must_stop())) {
        Ok(()) => {
            let failure = Failure { code: code.into(), message: message.to_owned() };
            (Fate::Answered, format!("failed: {failure}"))
        }
        Err(refused @ ProduceError::Refused(_)) => {
            error_limited!(error = %refused, "an answer could not be ended");
            unwritable()
        }
        Err(ProduceError::Stopped) => given_up(lease),
    }
}
