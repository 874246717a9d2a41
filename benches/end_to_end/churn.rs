//! The scenario `churn`: streams begin, get some tens of tokens and end, and their viewers go, until very many have
//! passed through, while the daemon's memory, descriptors and latency are sampled.
//!
//! The streams come in waves. Two lanes of waves run at the same time, half a wave apart, so that some streams begin
//! while others are in their middle. The keys of ended streams expire, as those of an application would.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use crate::load::{LATENESS_US_MAX, Manner, Pace, Plan, Shared};
use crate::producer::Produced;
use crate::run::{Latency, Run};
use crate::scenarios::{OVERHEAD, Settings, settle_in};
use crate::seen::Seen;
use crate::series::{SAMPLES, SAMPLES_SMOKE, Sample};
use crate::stage::{Load, Result, Stage, Window};

/// How many waves run at the same time.
const LANES: u32 = 2;
/// How long a wave gets tokens, besides the first and the end of each stream.
const WAVE: Duration = Duration::from_secs(2);
const WAVE_SMOKE: Duration = Duration::from_millis(100);
/// How many streams pass through in the smoke size, in waves of the scenario's smoke size.
const PASSING_SMOKE: usize = 80;

/// The observations of all waves so far.
struct Tally {
    seen: Seen,
    produced: Produced,
    /// Latencies since the last sample.
    since_us: Histogram<u64>,
    samples: Vec<Sample>,
    passed: usize,
}

struct Churn<'a> {
    stage: &'a Stage,
    /// One wave; its first stream differs.
    wave: &'a Plan,
    settings: &'a Settings,
    passing: usize,
    /// The first stream of the next wave.
    next: AtomicUsize,
    /// The state of the whole run; only its measured time and its count of delivered tokens are used.
    whole: Shared,
    tally: Mutex<Tally>,
    from: Instant,
}

/// A run, in waves like this one.
pub(crate) fn run(plan: &Plan, stage: &Stage, settings: &Settings) -> Result<Run> {
    let (time, passing) = match settings.smoke {
        true => (WAVE_SMOKE, PASSING_SMOKE),
        false => (WAVE, settings.passing),
    };
    let wave = Plan { manner: Manner::Passing, warm_up: Duration::ZERO, duration: time, ..*plan };
    let histogram = Histogram::new_with_max(LATENESS_US_MAX, 3)?;
    let churn = Churn {
        stage,
        wave: &wave,
        settings,
        passing,
        next: AtomicUsize::new(0),
        whole: Shared::new(0, Duration::ZERO, Arc::clone(&settings.interrupted)),
        tally: Mutex::new(Tally {
            seen: Seen::new()?,
            produced: Produced { totals: Vec::new(), late_us: histogram.clone(), cpu: Duration::ZERO },
            since_us: histogram,
            samples: Vec::new(),
            passed: 0,
        }),
        from: Instant::now(),
    };
    let window = Window::around(stage, &churn.whole, || churn.pass_all())?;
    let tally = churn.tally.into_inner();
    Ok(Run { samples: tally.samples, ..window.run(&tally.seen, &tally.produced) })
}

impl Churn<'_> {
    /// Runs all lanes until all streams have passed.
    fn pass_all(&self) -> Result<()> {
        thread::scope(|scope| {
            let start = |lane| {
                let pause = self.wave.duration / LANES * lane;
                thread::Builder::new().name(format!("lane-{lane}")).spawn_scoped(scope, move || {
                    thread::sleep(pause);
                    // After a failure the other lanes end with their present waves.
                    self.pass_some().inspect_err(|_| self.next.store(self.passing, Ordering::Release))
                })
            };
            let lanes = (0..LANES).map(start).collect::<std::io::Result<Vec<_>>>()?;
            let ended = lanes.into_iter().map(|lane| lane.join().map_err(|_| "a lane panicked")?);
            // All are joined before the first failure is returned.
            ended.collect::<Vec<Result<()>>>().into_iter().collect()
        })
    }

    /// Runs one lane.
    fn pass_some(&self) -> Result<()> {
        loop {
            let first_stream = self.next.fetch_add(self.wave.streams, Ordering::AcqRel);
            if first_stream >= self.passing {
                return Ok(());
            }
            let streams = self.wave.streams.min(self.passing - first_stream);
            let plan = Plan { first_stream, streams, clients: streams, ..*self.wave };
            let (seen, produced) = self.pass_wave(&plan)?;
            self.take(&seen, &produced, streams)?;
        }
    }

    /// Runs one wave from the first connection until its viewers have gone.
    fn pass_wave(&self, plan: &Plan) -> Result<(Seen, Produced)> {
        let limit = OVERHEAD + plan.duration;
        let shared = Shared::new(plan.streams, limit, Arc::clone(&self.settings.interrupted));
        let done = thread::scope(|scope| {
            let load = Load::begin(scope, self.stage, plan, &shared)?;
            let settled = settle_in(plan, &shared).inspect_err(|error| shared.fail(error.to_string()));
            shared.measured.begin();
            shared.pass(plan.duration);
            let done = load.end()?;
            settled.map(|()| done)
        })?;
        match shared.problem() {
            Some(problem) => Err(problem.into()),
            None => Ok(done),
        }
    }

    /// Adds a wave's observations, and takes a sample if it is time for one.
    fn take(&self, seen: &Seen, produced: &Produced, streams: usize) -> Result<()> {
        self.whole.delivered.fetch_add(seen.received, Ordering::AcqRel);
        let mut tally = self.tally.lock();
        let tally = &mut *tally;
        tally.seen.add(seen);
        tally.produced.totals.push(produced.totals.iter().sum());
        tally.produced.late_us += &produced.late_us;
        tally.produced.cpu += produced.cpu;
        tally.since_us += &seen.latency_us;
        tally.passed += streams;
        let samples = if self.settings.smoke { SAMPLES_SMOKE } else { SAMPLES };
        let due = self.passing * (tally.samples.len() + 1) / samples as usize;
        if tally.passed >= due {
            let sample = Sample::take(self.stage, self.from.elapsed(), tally.passed as u64)?;
            tally.samples.push(Sample { latency_ms: Latency::of(&tally.since_us), ..sample });
            tally.since_us.reset();
        }
        Ok(())
    }
}

/// How fast tokens are written into each stream: some tens of them in all.
pub(crate) const PACE: Pace = Pace::PerSecond(12.5);
