#!/usr/bin/env bash
# Builds llm-bridge and shows it: a private Redis, the daemon, a recorded answer, a page to open.
# Arguments go to `llm-bridge demo`, for example --port 8080.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. conf/tools.sh

ensure_rust
ensure redis-server redis-server

cargo build --release --locked
exec "${CARGO_TARGET_DIR:-target}/release/llm-bridge" demo "$@"
