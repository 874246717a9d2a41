#!/usr/bin/env bash
# Everything that has to hold before a change is merged: form, lints, unit, property and integration
# tests, and the benches in their smoke size. Installs what is missing. Ends with `N passed, N failed`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. conf/tools.sh

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

ensure_rust
for tool in rustfmt clippy; do
    if ! cargo "${tool/rustfmt/fmt}" --version >/dev/null 2>&1; then rustup component add "$tool"; fi
done
ensure redis-server redis-server
ensure systemd-analyze systemd
# For the tests that speak TLS.
ensure openssl openssl
# For the tests of the browser client, and of the clients of other formats.
ensure node nodejs
ensure npm npm
ensure chromium chromium

step cargo fmt --check
step cargo clippy --all-targets --locked -- -D warnings
step cargo build --locked
step cargo test --locked --no-fail-fast

# Whether the benches run, not how fast: without link-time optimization they build in a fraction of the time.
export CARGO_PROFILE_BENCH_LTO=off CARGO_PROFILE_BENCH_CODEGEN_UNITS=16
step cargo bench --locked --bench micro -- --test
step cargo bench --locked --bench end_to_end -- --smoke
