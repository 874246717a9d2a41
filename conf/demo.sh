#!/usr/bin/env bash
# Builds llm-bridge and shows it: a private Redis, the daemon, a recorded answer, a page to open.
# Arguments go to `llm-bridge demo`, for example --port 8080.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. conf/tools.sh

ensure_rust
ensure redis-server redis-server

program="${CARGO_TARGET_DIR:-target}/demo/llm-bridge"
[ -x "$program" ] || say "building llm-bridge; on two cores that takes about two minutes the first time"
cargo build --profile demo --locked --bin llm-bridge
exec "$program" demo "$@"
