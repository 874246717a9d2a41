//! Everything that can be observed, at one time, as plain data; and its JSON form, which other programs rely on.

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::counters::Reading;
use super::health::{Lease, LinkReport};
use super::latency::{Distribution, Stage};
use super::process::Process;
use super::rounds::SlowRounds;
use crate::queue;

/// The state of a daemon at one time. Its JSON form has one member per field; members are added over time, but none
/// changes its meaning:
///
/// ```json
/// {"version":"0.1.0","instance":"host-8080","uptime_s":12.5,"started_at_s":1763800000.0,
///  "ready":true,"not_ready":[],"draining":false,"lease":"held",
///  "redis":{"reader-0":{"up":true,"detail":"","since_s":12.1}},
///  "counters":{"entries_read":120},"gauges":{"connections_open":3},
///  "queues":[{"name":"transform-0","depth":0,"depth_max":7,"capacity":64,"refused":0}],
///  "latency_us":{"end_to_end":{"count":120,"p50":310,"p90":480,"p99":900,"p999":1200,"max":1400,"mean":330.5}},
///  "slow_rounds":[{"thread":"deliver-0","step":"reading from clients","count":2,"longest_ms":31}],
///  "process":{"rss_bytes":9437184,"open_fds":40,"max_fds":65536,"cpu_s":1.25,"threads":["reader-0"]}}
/// ```
///
/// `lease` is `unsettled`, `held` or `lost`; `not_ready` names the reasons.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// The version of the program.
    pub version: &'static str,
    /// The instance id.
    pub instance: String,
    /// How many seconds the daemon has been running.
    pub uptime_s: f64,
    /// When the daemon started, in seconds since 1970.
    pub started_at_s: f64,
    /// Whether this instance should get clients.
    pub ready: bool,
    /// The reasons why not.
    pub not_ready: Vec<String>,
    /// Whether the daemon is shutting down.
    pub draining: bool,
    /// The lease of the instance id.
    pub lease: Lease,
    /// The state in which each role last found Redis.
    pub redis: BTreeMap<String, LinkReport>,
    /// The counters: events since the start.
    #[serde(serialize_with = "readings")]
    pub counters: Vec<Reading<u64>>,
    /// The gauges: current values.
    #[serde(serialize_with = "readings")]
    pub gauges: Vec<Reading<i64>>,
    /// The queues between the threads.
    pub queues: Vec<QueueReport>,
    /// The latencies of the stages.
    #[serde(serialize_with = "summaries")]
    pub latency_us: Vec<(Stage, Distribution)>,
    /// Rounds of threads that took longer than [`SLOW_ROUND`](super::SLOW_ROUND), by step.
    pub slow_rounds: Vec<SlowRounds>,
    /// Bytes held: the sum of those in queues and of the gauges in bytes.
    pub held_bytes: u64,
    /// Numbers about the process from the system.
    pub process: Process,
}

/// A queue at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueueReport {
    /// Its name.
    pub name: String,
    /// The number of messages in it.
    pub depth: usize,
    /// The most messages that were in it since the start.
    pub depth_max: usize,
    /// The most messages that fit.
    pub capacity: usize,
    /// The bytes of the messages in it; absent if they are not weighed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<usize>,
    /// The most bytes that fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<usize>,
    /// How often it had no room.
    pub refused: u64,
}

impl From<queue::Gauge> for QueueReport {
    fn from(gauge: queue::Gauge) -> Self {
        let queue::Gauge { name, depth, depth_max, capacity, bytes, bytes_max, refused } = gauge;
        Self { name, depth, depth_max, capacity, bytes: bytes_max.map(|_| bytes), bytes_max, refused }
    }
}

impl Snapshot {
    /// The JSON form, on one line.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self)
            .expect("every map of a snapshot has strings as keys, which is all that can fail")
    }
}

fn readings<T: Serialize + Copy, S: Serializer>(
    readings: &[Reading<T>],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(readings.len()))?;
    for reading in readings {
        map.serialize_entry(reading.name, &reading.value)?;
    }
    map.end()
}

fn summaries<S: Serializer>(stages: &[(Stage, Distribution)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(stages.len()))?;
    for (stage, distribution) in stages {
        map.serialize_entry(stage.name(), &distribution.summary())?;
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use crate::observe::testing::sample;
    use crate::queue;
    use serde_json::Value;

    #[test]
    fn all_that_is_held_is_summed_up() {
        let registry = sample();
        let before = registry.snapshot().held_bytes;
        let weight = queue::Weight { bytes_max: 100, weigh: |text: &String| text.len() };
        let (sender, _receiver) = queue::weighed("weighed", 4, weight, None);
        registry.register_queue(sender.gauge());
        sender.try_send("1234567".to_owned()).unwrap();
        registry.gauges().outbox_bytes.add(30);
        assert_eq!(registry.snapshot().held_bytes, before + 37);
        let stats: Value = serde_json::from_str(&registry.render_json()).unwrap();
        let queues = stats["queues"].as_array().unwrap();
        let weighed = queues.iter().find(|queue| queue["name"] == "weighed").unwrap();
        assert_eq!((&weighed["bytes"], &weighed["bytes_max"]), (&Value::from(7), &Value::from(100)));
        assert!(registry.render_prometheus().contains("llm_bridge_queue_bytes{queue=\"weighed\"} 7\n"));
    }

    #[test]
    fn the_json_has_its_documented_shape() {
        let stats: Value = serde_json::from_str(&sample().render_json()).unwrap();
        let names = |value: &Value| {
            let mut names: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
            names.sort_unstable();
            names.join(" ")
        };
        assert_eq!(
            names(&stats),
            "counters draining gauges held_bytes instance latency_us lease not_ready process queues ready redis \
             slow_rounds started_at_s uptime_s version"
        );
        assert_eq!(names(&stats["redis"]["reader-0"]), "detail since_s up");
        assert_eq!(names(&stats["queues"][0]), "capacity depth depth_max name refused");
        assert_eq!(
            names(&stats["latency_us"]),
            "delivery_round encoded_to_written end_to_end produced_to_read read_to_encoded replay"
        );
        assert_eq!(names(&stats["latency_us"]["end_to_end"]), "count max mean p50 p90 p99 p999");
        assert_eq!(names(&stats["process"]), "cpu_s max_fds open_fds rss_bytes threads");
        assert_eq!(stats["latency_us"]["end_to_end"]["p50"], 301);
        assert_eq!((&stats["ready"], &stats["lease"]), (&Value::Bool(true), &Value::from("held")));
        assert!(stats["process"]["threads"].as_array().unwrap().iter().all(Value::is_string));
    }
}
