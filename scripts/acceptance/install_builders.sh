#!/usr/bin/env bash
# Install further builders for `make acceptance`, besides those of the clients, and list them.
#
#   kaniko   compiled from its Go module, where Go is installed: some 5 minutes on two cores, once
#   crictl   likewise, some 4 minutes: no builder, but it asks containerd for images as Kubernetes does
#
# BUILDERS names those to try, all of them by default; continuous integration leaves them out to save time.
# Writes var/acceptance/builders: a line for each, "NAME" or "NAME: why it is not tried".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# The last release.
kaniko=github.com/GoogleContainerTools/kaniko@v1.24.0
crictl=sigs.k8s.io/cri-tools/cmd/crictl@v1.34.0
# Seconds.
kaniko_limit=1200
crictl_limit=600
log=var/acceptance/log

say() { printf 'builders: %3d s  %s\n' "$SECONDS" "$*" >&2; }

# Compile through a module of our own: `go install` also asks for all of kaniko's versions, which a proxy may lack.
compile_kaniko() {
    local module
    module=$(mktemp -d) || return
    (
        cd "$module"
        go mod init executor
        go mod edit "-require=$kaniko"
        GOFLAGS=-mod=mod CGO_ENABLED=0 timeout "$kaniko_limit" nice \
            go build -o "$1" "${kaniko%@*}/cmd/executor"
    )
    local status=$?
    rm -rf "$module"
    return "$status"
}

ensure_kaniko() {
    local place=$PWD/var/kaniko
    if [ "$(cat "$place/version" 2>/dev/null)" = "$kaniko" ] && [ -x "$place/executor" ]; then
        echo kaniko
    elif ! command -v go >/dev/null; then
        echo 'kaniko: no Go toolchain to compile it with (1.24 or newer; Debian 13: apt-get install golang)'
    else
        say "compiling kaniko, once: $kaniko"
        mkdir -p "$place"
        if compile_kaniko "$place/executor" >"$log/kaniko.log" 2>&1 </dev/null; then
            echo "$kaniko" >"$place/version"
            echo kaniko
        else
            echo "kaniko: $(go env GOVERSION) did not compile it within $kaniko_limit s:" \
                "$(tail -n 1 "$log/kaniko.log" | cut -c 1-200)"
        fi
    fi
}

ensure_crictl() {
    local bin=$PWD/var/acceptance/bin
    if [ "$(cat "$bin/crictl.version" 2>/dev/null)" = "$crictl" ] && [ -x "$bin/crictl" ]; then
        echo crictl
    elif ! command -v go >/dev/null; then
        echo 'crictl: no Go toolchain to compile it with (1.24 or newer; Debian 13: apt-get install golang)'
    else
        say "compiling crictl, once: $crictl"
        mkdir -p "$bin"
        if GOBIN=$bin timeout "$crictl_limit" nice go install "$crictl" >"$log/crictl.log" 2>&1 </dev/null; then
            echo "$crictl" >"$bin/crictl.version"
            echo crictl
        else
            echo "crictl: $(go env GOVERSION) did not compile it within $crictl_limit s:" \
                "$(tail -n 1 "$log/crictl.log" | cut -c 1-200)"
        fi
    fi
}

mkdir -p "$log"
wanted=${BUILDERS-kaniko crictl}
{
    for builder in kaniko crictl; do
        case " $wanted " in
            *" $builder "*) "ensure_$builder" ;;
            *) echo "$builder: BUILDERS leaves it out" ;;
        esac
    done
} >var/acceptance/builders
say "to try besides the clients: $(grep -v : var/acceptance/builders | paste -sd ' ' || true)"
if grep : var/acceptance/builders >&2; then
    say 'what is named above is not tried'
fi
