//! The state of the daemon in Prometheus' text format 0.0.4.
//!
//! Units are those of Prometheus: seconds and bytes. Latencies are histograms with fixed buckets, so that instances
//! can be added up; to Prometheus, a `reset` of the latencies looks like a restart.

use std::fmt::{Display, Write};

use super::latency::Distribution;
use super::snapshot::{QueueReport, Snapshot};

/// The `Content-Type` of the format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The upper bounds of the latency buckets: in µs, and in seconds as they are written.
const BUCKETS: [(u64, &str); 17] = [
    (50, "0.00005"),
    (100, "0.0001"),
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
    (10_000_000, "10"),
    (30_000_000, "30"),
];

/// Renders the page.
pub(super) fn render(snapshot: &Snapshot) -> String {
    let mut page = Page(String::with_capacity(16 * 1024));
    page.state(snapshot);
    for counter in &snapshot.counters {
        page.single(&format!("llm_bridge_{}_total", counter.name), "counter", counter.help, counter.value);
    }
    for gauge in &snapshot.gauges {
        page.single(&format!("llm_bridge_{}", gauge.name), "gauge", gauge.help, gauge.value);
    }
    page.single(
        "llm_bridge_held_bytes",
        "gauge",
        "Bytes held in queues and buffers, all of them together.",
        snapshot.held_bytes,
    );
    page.queues(&snapshot.queues);
    page.latencies(snapshot);
    page.slow_rounds(snapshot);
    page.process(snapshot);
    page.0
}

struct Page(String);

impl Page {
    fn state(&mut self, snapshot: &Snapshot) {
        self.family("llm_bridge_build_info", "gauge", "Always 1; its labels identify the instance.");
        let labels = [("version", snapshot.version), ("instance_id", &snapshot.instance)];
        self.sample("llm_bridge_build_info", &labels, 1);
        self.single(
            "llm_bridge_ready",
            "gauge",
            "1 while Redis answers and this instance is not draining.",
            u8::from(snapshot.ready),
        );
        self.single(
            "llm_bridge_draining",
            "gauge",
            "1 while this instance is going down.",
            u8::from(snapshot.draining),
        );
        self.family("llm_bridge_redis_up", "gauge", "1 while Redis answers this role.");
        for (role, link) in &snapshot.redis {
            self.sample("llm_bridge_redis_up", &[("role", role)], u8::from(link.up));
        }
    }

    fn queues(&mut self, queues: &[QueueReport]) {
        type Value = fn(&QueueReport) -> u64;
        let families: [(&str, &str, &str, Value); 4] = [
            ("llm_bridge_queue_depth", "gauge", "Messages in the queue.", |queue| queue.depth as u64),
            (
                "llm_bridge_queue_depth_max",
                "gauge",
                "The most messages that were in the queue since the start.",
                |queue| queue.depth_max as u64,
            ),
            ("llm_bridge_queue_capacity", "gauge", "The most messages that the queue takes.", |queue| {
                queue.capacity as u64
            }),
            ("llm_bridge_queue_refused_total", "counter", "How often the queue had no room.", |queue| {
                queue.refused
            }),
        ];
        for (name, kind, help, value) in families {
            self.family(name, kind, help);
            for queue in queues {
                self.sample(name, &[("queue", &queue.name)], value(queue));
            }
        }
        type Bytes = fn(&QueueReport) -> Option<usize>;
        let weighed: [(&str, &str, Bytes); 2] = [
            ("llm_bridge_queue_bytes", "Bytes of the messages in a queue that is weighed.", |queue| {
                queue.bytes
            }),
            ("llm_bridge_queue_capacity_bytes", "The most bytes that the queue takes.", |queue| {
                queue.bytes_max
            }),
        ];
        for (name, help, value) in weighed {
            self.family(name, "gauge", help);
            for (queue, bytes) in queues.iter().filter_map(|queue| Some((queue, value(queue)?))) {
                self.sample(name, &[("queue", &queue.name)], bytes);
            }
        }
    }

    fn latencies(&mut self, snapshot: &Snapshot) {
        self.family("llm_bridge_latency_seconds", "histogram", "How long each stage takes.");
        for (stage, distribution) in &snapshot.latency_us {
            self.latency(stage.name(), distribution);
        }
    }

    fn latency(&mut self, stage: &str, distribution: &Distribution) {
        const BUCKET: &str = "llm_bridge_latency_seconds_bucket";
        for (us, bound) in BUCKETS {
            self.sample(BUCKET, &[("stage", stage), ("le", bound)], distribution.count_up_to(us));
        }
        self.sample(BUCKET, &[("stage", stage), ("le", "+Inf")], distribution.count());
        let sum_s = distribution.sum_us() / 1e6;
        self.sample("llm_bridge_latency_seconds_sum", &[("stage", stage)], sum_s);
        self.sample("llm_bridge_latency_seconds_count", &[("stage", stage)], distribution.count());
    }

    fn slow_rounds(&mut self, snapshot: &Snapshot) {
        const NAME: &str = "llm_bridge_slow_rounds_total";
        if snapshot.slow_rounds.is_empty() {
            return;
        }
        self.family(NAME, "counter", "Rounds of a thread over 20 ms, by the step that took the longest.");
        for slow in &snapshot.slow_rounds {
            self.sample(NAME, &[("thread", &slow.thread), ("step", slow.step)], slow.count);
        }
    }

    /// The names and meanings that Prometheus client libraries use for a process.
    fn process(&mut self, snapshot: &Snapshot) {
        let process = &snapshot.process;
        self.single("process_cpu_seconds_total", "counter", "CPU time spent.", process.cpu_s);
        self.single("process_resident_memory_bytes", "gauge", "Memory in RAM.", process.rss_bytes);
        self.single("process_open_fds", "gauge", "Open descriptors.", process.open_fds);
        self.single("process_max_fds", "gauge", "The most descriptors that may be open.", process.max_fds);
        self.single("process_threads", "gauge", "Threads.", process.threads.len());
        self.single(
            "process_start_time_seconds",
            "gauge",
            "When the process started, in seconds since 1970.",
            snapshot.started_at_s,
        );
    }

    /// A family with one sample and no labels.
    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n").ok();
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (place, (label, text)) in labels.iter().enumerate() {
            self.0.push(if place == 0 { '{' } else { ',' });
            self.0.push_str(label);
            self.0.push_str("=\"");
            self.escaped(text);
            self.0.push('"');
        }
        let end = if labels.is_empty() { "" } else { "}" };
        // Writing to a String cannot fail.
        writeln!(self.0, "{end} {value}").ok();
    }

    fn escaped(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::testing::{exposition, sample};

    #[test]
    fn the_page_is_well_formed_and_complete() {
        let registry = sample();
        let samples = exposition(&registry.render_prometheus()).unwrap();
        assert_eq!(samples["llm_bridge_entries_read_total"], 120.0);
        assert_eq!(samples["llm_bridge_connections_open"], 3.0);
        assert_eq!(samples["llm_bridge_ready"], 1.0);
        assert_eq!(samples["llm_bridge_redis_up{role=\"watcher\"}"], 1.0);
        assert_eq!(samples["llm_bridge_queue_capacity{queue=\"deliver \\\"0\\\"\\\\\\n\"}"], 4.0);
        assert!(samples["process_resident_memory_bytes"] > 0.0);
        for counter in registry.counters().read() {
            assert!(samples.contains_key(&format!("llm_bridge_{}_total", counter.name)), "{}", counter.name);
        }
        for gauge in registry.gauges().read() {
            assert!(samples.contains_key(&format!("llm_bridge_{}", gauge.name)), "{}", gauge.name);
        }
    }

    #[test]
    fn latencies_are_in_seconds_and_cumulative() {
        let samples = exposition(&sample().render_prometheus()).unwrap();
        let up_to = |bound| {
            samples[&format!("llm_bridge_latency_seconds_bucket{{stage=\"end_to_end\",le=\"{bound}\"}}")]
        };
        assert_eq!(["0.00005", "0.0001", "0.0005", "0.05", "+Inf"].map(up_to), [0.0, 1.0, 3.0, 4.0, 4.0]);
        let sum = samples["llm_bridge_latency_seconds_sum{stage=\"end_to_end\"}"];
        assert!((sum - 0.045_680).abs() < 0.000_5, "{sum}");
    }

    #[test]
    fn the_bounds_are_written_as_they_are_measured() {
        for (us, seconds) in BUCKETS {
            assert!((seconds.parse::<f64>().unwrap() * 1e6 - us as f64).abs() < 1e-6, "{seconds}");
        }
    }
}
