//! Parses the Prometheus text format strictly, as documented, and refuses everything else.

use std::collections::BTreeMap;

/// A metric family.
#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) kind: String,
    help: bool,
    /// Values by series: name and labels as they are written.
    pub(crate) samples: BTreeMap<String, f64>,
}

/// Parses all families; panics with the line that is wrong.
pub(crate) fn parse(text: &str) -> BTreeMap<String, Family> {
    assert!(text.ends_with('\n'), "the last line ends too");
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (what, name, rest) =
                (words.next().unwrap(), words.next().unwrap(), words.next().unwrap_or_default());
            assert!(is_name(name), "{line}");
            if name != current {
                assert!(!families.contains_key(name), "the lines of {name} are apart");
                name.clone_into(&mut current);
            }
            let family = families.entry(current.clone()).or_default();
            assert!(family.samples.is_empty(), "{line} follows its samples");
            match what {
                "HELP" => {
                    assert!(!family.help && !rest.is_empty(), "{line}");
                    family.help = true;
                }
                "TYPE" => {
                    assert!(family.kind.is_empty(), "{line}");
                    assert!(matches!(rest, "counter" | "gauge" | "histogram" | "summary"), "{line}");
                    rest.clone_into(&mut family.kind);
                }
                _ => panic!("{line}"),
            }
        } else {
            let family = families.get_mut(&current).unwrap_or_else(|| panic!("no family: {line}"));
            assert!(family.help && !family.kind.is_empty(), "HELP and TYPE come before {line}");
            let (series, value) = sample(line);
            let name = series.split('{').next().unwrap();
            let suffix = name.strip_prefix(&current).unwrap_or_else(|| panic!("{line} is not of {current}"));
            let allowed: &[&str] = match family.kind.as_str() {
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(allowed.contains(&suffix), "{line}");
            assert!(family.samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
        }
    }
    families.iter().for_each(|(name, family)| check(name, family));
    families
}

fn check(name: &str, family: &Family) {
    assert!(!family.samples.is_empty(), "{name} has no samples");
    assert_eq!(family.kind == "counter", name.ends_with("_total"), "{name} is a {}", family.kind);
    if family.kind != "gauge" {
        assert!(family.samples.values().all(|value| *value >= 0.0), "{name}");
    }
    if family.kind != "histogram" {
        return;
    }
    for (series, count) in &family.samples {
        let Some(labels) = series.strip_prefix(&format!("{name}_count")) else { continue };
        let inner = labels.trim_matches(['{', '}']);
        let mut buckets: Vec<(f64, f64)> = family
            .samples
            .iter()
            .filter(|(bucket, _)| bucket.starts_with(&format!("{name}_bucket{{{inner}")))
            .map(|(bucket, value)| (bound(bucket), *value))
            .collect();
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        assert!(buckets.is_sorted_by(|one, next| one.0 < next.0 && one.1 <= next.1), "{series}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, *count)), "{series}");
        assert!(family.samples.contains_key(&series.replacen("_count", "_sum", 1)), "{series}");
    }
}

/// The upper bound of a bucket.
fn bound(series: &str) -> f64 {
    let text = series.split("le=\"").nth(1).unwrap().split('"').next().unwrap();
    if text == "+Inf" { f64::INFINITY } else { text.parse().unwrap() }
}

/// Splits a sample into its series and its value.
fn sample(line: &str) -> (&str, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
    let name_end = series.find('{').unwrap_or(series.len());
    assert!(is_name(&series[..name_end]), "{line}");
    if name_end < series.len() {
        let labels =
            series[name_end..].strip_prefix('{').unwrap().strip_suffix('}').expect("a closing brace");
        check_labels(labels, line);
    }
    let value: f64 = value.parse().unwrap_or_else(|error| panic!("{error}: {line}"));
    assert!(value.is_finite(), "{line}");
    (series, value)
}

fn check_labels(mut labels: &str, line: &str) {
    while !labels.is_empty() {
        let (name, rest) = labels.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
        assert!(is_name(name) && !name.contains(':'), "label {name}: {line}");
        let mut is_escaped = false;
        let end = rest.find(|character| {
            let ends = character == '"' && !is_escaped;
            is_escaped = character == '\\' && !is_escaped;
            ends
        });
        labels = &rest[end.unwrap_or_else(|| panic!("no end of a value: {line}")) + 1..];
        labels = labels.strip_prefix(',').unwrap_or(labels);
    }
}

fn is_name(name: &str) -> bool {
    let is_letter = |character: char| character.is_ascii_alphabetic() || matches!(character, '_' | ':');
    name.starts_with(is_letter)
        && name.chars().all(|character| is_letter(character) || character.is_ascii_digit())
}
