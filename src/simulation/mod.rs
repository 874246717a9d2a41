//! A simulation of a whole delivery thread from a seed: it runs in one thread, without sockets, and with a clock of
//! its own.
//!
//! ```text
//!  streams ──▶ replays, transform, watcher, recorder ◀──queues──▶ the delivery thread ◀──memory──▶ clients ──▶ judges
//! ```
//!
//! The delivery thread, the decoder and [`conclude`](crate::transform::history::conclude) are the real ones; models
//! replace the other threads. Random numbers choose the next event: entries are written, trimmed and deleted; replay
//! threads answer late, in any order, or report that Redis is unavailable; live reading breaks; queues are full;
//! clients of all kinds connect, read slowly, and leave with or without closing their connection. A judge for each
//! viewer compares its frames with the entries that the simulation wrote, without the decoder ([`judge`]).
//!
//! Each run ends in two steps. First, writing stops and all pending work is finished: each viewer must have
//! everything, and answers about finished streams must have ended. Then all clients leave or the instance drains:
//! nothing may be held for them any more, and the thread may wake up only for its periodic work.
//!
//! A failing seed prints its number and the last events. `SIMULATION_SEED=n` runs one seed, `SIMULATION_SEEDS=n` runs
//! n new ones, as `tests/run.sh --long` does. A seed always produces the same run.
//!
//! Not simulated: sockets and the poll (`tests/integration`), the real transform and replay threads, other formats,
//! generations that end without an entry, failovers.

mod client;
mod judge;
mod streams;
mod threads;
mod world;

use std::panic::{self, AssertUnwindSafe};

use world::World;

/// Seeds of a normal test run.
const SEEDS: u64 = 200;
/// Random events of each seed before it settles.
const STEPS: usize = 500;

fn run(world: &mut World) {
    for _ in 0..STEPS {
        world.step();
    }
    world.settle();
    world.end();
}

/// Runs a seed. If it fails, it is run again with a trace.
fn run_seed(seed: u64) {
    let Err(panic) = panic::catch_unwind(|| run(&mut World::new(seed, false))) else { return };
    let mut world = World::new(seed, true);
    let again = panic::catch_unwind(AssertUnwindSafe(|| run(&mut world)));
    eprintln!("SIMULATION_SEED={seed} fails; the last events:");
    world.last_events().iter().for_each(|line| eprintln!("{line}"));
    assert!(again.is_err(), "seed {seed} failed only once: something does not depend on the seed alone");
    panic::resume_unwind(panic);
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}

#[test]
fn every_viewer_gets_everything_once_and_leaves_nothing_behind() {
    if let Some(seed) = number("SIMULATION_SEED") {
        return run_seed(seed);
    }
    let (first, count) = match number("SIMULATION_SEEDS") {
        Some(count) => (crate::model::now_us(), count),
        None => (1, SEEDS),
    };
    (first..first + count).for_each(run_seed);
}

#[test]
fn the_same_seed_always_does_the_same() {
    for seed in 1..4 {
        let events = |mut world: World| {
            (0..STEPS).for_each(|_| world.step());
            world.last_events().join("\n")
        };
        assert_eq!(events(World::new(seed, true)), events(World::new(seed, true)), "seed {seed}");
    }
}
