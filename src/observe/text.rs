//! The state of the daemon for people: a page of text, and tables of percentiles that programs can read too.

use std::fmt::Write;

use super::latency::{Distribution, Stage};
use super::rounds::SLOW_ROUND;
use super::snapshot::Snapshot;

/// The percentiles of the tables.
const PERCENTILES: [f64; 9] = [25.0, 50.0, 75.0, 90.0, 99.0, 99.9, 99.99, 99.999, 100.0];

/// Renders the page.
pub(super) fn render(snapshot: &Snapshot) -> String {
    let mut page = String::with_capacity(4096);
    // Writing to a String cannot fail.
    write_page(&mut page, snapshot).ok();
    page
}

fn write_page(page: &mut String, snapshot: &Snapshot) -> std::fmt::Result {
    let Snapshot { version, instance, uptime_s, .. } = snapshot;
    writeln!(page, "llm-bridge {version}, instance {}, up {uptime_s:.1} s", plain(instance))?;
    if snapshot.ready {
        writeln!(page, "ready")?;
    }
    for reason in &snapshot.not_ready {
        writeln!(page, "not ready: {}", plain(reason))?;
    }
    writeln!(page, "\nredis")?;
    for (role, link) in &snapshot.redis {
        let state = if link.up { "up" } else { "down" };
        let line = format!("  {:<28}{state} for {:.1} s  {}", plain(role), link.since_s, plain(&link.detail));
        writeln!(page, "{}", line.trim_end())?;
    }
    let head =
        ["count", "p50", "p90", "p99", "p99.9", "max", "mean"].map(|name| format!("{name:>10}")).concat();
    writeln!(page, "\n{:<20}{head}", "latency in us")?;
    for (stage, distribution) in &snapshot.latency_us {
        let all = distribution.summary();
        let numbers = [all.count, all.p50, all.p90, all.p99, all.p999, all.max];
        let numbers = numbers.map(|number| format!("{number:>10}")).concat();
        writeln!(page, "  {:<18}{numbers}{:>10.1}", stage.name(), all.mean)?;
    }
    if !snapshot.slow_rounds.is_empty() {
        writeln!(page, "\nrounds over {} ms, by the step that took the longest", SLOW_ROUND.as_millis())?;
    }
    for slow in &snapshot.slow_rounds {
        let (thread, step) = (plain(&slow.thread), slow.step);
        writeln!(page, "  {thread:<18}{step:<24}{:>8}  longest {} ms", slow.count, slow.longest_ms)?;
    }
    let head = ["depth", "max", "capacity", "refused", "bytes"].map(|name| format!("{name:>10}")).concat();
    writeln!(page, "\n{:<30}{head}", "queues")?;
    for queue in &snapshot.queues {
        let numbers = [queue.depth, queue.depth_max, queue.capacity].map(|n| format!("{n:>10}")).concat();
        let bytes = queue.bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
        writeln!(page, "  {:<28}{numbers}{:>10}{bytes:>10}", plain(&queue.name), queue.refused)?;
    }
    writeln!(page, "\nnow")?;
    for gauge in &snapshot.gauges {
        writeln!(page, "  {:<28}{:>14}  {}", gauge.name, gauge.value, gauge.help)?;
    }
    writeln!(page, "  {:<28}{:>14}  Bytes held in queues and buffers.", "held_bytes", snapshot.held_bytes)?;
    writeln!(page, "\nsince the start")?;
    for counter in &snapshot.counters {
        writeln!(page, "  {:<28}{:>14}  {}", counter.name, counter.value, counter.help)?;
    }
    let process = &snapshot.process;
    writeln!(page, "\nprocess")?;
    writeln!(page, "  {:<28}{:>14}", "rss_bytes", process.rss_bytes)?;
    writeln!(page, "  {:<28}{:>14}  of {}", "open_fds", process.open_fds, process.max_fds)?;
    writeln!(page, "  {:<28}{:>14.2}", "cpu_s", process.cpu_s)?;
    writeln!(page, "  {:<28}{}", "threads", process.threads.join(" "))
}

/// Text from elsewhere (a message of Redis, a name) without line breaks and control characters.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A block of lines for every stage: `stage NAME count N mean_us M`, a heading, then
/// `percentile value_us` for each percentile; an empty line ends it. A stage without values has no
/// percentiles.
pub(super) fn histograms(stages: &[(Stage, Distribution)]) -> String {
    let mut page = String::with_capacity(2048);
    for (stage, distribution) in stages {
        // Writing to a String cannot fail.
        write_table(&mut page, *stage, distribution).ok();
    }
    page
}

fn write_table(page: &mut String, stage: Stage, distribution: &Distribution) -> std::fmt::Result {
    let all = distribution.summary();
    writeln!(page, "stage {} count {} mean_us {:.1}", stage.name(), all.count, all.mean)?;
    writeln!(page, "{:>10} {:>10}", "percentile", "value_us")?;
    if all.count > 0 {
        for percentile in PERCENTILES {
            writeln!(page, "{percentile:>10} {:>10}", distribution.at(percentile))?;
        }
    }
    writeln!(page)
}

#[cfg(test)]
mod tests {
    use crate::observe::Stage;
    use crate::observe::testing::sample;

    #[test]
    fn the_page_shows_everything_a_line_each() {
        let registry = sample();
        registry.health().redis_fails("watcher", "Redis is loading", "LOADING\nRedis\u{1b}[31m");
        let page = registry.render_text();
        assert!(page.contains("not ready: Redis is loading: LOADING Redis [31m (watcher)\n"), "{page}");
        assert!(page.chars().all(|c| c == '\n' || !c.is_control()));
        let value = |name: &str| {
            let line = page.lines().find(|line| line.split_whitespace().next() == Some(name));
            line.unwrap_or_else(|| panic!("no line for {name}")).split_whitespace().nth(1).unwrap()
        };
        assert_eq!(
            (value("entries_read"), value("connections_open"), value("end_to_end")),
            ("120", "3", "4")
        );
        for counter in registry.counters().read() {
            assert_eq!(value(counter.name), counter.value.to_string());
        }
    }

    #[test]
    fn the_tables_can_be_read_back() {
        let page = sample().render_histograms();
        let blocks: Vec<_> = page.split_terminator("\n\n").collect();
        assert_eq!(blocks.len(), Stage::ALL.len());
        let block =
            blocks.iter().find(|block| block.starts_with("stage end_to_end count 4 mean_us ")).unwrap();
        let rows: Vec<(f64, u64)> = block
            .lines()
            .skip(2)
            .map(|line| {
                let (percentile, value) = line.trim().split_once(' ').unwrap();
                (percentile.parse().unwrap(), value.trim().parse().unwrap())
            })
            .collect();
        assert_eq!(rows[0], (25.0, 80));
        assert!(rows.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1), "{rows:?}");
        assert!(rows.last().unwrap().1.abs_diff(45_000) <= 450);
        assert_eq!(
            blocks.iter().filter(|block| block.lines().count() == 2).count(),
            Stage::ALL.len() - 1,
            "stages without values"
        );
    }
}
