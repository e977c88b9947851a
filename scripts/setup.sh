#!/usr/bin/env bash
# Set up everything that the demo, the server and the tests need: scripts/setup.sh [SYSTEM...]
#
#   1. programs: installed from Debian as root; other users get the command
#   2. Nix:      the user's own configuration, or a private one in var/nix for root without a daemon, with build users
#                (made if there are none) and the sandbox where the machine allows it; next to it, in
#                var/nix/public-cache, the same with the public binary cache of nixpkgs, for scripts/serve.sh
#   3. .venv:    the pinned Python requirements and this project, editable
#   4. the package set's lock, for each SYSTEM (default: x86_64-linux and this machine's)
#
# For a SYSTEM other than this machine's, QEMU is needed to run its programs in tests.
#
# Each step that is done already is skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
# As many as Nix's own installer creates: each running builder needs one.
build_users=32
python=${PYTHON:-python3}
# runc is in sbin, which is not on every user's PATH.
PATH=$PATH:/usr/sbin:/sbin

say() { printf 'setup: %3d s  %s\n' "$SECONDS" "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# quietly LOG COMMAND...: its output goes to var/log/LOG and is shown if it fails.
quietly() {
    local log=var/log/$1
    shift
    "$@" >"$log" 2>&1 </dev/null || {
        cat "$log" >&2
        return 1
    }
}

has() { command -v "$1" >/dev/null 2>&1; }

missing_packages() {
    has nix-instantiate || echo nix-bin
    has git || echo git
    has patchelf || echo patchelf
    has skopeo || echo skopeo
    has umoci || echo umoci
    has runc || echo runc
    # The package set's builders run the system's Python, regardless of PATH.
    [ -x /usr/bin/python3 ] || echo python3
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    local system
    for system in "${systems[@]}"; do
        [ "$system" = "$(uname -m)-linux" ] || has_emulator "${system%-linux}" || emulator_package
    done
}

# Static, to run inside containers. Before Debian 13, qemu-MACHINE is not.
has_emulator() {
    has "qemu-$1-static" || { has "qemu-$1" && ! ldd "$(command -v "qemu-$1")" 2>/dev/null | grep -q '=>'; }
}

# From Debian 13 on qemu-user is static.
emulator_package() {
    case $(sed -n 's/^VERSION_ID="\?\([0-9]*\).*/\1/p' /etc/os-release) in
    12) echo qemu-user-static ;;
    *) echo qemu-user ;;
    esac
}

install_packages() {
    say "installing from Debian: $*"
    export DEBIAN_FRONTEND=noninteractive
    # Packages that these recommend have services; these have none.
    local install=(apt-get install --yes --no-install-recommends "$@")
    if apt-cache show "$@" >/dev/null 2>&1 && "${install[@]}" >var/log/apt.log 2>&1 </dev/null; then
        return
    fi
    # apt has no package lists, or outdated ones.
    say 'updating the package lists of apt'
    quietly apt-update.log apt-get update || fail 'apt-get update failed'
    quietly apt.log "${install[@]}" || fail "apt-get could not install: $*"
}

ensure_programs() {
    has "$python" || fail "$python is missing; needed: Python 3.11 or newer, for example: apt-get install python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$python is $("$python" --version 2>&1); needed: 3.11 or newer (make PYTHON=/path/to/python3)"
    local missing
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -gt 0 ] || return 0
    has apt-get || fail "missing: ${missing[*]} (Debian's names); this is not Debian: install them with your package manager"
    [ "$(id -u)" = 0 ] ||
        fail "missing: ${missing[*]}; as root: apt-get install --no-install-recommends ${missing[*]}"
    install_packages "${missing[@]}"
    hash -r
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} = 0 ] || fail "still missing after the installation: ${missing[*]}"
}

# Tell whether Nix is set up already; its configuration is then kept. Build users prove nothing: this script may have created them.
nix_is_set_up() {
    [ -S /nix/var/nix/daemon-socket/socket ] || grep -qs '^ *build-users-group *= *[^ ]' /etc/nix/nix.conf
}

has_build_users() { [ -n "$(getent group nixbld | cut -d: -f4)" ]; }

# As in Nix's manual (multi-user installation). Without them, builders are root, even in the sandbox.
ensure_build_users() {
    ! has_build_users || return 0
    say "making the group nixbld and its users nixbld1 to nixbld$build_users: Nix builds as them, not as root"
    {
        getent group nixbld || groupadd --system nixbld || return 1
        local number
        for number in $(seq "$build_users"); do
            getent passwd "nixbld$number" || useradd --system --no-create-home --home-dir /var/empty \
                --shell /usr/sbin/nologin --gid nixbld --groups nixbld --comment "Nix build user $number" "nixbld$number" ||
                return 1
        done
    } >var/log/build-users.log 2>&1
    has_build_users
}

# nix_configuration GROUP SANDBOX [public-cache]: print it.
nix_configuration() {
    if [ "${3:-}" = public-cache ]; then
        cat <<'END'
# Written by scripts/setup.sh: takes what it can from the public binary cache of nixpkgs.
substituters = https://cache.nixos.org
trusted-public-keys = cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=
# Seconds. Without it, a machine without a network waits for five minutes before it builds from source.
connect-timeout = 10
END
    else
        cat <<'END'
# Written by scripts/setup.sh: builds from source, without a binary cache.
substituters =
END
    fi
    cat <<END
build-users-group = $1
experimental-features = nix-command flakes
max-jobs = auto
sandbox = $2
sandbox-fallback = false
# The builders of packagesets/debian use the system's Python, patchelf and apt.
sandbox-paths = /bin /lib /lib64? /usr /etc/apt? /etc/ssl?
END
}

# builds GROUP SANDBOX: tell whether Nix can build with that configuration.
builds() {
    mkdir -p var/nix/trial
    nix_configuration "$1" "$2" >var/nix/trial/nix.conf
    NIX_CONF_DIR=$root/var/nix/trial nix-build --no-out-link --argstr salt "$(date +%s%N)-$$" --expr '
        { salt }: derivation {
          name = "nixery-trial";
          system = builtins.currentSystem;
          builder = "/bin/sh";
          args = [ "-c" "echo > $out" ];
          inherit salt;
        }' >var/log/nix-trial.log 2>&1 </dev/null
}

# Write the safest configuration that works. A sandbox without build users comes third: its builders are root, with access to all of
# sandbox-paths.
private_configuration() {
    local users=yes choice group sandbox
    ensure_build_users || {
        users=''
        say "no build users, so builders are root: $(tail -n 1 var/log/build-users.log)"
    }
    for choice in nixbld:true nixbld:false :true :false; do
        group=${choice%:*} sandbox=${choice#*:}
        [ -n "$users" ] || [ -z "$group" ] || continue
        if builds "$group" "$sandbox"; then
            nix_configuration "$group" "$sandbox" | write_if_changed var/nix/nix.conf
            mkdir -p var/nix/public-cache
            nix_configuration "$group" "$sandbox" public-cache | write_if_changed var/nix/public-cache/nix.conf
            return
        fi
        say "Nix cannot build here with sandbox = $sandbox and build-users-group = $group: $(tail -n 1 var/log/nix-trial.log)"
    done
    fail 'Nix cannot build with any configuration'
}

ensure_nix() {
    local environment=''
    if [ "$(id -u)" = 0 ] && ! nix_is_set_up; then
        environment="export NIX_CONF_DIR='$root/var/nix'"$'\n'
        private_configuration
        export NIX_CONF_DIR=$root/var/nix
    fi
    # Last, so that the environment's own python3 and pip do not replace the user's.
    environment+="export PATH=\"\$PATH\":'$root/.venv/bin'"
    write_if_changed var/nix/environment <<<"$environment"
    quietly nix.log nix-instantiate --eval -E 1 ||
        fail "Nix does not work for $(id -un); it needs root, a Nix daemon (Debian: nix-setup-systemd) or a store of the user"
}

# Keep the time stamp of an unchanged file.
write_if_changed() {
    cat >"$1.new"
    if cmp -s "$1.new" "$1"; then rm "$1.new"; else mv "$1.new" "$1"; fi
}

ensure_venv() {
    local requirements project
    requirements=$({ echo "$root" && "$python" --version && cat requirements/dev.txt; } | sha256sum)
    project=$(sha256sum <pyproject.toml)
    [ "$(cat .venv/set-up 2>/dev/null)" != "$requirements$project" ] || return 0
    local pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input)
    if [[ $(cat .venv/set-up 2>/dev/null) != "$requirements"* ]]; then
        say 'making .venv'
        quietly venv.log "$python" -m venv --clear .venv || fail "$python cannot make .venv"
        # Python compiles modules when it imports them; compiling all would take longer than it saves.
        quietly pip.log "${pip[@]}" install --require-hashes --requirement requirements/dev.txt ||
            fail 'pip cannot install requirements/dev.txt'
    fi
    say 'installing nixery into .venv'
    quietly pip.log "${pip[@]}" install --no-deps --no-build-isolation --editable . ||
        fail 'pip could not install nixery'
    quietly pip.log "${pip[@]}" check || fail 'requirements/ does not fit pyproject.toml: make lock'
    echo "$requirements$project" >.venv/set-up
}

ensure_lock() {
    [ $# -gt 0 ] || set -- x86_64-linux "$(uname -m)-linux"
    local system arguments=()
    for system in $(printf '%s\n' "$@" | sort -u); do
        arguments+=(--system "$system")
        [ -e "packagesets/debian/lock/$system.json" ] || say "locking Debian's packages for $system"
    done
    quietly lock.log /usr/bin/python3 packagesets/debian/lock.py "${arguments[@]}" ||
        fail 'the package set could not be locked'
}

# Tests source this file for its functions.
[ "${BASH_SOURCE[0]}" = "$0" ] || return 0

systems=("$@")
mkdir -p var/log var/nix
# One set-up at a time.
exec 9>var/setup.lock
flock 9

ensure_programs
ensure_nix
# The two slow steps are independent.
ensure_lock "$@" &
ensure_venv
wait "$!"
