#!/usr/bin/env bash
# Install an OpenID Connect issuer for `make acceptance`, and list it.
#
#   dex   compiled from its repository, where Go is installed: one to five minutes on two cores, once
#
# Debian has no package of it, and `go install` refuses a module that replaces another one.
# DEX_SOURCE is the repository, for machines that have a mirror; ISSUERS names those to try, all of them by default.
# Writes var/acceptance/issuers: a line for each, "NAME" or "NAME: why it is not tried".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

tag=v2.45.1
source=${DEX_SOURCE:-https://github.com/dexidp/dex.git}
# Seconds.
clone_limit=120
build_limit=1500
log=$PWD/var/acceptance/log
place=$PWD/var/dex

say() { printf 'issuers: %3d s  %s\n' "$SECONDS" "$*" >&2; }
last_line() { tail -n 1 "$1" | cut -c 1-200; }

ensure_dex() {
    if [ "$(cat "$place/version" 2>/dev/null)" = "$tag" ] && [ -x "$place/dex" ]; then
        echo dex
        return
    fi
    if ! command -v go >/dev/null; then
        echo 'dex: no Go toolchain to compile it with (Debian 13: apt-get install golang)'
        return
    fi
    say "compiling Dex, once: $tag"
    rm -rf "$place/source"
    mkdir -p "$place"
    if ! GIT_TERMINAL_PROMPT=0 timeout "$clone_limit" \
        git clone --quiet --depth 1 --branch "$tag" "$source" "$place/source" >"$log/dex.log" 2>&1 </dev/null; then
        echo "dex: cannot clone $source: $(last_line "$log/dex.log") (DEX_SOURCE names another repository)"
    elif ! (cd "$place/source" && timeout "$build_limit" nice go build -o "$place/dex" ./cmd/dex) \
        >"$log/dex.log" 2>&1 </dev/null; then
        echo "dex: $(go env GOVERSION) did not compile it within $build_limit s: $(last_line "$log/dex.log")"
    else
        rm -rf "$place/source"
        echo "$tag" >"$place/version"
        echo dex
    fi
}

mkdir -p "$log"
wanted=${ISSUERS-dex}
case " $wanted " in
    *" dex "*) ensure_dex ;;
    *) echo 'dex: ISSUERS leaves it out' ;;
esac >var/acceptance/issuers
say "to try: $(grep -v : var/acceptance/issuers | paste -sd ' ' || true)"
if grep : var/acceptance/issuers >&2; then
    say 'what is named above is not tried'
fi
