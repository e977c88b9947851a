#!/usr/bin/env bash
# Install the programs to compare with: scripts/install_peers.sh PROGRAM=PACKAGE...
#
# Servers among them are neither started nor enabled.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:/usr/sbin:/sbin
policy=/usr/sbin/policy-rc.d

say() { printf 'peers: %s\n' "$*"; }
fail() {
    printf 'peers: %s\n' "$*" >&2
    exit 1
}

missing=()
for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null 2>&1 || missing+=("${pair##*=}")
done
[ ${#missing[@]} -gt 0 ] || exit 0

command -v apt-get >/dev/null 2>&1 ||
    fail "missing: ${missing[*]} (Debian's names); this is not Debian: install them with your package manager"
[ "$(id -u)" = 0 ] || fail "missing: ${missing[*]}; as root: apt-get install --no-install-recommends ${missing[*]}"

# Debian starts a server on installation unless this file forbids it. An existing file is kept.
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

say "installing from Debian: ${missing[*]} (their services are not started)"
mkdir -p var/log
export DEBIAN_FRONTEND=noninteractive
install=(apt-get install --yes --no-install-recommends "${missing[@]}")
"${install[@]}" >var/log/peers.log 2>&1 </dev/null || {
    # apt has no package lists, or outdated ones.
    say 'updating the package lists of apt'
    apt-get update >var/log/peers.log 2>&1 </dev/null && "${install[@]}" >>var/log/peers.log 2>&1 </dev/null || {
        cat var/log/peers.log >&2
        fail "apt-get cannot install: ${missing[*]}"
    }
}

if command -v systemctl >/dev/null 2>&1; then
    for package in "${missing[@]}"; do
        service=${package%-light}
        systemctl disable "$service.service" >/dev/null 2>&1 || true
    done
fi
