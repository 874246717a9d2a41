//! Entry points for fuzzing: one function for each parser of input from outside. Only in builds with `--cfg fuzzing`
//! and in unit tests.
//!
//! Every target accepts any bytes and panics if one of these properties is violated: no panic, no read beyond the
//! end, bounded results; the same result however the bytes are cut; output can be read back; and a viewer that
//! resumes gets exactly the rest. `tests/fuzz` runs them under libFuzzer, guided by coverage, for some time; the
//! tests here run them on their seeds and on a few mutations, so that the properties are checked in every build.

mod clients;
#[cfg(test)]
mod mutate;
mod pages;
mod producers;
mod seeds;

#[cfg(test)]
pub(crate) use mutate::{Numbers, mutate};
#[cfg(test)]
pub(crate) use producers::{Dialogue, frames, is_over, shown};
#[cfg(test)]
pub(crate) use seeds::PAYLOADS;

/// A parser, with what a fuzzer needs to start.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Accepts any bytes, and panics if a property is violated.
    pub run: fn(&[u8]),
    /// Inputs from which the fuzzer creates others.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words for the fuzzer's dictionary.
    pub words: &'static [&'static str],
}

/// All targets.
pub const TARGETS: [Target; 12] = [
    target("resp", crate::redis::fuzz_resp, seeds::resp, &seeds::RESP_WORDS),
    target("sieve", crate::redis::fuzz_sieve, seeds::sieve, &seeds::RESP_WORDS),
    target("request", clients::request, seeds::request, &seeds::HTTP_WORDS),
    target("websocket", clients::websocket, seeds::websocket, &seeds::MESSAGE_WORDS),
    target("message", clients::message, seeds::message, &seeds::MESSAGE_WORDS),
    target("hosts", clients::hosts, seeds::hosts, &seeds::HOST_WORDS),
    target("admin", crate::observe::fuzz_requests, seeds::admin, &seeds::HTTP_WORDS),
    target("entries", producers::entries, seeds::entries, &seeds::ENTRY_WORDS),
    target("provider", producers::provider, seeds::provider, &seeds::ENTRY_WORDS),
    target("json", producers::json, seeds::json, &seeds::ENTRY_WORDS),
    target("names", producers::names, seeds::names, &seeds::NAME_WORDS),
    target("sse", pages::events, seeds::events, &seeds::SSE_WORDS),
];

const fn target(
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
    words: &'static [&'static str],
) -> Target {
    Target { name, run, seeds, words }
}

/// The first byte and the rest: for many targets the first byte determines how to cut.
pub(crate) fn cut(data: &[u8]) -> Option<(usize, &[u8])> {
    data.split_first().map(|(&step, bytes)| (usize::from(step) + 1, bytes))
}

#[cfg(test)]
mod tests {
    use std::panic::{self, AssertUnwindSafe};

    use super::*;

    /// Runs a target, and prints the input if it fails.
    fn run(target: &Target, input: &[u8]) {
        if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
            eprintln!("{} fails on {:?}", target.name, String::from_utf8_lossy(input));
            panic::resume_unwind(panic);
        }
    }

    #[test]
    fn every_target_holds_for_its_seeds() {
        for target in TARGETS {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{} has no seeds", target.name);
            seeds.iter().for_each(|seed| run(&target, seed));
            run(&target, b"");
        }
    }

    #[test]
    fn every_target_holds_for_torn_seeds() {
        for target in TARGETS {
            let seeds = (target.seeds)();
            let mut numbers = Numbers(1 + target.name.len() as u64);
            for _ in 0..400 {
                run(&target, &mutate(&mut numbers, &seeds));
            }
        }
    }

    #[test]
    fn targets_have_names_of_their_own() {
        let mut names = TARGETS.map(|target| target.name);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }
}
