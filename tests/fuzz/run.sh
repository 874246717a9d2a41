#!/usr/bin/env bash
# Fuzzes the parsers of outside input, guided by coverage: every target of src/fuzzing for so many seconds
# (default: LLM_BRIDGE_FUZZ, or 60), or only those that are named. As many at a time as there are processors. A stable
# toolchain is enough. Everything lies under target/fuzz: the corpus, which the next run goes on from, and inputs that fail.
#
#     tests/fuzz/run.sh [SECONDS [TARGET...]]
#
# Ends with a line for each target and a line with how many passed and failed, in the form of Rust's test harness.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

. conf/tools.sh

seconds=${1:-${LLM_BRIDGE_FUZZ:-60}}
shift $(($# > 0 ? 1 : 0))
mapfile -t known < <(sed -nE 's/^    target\("([a-z]+)".*/\1/p' src/fuzzing/mod.rs)
targets=("${@:-${known[@]}}")

ensure_rust
# libFuzzer is C++.
ensure c++ build-essential

out=$PWD/target/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
mkdir -p "$out"/{corpus,seeds,logs,failures}

# The versions that the crate is built with, and libFuzzer.
cp Cargo.lock tests/fuzz/Cargo.lock
# The flags that cargo-fuzz sets; nightly toolchains call them -Zsanitizer: a count for each edge, reported comparisons,
# and checked reads and writes. For the target alone, not for build scripts.
RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$out RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address" \
    cargo build --quiet --release --manifest-path tests/fuzz/Cargo.toml --target "$host"
program=$out/$host/release/llm-bridge-fuzz

# Runs one target, and says how it went as the only line. Fails where it did.
fuzz() {
    local target=$1 log=$out/logs/$1 status=0 runs edges
    mkdir -p "$out/corpus/$target"
    # Looking for leaks needs ptrace, which containers do not always have.
    ASAN_OPTIONS=detect_leaks=0 LLM_BRIDGE_FUZZ_TARGET=$target LLM_BRIDGE_FUZZ_SEEDS=$out/seeds/$target "$program" \
        -max_total_time="$seconds" -max_len=4096 -timeout=30 -rss_limit_mb=2048 -print_final_stats=1 \
        -dict="$out/seeds/$target.dict" -artifact_prefix="$out/failures/$target-" \
        "$out/corpus/$target" "$out/seeds/$target" >"$log" 2>&1 || status=$?
    runs=$(sed -nE 's/^stat::number_of_executed_units: *//p' "$log")
    edges=$(sed -nE 's/.* cov: ([0-9]+) .*/\1/p' "$log" | tail -n 1)
    if [ "$status" -eq 0 ]; then
        printf 'fuzz %s ... ok, %s inputs, %s edges\n' "$target" "$runs" "$edges"
        return
    fi
    printf 'fuzz %s ... FAILED\n' "$target"
    grep -A 6 'panicked at' "$log" | cut -c 1-2000 || true
    grep -E '^(SUMMARY|artifact_prefix)' "$log" || tail -n 20 "$log"
    printf 'again: LLM_BRIDGE_FUZZ_TARGET=%s %s FILE, with the file that is named above\n' "$target" "$program"
    return 1
}

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
for target in "${targets[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || true; done
    { if fuzz "$target"; then echo ok; else echo failed; fi } >"$results/$target" &
done
wait
passed=0 failed=0
for target in "${targets[@]}"; do
    sed '$d' "$results/$target"
    if [ "$(tail -n 1 "$results/$target")" = ok ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
done
word=$([ "$failed" -eq 0 ] && echo ok || echo FAILED)
printf 'test result: %s. %s passed; %s failed; fuzzing for %s s each\n' "$word" "$passed" "$failed" "$seconds"
[ "$failed" -eq 0 ]
