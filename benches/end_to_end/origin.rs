//! The origin of a report's figures: the machine, the commit and the command.

use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::stage::Result;

/// The machine, and the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Origin {
    processor: String,
    cores: usize,
    memory_gib: f64,
    kernel: String,
    redis: String,
    /// The day on which the bench began.
    date: String,
    /// In how many parts it ran.
    parts: usize,
    /// The commit of the working tree, and whether files differ from it.
    commit: String,
    command: String,
    rounds: usize,
    seconds: f64,
}

impl Origin {
    /// The origin of runs that begin now.
    pub(crate) fn read(rounds: usize, seconds: f64) -> Result<Self> {
        let processors = std::fs::read_to_string("/proc/cpuinfo")?;
        let memory = std::fs::read_to_string("/proc/meminfo")?;
        let kib = field(&memory, "MemTotal").and_then(|total| total.strip_suffix(" kB"));
        let redis = said("redis-server", &["--version"])?;
        let version = redis.split_whitespace().find_map(|word| word.strip_prefix("v="));
        let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
        Ok(Self {
            processor: field(&processors, "model name").unwrap_or("unknown processor").into(),
            cores: std::thread::available_parallelism()?.get(),
            memory_gib: (kib.unwrap_or_default().parse::<f64>().unwrap_or_default() / (1024.0 * 1024.0))
                .round(),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().into(),
            redis: version.unwrap_or("of unknown version").into(),
            date: said("date", &["-u", "+%F"])?,
            parts: 1,
            commit: commit(),
            command: format!("cargo bench --bench end_to_end -- {}", arguments.join(" ")),
            rounds,
            seconds,
        })
    }

    /// In what both differ besides the time; empty if this is a part of the same bench.
    pub(crate) fn differences(&self, earlier: &Self) -> String {
        let of = |origin: &Self| {
            let Self { processor, cores, memory_gib, kernel, redis, commit, command, .. } = origin;
            let machine =
                format!("{cores} cores ({processor}), {memory_gib} GiB, Linux {kernel}, Redis {redis}");
            [commit.clone(), command.clone(), machine]
        };
        let pairs = of(self).into_iter().zip(of(earlier)).filter(|(now, then)| now != then);
        pairs.map(|(now, then)| format!("{then} instead of {now}")).collect::<Vec<_>>().join("; ")
    }

    /// The origin of the same bench with one more part.
    pub(crate) fn continued(self) -> Self {
        Self { parts: self.parts + 1, ..self }
    }

    /// All of it in words, in Markdown.
    pub(crate) fn words(&self) -> String {
        let Self { processor, cores, memory_gib, kernel, redis, .. } = self;
        let Self { date, parts, commit, command, rounds, seconds, .. } = self;
        let parts = if *parts > 1 { format!(" in {parts} parts") } else { String::new() };
        format!(
            "Measured on {date} at {commit}, on {cores} cores ({processor}) with {memory_gib:.0} GiB of memory, Linux \
             {kernel}, Redis {redis}: medians of {rounds} alternating rounds of {seconds} s each, by one run{parts} of\n\n\
             ```text\n{command}\n```\n"
        )
    }
}

/// The commit of the working tree, in words.
fn commit() -> String {
    let git = |arguments: &[&str]| said("git", &[&["-C", env!("CARGO_MANIFEST_DIR")], arguments].concat());
    match (git(&["rev-parse", "--short=12", "HEAD"]), git(&["status", "--porcelain"])) {
        (Ok(commit), Ok(changes)) if changes.is_empty() => format!("commit {commit}"),
        (Ok(commit), _) => format!("commit {commit} with uncommitted changes"),
        (Err(_), _) => "an unknown commit".into(),
    }
}

/// The first value of a field in a file of `/proc`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.into_iter().find(|(field, _)| field.trim() == name).map(|(_, value)| value.trim())
}

/// A program's output.
fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let done = Command::new(program).args(arguments).output()?;
    if !done.status.success() {
        return Err(format!("{program} failed: {}", String::from_utf8_lossy(&done.stderr)).into());
    }
    Ok(String::from_utf8(done.stdout)?.trim().into())
}
