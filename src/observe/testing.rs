//! Helpers shared by the tests of this module: a filled registry, and a strict reader of Prometheus' text format.

use std::collections::{BTreeMap, BTreeSet};

use super::{Lease, Registry, Round, SLOW_ROUND, Stage};
use crate::queue;

/// A registry that is ready, with values of every kind and names that need escaping.
pub(super) fn sample() -> Registry {
    let registry = Registry::new("host-8080");
    registry.counters().entries_read.add(120);
    registry.gauges().connections_open.set(3);
    let mut recorder = registry.recorder();
    for us in [80, 300, 300, 45_000] {
        recorder.record(Stage::EndToEnd, us);
    }
    recorder.publish();
    for name in ["transform-0", "deliver \"0\"\\\n"] {
        let (sender, _receiver) = queue::bounded::<u8>(name, 4);
        registry.register_queue(sender.gauge());
    }
    registry.note_round(Round { lasted: SLOW_ROUND, step: "reading from clients" });
    registry.health().set_lease(Lease::Held);
    registry.health().redis_works("reader-0");
    registry.health().redis_works("watcher");
    registry
}

/// The samples of a page by name and labels, as they are written.
pub(super) type Samples = BTreeMap<String, f64>;

/// Parses a page of Prometheus' text format 0.0.4 as strictly as its description allows: each family is one block
/// with HELP and TYPE before its samples, no sample is repeated, names and labels are well formed, counters end in
/// `_total`, histograms are complete and their buckets do not decrease.
pub(super) fn exposition(page: &str) -> Result<Samples, String> {
    let mut samples = Samples::new();
    let mut families = BTreeSet::new();
    let mut lines = page.lines().peekable();
    if !page.ends_with('\n') {
        return Err("the last line is not ended".into());
    }
    while let Some(help) = lines.next() {
        let name = help.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')).ok_or(help)?.0;
        let kind_line = lines.next().unwrap_or_default();
        let kind = kind_line.strip_prefix(&format!("# TYPE {name} ")).ok_or(kind_line)?;
        if !is_name(name, true) || !families.insert(name.to_owned()) {
            return Err(format!("{name}: malformed, or not in one block"));
        }
        if (kind == "counter") != name.ends_with("_total")
            || !["counter", "gauge", "histogram"].contains(&kind)
        {
            return Err(format!("{name} is not called like a {kind}"));
        }
        let mut own = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').ok_or(line)?;
            let value: f64 = value.parse().map_err(|_| line)?;
            check_series(series, name, kind)?;
            if samples.insert(series.to_owned(), value).is_some() {
                return Err(format!("{series} comes twice"));
            }
            own.push((series, value));
        }
        if kind == "histogram" {
            check_histogram(name, &own)?;
        }
    }
    Ok(samples)
}

fn check_series(series: &str, family: &str, kind: &str) -> Result<(), String> {
    let (name, labels) = match series.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}').ok_or(series)?),
        None => (series, ""),
    };
    let is_own = match kind {
        "histogram" => ["_bucket", "_sum", "_count"].contains(&name.strip_prefix(family).unwrap_or_default()),
        _ => name == family,
    };
    if !is_own {
        return Err(format!("{series} is not of {family}"));
    }
    let mut rest = labels;
    let mut seen = BTreeSet::new();
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"").ok_or(series)?;
        if !is_name(label, false) || !seen.insert(label.to_owned()) {
            return Err(format!("{series}: label {label:?}"));
        }
        let end = end_of_value(after).ok_or(series)?;
        rest = &after[end + 1..];
        rest = match rest.strip_prefix(',') {
            Some(more) if !more.is_empty() => more,
            None if rest.is_empty() => rest,
            _ => return Err(format!("{series}: after label {label}")),
        };
    }
    Ok(())
}

/// The index of the quote that ends a label's value.
fn end_of_value(text: &str) -> Option<usize> {
    let mut characters = text.char_indices();
    while let Some((place, c)) = characters.next() {
        match c {
            '"' => return Some(place),
            '\\' => {
                characters.next().filter(|(_, escaped)| matches!(escaped, '\\' | '"' | 'n'))?;
            }
            _ => {}
        }
    }
    None
}

fn is_name(name: &str, may_have_colons: bool) -> bool {
    let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_' || (may_have_colons && c == ':');
    name.starts_with(is_letter) && name.chars().all(|c| is_letter(c) || c.is_ascii_digit())
}

fn check_histogram(name: &str, samples: &[(&str, f64)]) -> Result<(), String> {
    let stages: BTreeSet<_> =
        samples.iter().filter_map(|(series, _)| series.split("stage=\"").nth(1)?.split('"').next()).collect();
    for stage in &stages {
        let prefix = format!("{name}_bucket{{stage=\"{stage}\",le=\"");
        let mut last = (f64::NEG_INFINITY, 0.0);
        for (series, value) in samples.iter().filter(|(series, _)| series.starts_with(&prefix)) {
            let bound = series[prefix.len()..].trim_end_matches("\"}").parse().map_err(|_| *series)?;
            if bound <= last.0 || *value < last.1 {
                return Err(format!("{series} is out of order"));
            }
            last = (bound, *value);
        }
        let count =
            samples.iter().find(|(series, _)| *series == format!("{name}_count{{stage=\"{stage}\"}}"));
        let has_sum = samples.iter().any(|(series, _)| *series == format!("{name}_sum{{stage=\"{stage}\"}}"));
        if !has_sum || last.0 != f64::INFINITY || count.map(|(_, count)| *count) != Some(last.1) {
            return Err(format!("{name} of {stage} is not complete"));
        }
    }
    if stages.is_empty() { Err(format!("{name} has no samples")) } else { Ok(()) }
}

#[test]
fn the_reader_refuses_what_is_malformed() {
    let family = "# HELP a_total x\n# TYPE a_total counter\n";
    exposition(&format!("{family}a_total{{b=\"\\\"}}\\\\\",c=\"\"}} 1\n")).unwrap();
    for samples in [
        "a_total 1",
        "a_total 1\na_total 2\n",
        "b_total 1\n",
        "a_total x\n",
        "a_total{b=\"1\",b=\"2\"} 1\n",
        "a_total{1b=\"1\"} 1\n",
        "a_total{b=\"\\x\"} 1\n",
        "a_total{b=\"1\",} 1\n",
        "a_total{b=\"1} 1\n",
        "a_total 1\n# HELP a_total x\n# TYPE a_total counter\n",
        "a_total 1\n# TYPE b gauge\nb 1\n",
    ] {
        assert!(exposition(&format!("{family}{samples}")).is_err(), "{samples}");
    }
    let histogram = "# HELP h x\n# TYPE h histogram\nh_bucket{stage=\"s\",le=\"1\"} 2\n";
    let rest = "h_sum{stage=\"s\"} 1\nh_count{stage=\"s\"} 2\n";
    exposition(&format!("{histogram}h_bucket{{stage=\"s\",le=\"+Inf\"}} 2\n{rest}")).unwrap();
    assert!(exposition(&format!("{histogram}h_bucket{{stage=\"s\",le=\"+Inf\"}} 1\n{rest}")).is_err());
    assert!(exposition(&format!("{histogram}{rest}")).is_err());
}
