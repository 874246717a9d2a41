#!/usr/bin/env bash
# Builds llm-bridge and shows it: a private Redis, the daemon, a recorded answer, a page to open.
# Arguments go to `llm-bridge demo`, for example --port 8080.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'demo.sh: %s\n' "$*" >&2; }

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

[ -f "${HOME:-}/.cargo/env" ] && . "${HOME:-}/.cargo/env"
if ! command -v cargo >/dev/null; then
    say "cargo is missing; install Rust 1.88 or newer from https://rustup.rs and start again"
    exit 1
fi
ensure cc build-essential
ensure redis-server redis-server

cargo build --release --locked
exec "${CARGO_TARGET_DIR:-target}/release/llm-bridge" demo "$@"
