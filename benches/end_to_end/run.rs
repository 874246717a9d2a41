//! The result of one run.

use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::cores::Cores;
use crate::series::Sample;

/// Times in milliseconds, such as from the producer's write to the client's read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Half of them took no longer.
    pub(crate) p50: f64,
    /// All but one in ten took no longer.
    pub(crate) p90: f64,
    /// All but one in a hundred took no longer.
    pub(crate) p99: f64,
    /// All but one in a thousand took no longer.
    pub(crate) p99_9: f64,
    /// None took longer.
    pub(crate) max: f64,
    /// All times, in microseconds; written as pairs of a time and how often it was measured.
    #[serde(with = "counts")]
    pub(crate) us: Histogram<u64>,
}

impl Latency {
    /// The percentiles of a histogram of microseconds; `None` if it is empty.
    pub(crate) fn of(us: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| us.value_at_quantile(quantile) as f64 / 1e3;
        (!us.is_empty()).then(|| Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: us.max() as f64 / 1e3,
            us: us.clone(),
        })
    }
}

/// How a histogram is written.
mod counts {
    use super::{Deserialize, Histogram};
    use serde::{Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(us: &Histogram<u64>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(us.iter_recorded().map(|bar| (bar.value_iterated_to(), bar.count_at_value())))
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Histogram<u64>, D::Error> {
        let mut us = Histogram::new(3).map_err(D::Error::custom)?;
        for (value, count) in Vec::<(u64, u64)>::deserialize(from)? {
            us.record_n(value, count).map_err(D::Error::custom)?;
        }
        Ok(us)
    }
}

/// One run of a scenario against a server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The scenario's name.
    pub(crate) scenario: String,
    /// The server's name.
    pub(crate) server: String,
    /// Whether others used the cores meanwhile.
    pub(crate) cores: Cores,
    /// Which round, from 0.
    pub(crate) round: usize,
    /// Tokens delivered within the measured time.
    pub(crate) delivered: u64,
    /// Tokens delivered a second within the measured time.
    pub(crate) delivered_per_second: f64,
    /// Tokens that were due within a second of the measured time, if the load has a rate.
    pub(crate) offered_per_second: Option<f64>,
    /// The average number of tokens per frame.
    pub(crate) tokens_per_frame: f64,
    /// Latency of the tokens written within the measured time.
    pub(crate) latency_ms: Option<Latency>,
    /// Processor time of the server per delivered token.
    pub(crate) server_cpu_us: Option<f64>,
    /// Processor time of Redis per delivered token.
    pub(crate) redis_cpu_us: Option<f64>,
    /// Processor time of the server, in percent of a core.
    pub(crate) server_cpu_percent: f64,
    /// Processor time of Redis, in percent of a core.
    pub(crate) redis_cpu_percent: f64,
    /// Processor time of the producer, in percent of a core.
    pub(crate) producer_cpu_percent: f64,
    /// Processor time of the clients, in percent of a core.
    pub(crate) clients_cpu_percent: f64,
    /// How late the producer's writes were relative to their schedule.
    pub(crate) producer_late_ms_p99: f64,
    /// Processor time of a second load's clients and of hostile clients, in percent of a core.
    pub(crate) guest_clients_cpu_percent: f64,
    /// Latency of the same load before a second one started.
    pub(crate) alone_ms: Option<Latency>,
    /// The scenario's own times, if it measures something other than the latency of tokens: see `Scenario::times`.
    pub(crate) act_ms: Option<Latency>,
    /// Requests or messages that the server took from hostile clients, a second.
    pub(crate) hostile_per_second: Option<f64>,
    /// How many reads of history there were.
    pub(crate) history_reads: Option<u64>,
    /// Entries read from history for each entry that was missed, however many clients missed it.
    pub(crate) history_per_missed: Option<f64>,
    /// How often slow clients changed from live to history, by the daemon's counter.
    pub(crate) slow_fell_back: Option<u64>,
    /// How many tokens a slow client was behind at the end of the measured time, on average.
    pub(crate) slow_behind: Option<f64>,
    /// The server's private memory per connection.
    pub(crate) idle_bytes: Option<f64>,
    /// The state over the time of a long run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) samples: Vec<Sample>,
    /// Tokens that never arrived.
    pub(crate) lost: u64,
    /// Tokens that arrived twice.
    pub(crate) repeated: u64,
    /// Tokens that arrived after a later one.
    pub(crate) reordered: u64,
    /// Whether the server fell behind the producer: lost tokens were still arriving when the run ended, or the
    /// producer could not keep its schedule.
    pub(crate) behind: bool,
    /// Descriptions of other problems.
    pub(crate) problems: Vec<String>,
}

impl Run {
    /// The run of a server that could not be measured.
    pub(crate) fn failed(scenario: &str, server: &str, round: usize, why: String) -> Self {
        Self {
            scenario: scenario.into(),
            server: server.into(),
            round,
            problems: vec![why],
            ..Self::default()
        }
    }

    /// Whether every token arrived once and in order, and there was no other problem.
    pub(crate) fn is_correct(&self) -> bool {
        self.lost == 0 && self.repeated == 0 && self.reordered == 0 && self.problems.is_empty()
    }

    /// How much of what was due was delivered within the measured time, in percent.
    pub(crate) fn delivered_percent(&self) -> Option<f64> {
        Some(self.delivered_per_second / self.offered_per_second? * 100.0)
    }

    /// The p99 divided by that of the load alone.
    pub(crate) fn p99_to_alone(&self) -> Option<f64> {
        Some(self.latency_ms.as_ref()?.p99 / self.alone_ms.as_ref()?.p99)
    }

    /// A line about the run, to show progress.
    pub(crate) fn line(&self) -> String {
        let mut line = format!(
            "{} | {} | {}, round {}: {:.0}/s, lost {}, repeated {}, reordered {}",
            self.scenario,
            self.server,
            self.cores.name(),
            self.round + 1,
            self.delivered_per_second,
            self.lost,
            self.repeated,
            self.reordered
        );
        if self.behind {
            line.push_str(", falling behind");
        }
        for problem in &self.problems {
            // Writing to a String cannot fail.
            write!(line, "\n    {problem}").ok();
        }
        line
    }
}

/// Microseconds of processor time per token.
pub(crate) fn per(cpu: Duration, tokens: u64) -> Option<f64> {
    (tokens > 0).then(|| cpu.as_secs_f64() * 1e6 / tokens as f64)
}

/// A share of a core, in percent.
pub(crate) fn percent(cpu: Duration, wall: Duration) -> f64 {
    cpu.as_secs_f64() / wall.as_secs_f64() * 100.0
}
