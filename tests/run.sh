#!/usr/bin/env bash
# Everything that has to hold before a change is merged: form, lints, unit, property and integration
# tests, and the benches in their smoke size. Installs what is missing. Ends with `N passed, N failed`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'run.sh: %s\n' "$*" >&2; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        say "this needs root and there is no sudo: $*"
        exit 1
    fi
}

# ensure COMMAND PACKAGE: installs the package if the command is missing.
ensure() {
    command -v "$1" >/dev/null && return
    if ! command -v apt-get >/dev/null; then
        say "$1 is missing and there is no apt-get; install it with your package manager and start again"
        exit 1
    fi
    say "installing $2 for $1"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2"
}

log=$(mktemp)

# Sums up what the test binaries said of themselves, as the last line, whatever happened.
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
    if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1; fi
    if [ "$failed" -ne 0 ] && [ "$status" -eq 0 ]; then status=1; fi
    printf '%s passed, %s failed\n' "$passed" "$failed"
    exit "$status"
}
trap finish EXIT

step() {
    printf '\n== %s\n' "$*"
    "$@" 2>&1 | tee -a "$log"
}

[ -f "${HOME:-}/.cargo/env" ] && . "${HOME:-}/.cargo/env"
if ! command -v cargo >/dev/null; then
    say "cargo is missing; install Rust 1.88 or newer from https://rustup.rs and start again"
    exit 1
fi
for tool in rustfmt clippy; do
    if ! cargo "${tool/rustfmt/fmt}" --version >/dev/null 2>&1; then rustup component add "$tool"; fi
done
ensure cc build-essential
ensure redis-server redis-server
ensure systemd-analyze systemd

step cargo fmt --check
step cargo clippy --all-targets --locked -- -D warnings
step cargo build --locked
step cargo test --locked --no-fail-fast

# Whether the benches run, not how fast: without link-time optimization they build in a fraction of the time.
export CARGO_PROFILE_BENCH_LTO=off CARGO_PROFILE_BENCH_CODEGEN_UNITS=16
step cargo bench --locked --bench micro -- --test
step cargo bench --locked --bench end_to_end -- --smoke
