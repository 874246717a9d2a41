//! Samples over time: what the daemon holds, and the tail of its latency, to see whether they stay flat.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::run::{Latency, Run};
use crate::stage::{Result, Stage};

/// How many samples a long run has.
pub(crate) const SAMPLES: u32 = 60;
/// The same in the smoke size.
pub(crate) const SAMPLES_SMOKE: u32 = 4;

/// The state at one time, and the latencies since the sample before.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Since the beginning of the measurement.
    pub(crate) seconds: f64,
    /// How many streams have begun and ended so far.
    pub(crate) streams_passed: u64,
    /// The daemon's resident memory.
    pub(crate) resident_bytes: u64,
    /// The daemon's private memory.
    pub(crate) private_bytes: u64,
    /// The daemon's open descriptors.
    pub(crate) descriptors: u64,
    /// Of the tokens written since the sample before.
    pub(crate) latency_ms: Option<Latency>,
}

impl Sample {
    /// The resources that the server holds now; without latencies.
    pub(crate) fn take(stage: &Stage, since: Duration, streams_passed: u64) -> Result<Self> {
        let server = stage.server.as_ref().ok_or("there is no server to sample")?;
        Ok(Self {
            seconds: since.as_secs_f64(),
            streams_passed,
            resident_bytes: server.resident_bytes()?,
            private_bytes: server.private_bytes()?,
            descriptors: server.descriptors()?,
            latency_ms: None,
        })
    }

    /// The resident memory.
    pub(crate) const fn resident(&self) -> Option<f64> {
        Some(self.resident_bytes as f64)
    }

    /// The number of descriptors.
    pub(crate) const fn open(&self) -> Option<f64> {
        Some(self.descriptors as f64)
    }

    /// The p99.9.
    pub(crate) fn p99_9(&self) -> Option<f64> {
        self.latency_ms.as_ref().map(|ms| ms.p99_9)
    }
}

/// The mean of a value in each quarter of a run; `None` if there are too few samples.
pub(crate) fn quarters(run: &Run, value: fn(&Sample) -> Option<f64>) -> Option<[f64; 4]> {
    let quarter = run.samples.len() / 4;
    if quarter == 0 {
        return None;
    }
    let mean = |number: usize| {
        let samples = &run.samples[number * quarter..(number + 1) * quarter];
        let values: Vec<_> = samples.iter().filter_map(value).collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    Some([mean(0), mean(1), mean(2), mean(3)])
}

/// The mean of the last quarter divided by that of the second; the first one may still fill caches.
pub(crate) fn drift(run: &Run, value: fn(&Sample) -> Option<f64>) -> Option<f64> {
    let [_, second, _, last] = quarters(run, value)?;
    let drift = last / second;
    drift.is_finite().then_some(drift)
}
