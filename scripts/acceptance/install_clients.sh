#!/usr/bin/env bash
# Install the registry clients for `make acceptance` from Debian, and list them.
#
#   docker, ctr, podman, buildah, skopeo (with umoci and runc)   required
#   crane, oras, regctl                                          where Go is installed: Debian has no packages
#   conformance                                                  likewise: the official suite, which is no client
#
# Writes var/acceptance/clients: a line for each client, "NAME" or "NAME: why it is not tried".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# Debian's versions fit each other; /usr/local may have another docker. Programs in sbin are not on an ordinary user's PATH.
PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH

declare -A modules=(
    [crane]=github.com/google/go-containerregistry/cmd/crane@v0.20.3
    [oras]=oras.land/oras/cmd/oras@v1.3.4
    [regctl]=github.com/regclient/regclient/cmd/regctl@v0.11.7
    [conformance]=github.com/opencontainers/distribution-spec/conformance@v0.0.0-20260831232431-97274622c111
)
# Seconds to compile one of them.
compile_limit=300
policy=/usr/sbin/policy-rc.d
log=var/acceptance/log

say() { printf 'clients: %3d s  %s\n' "$SECONDS" "$*"; }
fail() {
    printf 'clients: %s\n' "$*" >&2
    exit 1
}
has() { [ -x "/usr/bin/$1" ] || [ -x "/usr/sbin/$1" ]; }
apt_knows() { apt-cache show "$1" >/dev/null 2>&1; }

missing_packages() {
    has dockerd || echo docker.io
    # Debian 12 has the command line in docker.io, later releases in a package for it.
    has docker || { apt_knows docker-cli && echo docker-cli || echo docker.io; }
    # Since 23.0, BuildKit's client is a plugin.
    [ -e /usr/libexec/docker/cli-plugins/docker-buildx ] || { ! apt_knows docker-buildx || echo docker-buildx; }
    has containerd && has ctr || echo containerd
    has podman || echo podman
    has buildah || echo buildah
    has skopeo || echo skopeo
    has umoci || echo umoci
    has runc || echo runc
}

# Several packages have services. This keeps Debian from starting them (101: "action forbidden").
forbid_services() {
    [ ! -e "$policy" ] || return 0
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
}

install_packages() {
    say "installing from Debian, without starting services: $*"
    export DEBIAN_FRONTEND=noninteractive
    local install=(apt-get install --yes --no-install-recommends "$@")
    if "${install[@]}" >"$log/apt.log" 2>&1 </dev/null; then
        return
    fi
    say 'updating the package lists of apt'
    apt-get update >"$log/apt-update.log" 2>&1 </dev/null || fail "apt-get update failed: see $log/apt-update.log"
    "${install[@]}" >"$log/apt.log" 2>&1 </dev/null || {
        cat "$log/apt.log" >&2
        fail "apt-get could not install: $*"
    }
}

ensure_clients() {
    local missing
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || fail "missing: ${missing[*]}; as root: apt-get install --no-install-recommends ${missing[*]}"
    forbid_services
    install_packages "${missing[@]}"
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} = 0 ] || fail "still missing after the installation: ${missing[*]}"
}

# Compile a program; print its line.
ensure_compiled() {
    local name=$1 module=${modules[$1]} bin=$PWD/var/acceptance/bin
    if [ "$(cat "$bin/$name.version" 2>/dev/null)" = "$module" ] && [ -x "$bin/$name" ]; then
        echo "$name"
    elif ! command -v go >/dev/null; then
        echo "$name: no Go toolchain to compile it with"
    elif GOBIN=$bin timeout "$compile_limit" go install "$module" >"$log/$name.log" 2>&1 </dev/null; then
        echo "$module" >"$bin/$name.version"
        echo "$name"
    else
        echo "$name: $(go env GOVERSION) did not compile it: $(tail -n 1 "$log/$name.log")"
    fi
}

[ "$(id -u)" = 0 ] || fail 'running containers takes root'
mkdir -p "$log" var/acceptance/bin
ensure_clients
{
    printf '%s\n' docker ctr podman buildah skopeo
    for name in crane oras regctl; do
        ensure_compiled "$name"
    done
} >var/acceptance/clients
suite=$(ensure_compiled conformance)
[ "$suite" = conformance ] || say "without the official conformance suite: $suite"
say "to try: $(grep -v : var/acceptance/clients | paste -sd ' ')"
! grep : var/acceptance/clients || say 'the line above is in the report, too'
