#!/usr/bin/env bash
# Installs one peer of the end-to-end bench, from the registry that its users take it from:
#
#   benches/peers/install.sh node|fastapi|nchan|centrifugo|nats DIR
#
# All of it goes to DIR/PEER, but for Node, npm and python3-venv where those are missing, and an empty
# directory that nginx needs. The last line on stderr says why when it fails.
set -euo pipefail
# The output of the registries' tools is progress: it goes to stderr.
exec >&2

CENTRIFUGO=github.com/centrifugal/centrifugo/v6@v6.9.1
NATS=github.com/nats-io/nats-server/v2@v2.14.5

peer=${1:?usage: install.sh node|fastapi|nchan|centrifugo|nats DIR}
mkdir -p "${2:?usage: install.sh node|fastapi|nchan|centrifugo|nats DIR}/$peer"
dir=$(cd "$2/$peer" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
sources=benches/peers/$peer

. conf/tools.sh

give_up() {
    say "$*"
    exit 1
}

# Whether the list of packages is the installed one. If not, clears the mark until the new one is installed.
is_current() { cmp -s "$sources/$1" "$dir/.installed" || ! rm -f "$dir/.installed"; }
mark_current() { cp "$sources/$1" "$dir/.installed"; }

node() {
    ensure node nodejs
    ensure npm npm
    local major
    major=$(command node -p 'process.versions.node.split(".")[0]')
    [ "$major" -ge 20 ] || give_up "Node 20 or newer is needed, this is Node $major"
    cp "$sources"/{server.js,package.json,package-lock.json} "$dir/"
    is_current package-lock.json && return
    say "installing ws and ioredis from npm"
    (cd "$dir" && npm ci --no-audit --no-fund --loglevel=error) || give_up "npm could not install ws and ioredis"
    mark_current package-lock.json
}

fastapi() {
    ensure python3 python3
    # Debian has the needs of a virtual environment in a package of their own.
    if ! python3 -c 'import ensurepip' 2>/dev/null; then ensure python3-venv python3-venv; fi
    cp "$sources/server.py" "$dir/"
    is_current requirements.txt && return
    say "installing FastAPI, uvicorn and redis-py from PyPI"
    python3 -m venv "$dir/venv" || give_up "python3 could not make a virtual environment"
    "$dir/venv/bin/pip" install --quiet --disable-pip-version-check -r "$sources/requirements.txt" ||
        give_up "pip could not install FastAPI, uvicorn and redis-py"
    mark_current requirements.txt
}

# nginx from Debian's package would be started as a service on port 80. So where the machine has none,
# Debian's packages are unpacked beside the bench instead. With nchan, nginx insists on one directory of the
# system, whatever its configuration says.
nchan() {
    cp "$sources/nginx.conf.template" "$dir/"
    local nginx module=/usr/lib/nginx/modules/ngx_nchan_module.so
    nginx=$(PATH=$PATH:/usr/sbin command -v nginx) || true
    if [ -z "$nginx" ] || [ ! -e "$module" ]; then
        unpack nginx libnginx-mod-nchan
        nginx=$dir/debian/usr/sbin/nginx module=$dir/debian$module
    fi
    [ -d /var/lib/nginx/body ] || as_root mkdir -p /var/lib/nginx/body
    ln -sf "$nginx" "$dir/nginx"
    ln -sf "$module" "$dir/ngx_nchan_module.so"
    "$dir/nginx" -v || give_up "nginx does not run here"
}

unpack() {
    [ -d "$dir/debian" ] && return
    command -v apt-get >/dev/null ||
        give_up "there is no nginx with nchan, and no apt-get to have it with; install both with your package manager"
    if ! apt-cache show "$@" >/dev/null 2>&1; then as_root apt-get update -qq; fi
    say "fetching $* from Debian"
    rm -rf "$dir/packages" && mkdir "$dir/packages"
    (cd "$dir/packages" && apt-get download -qq "$@") || give_up "apt-get could not fetch $*"
    for package in "$dir"/packages/*.deb; do dpkg-deb -x "$package" "$dir/unpacked"; done
    mv "$dir/unpacked" "$dir/debian"
}

centrifugo() {
    cp "$sources/config.json.template" "$dir/"
    go_install "$CENTRIFUGO"
}

nats() {
    cp "$sources/nats.conf.template" "$dir/"
    go_install "$NATS"
}

# Installs a module's program, unless that version of it is installed. A module may need a newer Go than the
# machine's, which the go command then fetches from the module proxy.
go_install() {
    [ "$(cat "$dir/.installed" 2>/dev/null)" = "$1" ] && return
    command -v go >/dev/null || give_up "there is no Go; install Go 1.21 or newer from your package manager"
    say "building $1, which takes some minutes"
    rm -f "$dir/.installed"
    env GOTOOLCHAIN=auto GOBIN="$dir" go install "$1" ||
        give_up "go could not build $1 (this is $(go env GOVERSION); it may need a newer one)"
    echo "$1" >"$dir/.installed"
}

case $peer in
    node | fastapi | nchan | centrifugo | nats) "$peer" ;;
    *) give_up "there is no peer $peer" ;;
esac
