# Functions that the project's scripts share: installing what is missing. To be sourced by bash, in the project's root.

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

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

# Rust is the one thing that has to be there.
ensure_rust() {
    [ -f "${HOME:-}/.cargo/env" ] && . "${HOME:-}/.cargo/env"
    if ! command -v cargo >/dev/null; then
        say "cargo is missing; install Rust 1.88 or newer from https://rustup.rs and start again"
        exit 1
    fi
    ensure cc build-essential
}
