//! Payloads mutated with a fixed seed: nothing panics, the state stays bounded, and the events are valid.

use super::Form;
use crate::fuzzing::{Dialogue, Numbers, PAYLOADS, mutate};

/// Reads mutated payloads one after another; some are understood.
fn emit(seeds: &[Vec<u8>], seed: u64, payloads: usize) {
    let mut numbers = Numbers(seed | 1);
    let (mut dialogue, mut understood) = (Dialogue::default(), 0);
    for _ in 0..payloads {
        let bytes = mutate(&mut numbers, seeds);
        let form = if numbers.below(2) == 0 { Form::OpenAi } else { Form::Anthropic };
        understood += usize::from(dialogue.read(form, &bytes));
    }
    assert!(understood * 20 > payloads, "{understood} of {payloads} were understood");
}

#[test]
fn torn_payloads_do_no_harm() {
    let seeds: Vec<Vec<u8>> = PAYLOADS.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    for seed in 1..=8 {
        emit(&seeds, seed, 4_000);
    }
}

/// Payloads of recordings, if there are any: see `tests/integration/fixtures.rs`.
#[test]
fn torn_recordings_do_no_harm() {
    let folder = std::env::var_os("LLM_BRIDGE_FIXTURES").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures"),
        std::path::PathBuf::from,
    );
    let mut folders = vec![folder];
    let mut seeds = Vec::new();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "txt" || extension == "sse") {
                let text = std::fs::read_to_string(path).unwrap();
                let payloads = text.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line));
                // A few of each: most lines of a recording are alike.
                let payloads = payloads.filter(|payload| payload.starts_with('{')).step_by(23);
                seeds.extend(payloads.map(|payload| payload.as_bytes().to_vec()));
            }
        }
    }
    if seeds.is_empty() {
        eprintln!("no recordings here: LLM_BRIDGE_FIXTURES can name their directory");
        return;
    }
    seeds.sort();
    emit(&seeds, 77, 20_000);
}
