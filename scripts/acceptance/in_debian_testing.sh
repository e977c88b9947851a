#!/usr/bin/env bash
# `make acceptance` with the clients, the Nix and the Python of Debian testing, in a chroot below var/: what is current
# today, beside a machine whose own release is older.
#
# Everything in the chroot runs in mount and process namespaces of its own, so that nothing is left mounted and nothing
# left running, however this ends. The report is var/acceptance-new/report.{json,md}.
#
# The chroot is kept for the next time (KEEP=no: removed at the end); `rm -rf var/debian-testing` starts from nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD/var/debian-testing
results=$PWD/var/acceptance-new
log=$results/log
# Where the tree lies in the chroot.
inside=/root/nixery
PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH

say() { printf 'testing: %4d s  %s\n' "$SECONDS" "$*"; }
fail() {
    printf 'testing: %s\n' "$*" >&2
    exit 1
}
quietly() {
    local name=$1
    shift
    "$@" >"$log/$name" 2>&1 </dev/null || {
        tail -n 50 "$log/$name" >&2
        return 1
    }
}

# The archive that this machine's apt has its Debian from.
archive() {
    apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | sed -n 1p
}

# What apt has been told about proxies holds for the chroot, too.
take_over_proxies() {
    local scheme proxy
    for scheme in http https; do
        proxy=$(apt-config dump --format '%v' "Acquire::$scheme::Proxy")
        [ -z "$proxy" ] || printf 'Acquire::%s::Proxy "%s";\n' "$scheme" "$proxy"
    done >"$root/etc/apt/apt.conf.d/01proxies"
}

in_chroot() {
    # Ends with all its processes, and all its mounts go with the last of them.
    unshare --mount --pid --fork --kill-child --propagation private bash -euc '
        root=$1
        shift
        # pivot_root, which runc needs, works on mount points alone.
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        for directory in /sys /dev; do mount --rbind "$directory" "$root$directory"; done
        mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
        mount --bind /etc/hosts "$root/etc/hosts"
        # Certificates that this machine trusts, those of its own network among them.
        [ ! -e "$root/etc/ssl/certs/ca-certificates.crt" ] || [ ! -e /etc/ssl/certs/ca-certificates.crt ] ||
            mount --bind /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
        cd "$root"
        exec env -u NIX_CONF_DIR -u TMPDIR -u MAKEFLAGS -u MAKELEVEL -u MFLAGS HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . "$@"
    ' in_chroot "$root" "$@"
}

# apt in the chroot starts no service; this machine would be the one to run it.
forbid_services() {
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
}

ensure_debootstrap() {
    [ -x /usr/sbin/debootstrap ] && return
    say 'installing from Debian: debootstrap'
    quietly apt.log env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends debootstrap
}

ensure_root() {
    local from
    [ ! -e "$root/complete" ] || return 0
    from=$(archive)
    [ -n "$from" ] || fail 'apt has no package lists of Debian: apt-get update'
    say "debootstrap of Debian testing into ${root#"$PWD/"}"
    rm -rf --one-file-system "$root"
    mkdir -p "$root"
    # In namespaces of its own, too: it mounts, and leaves that to whoever interrupts it.
    quietly debootstrap.log unshare --mount --pid --fork --kill-child --mount-proc --propagation private \
        debootstrap --variant=minbase --include=ca-certificates,make,python3,python3-venv \
        testing "$root" "$from" || fail "debootstrap failed: ${log#"$PWD/"}/debootstrap.log"
    touch "$root/complete"
}

# Testing's release file is good for a week. A mirror that stands still, a snapshot for instance, is good enough to test
# with, and its signatures are checked as ever; but whoever reads the results should know.
update_lists() {
    local lenient=$root/etc/apt/apt.conf.d/02expired
    rm -f "$lenient"
    if in_chroot apt-get update >"$log/apt-update.log" 2>&1 </dev/null; then return; fi
    grep -q 'is expired' "$log/apt-update.log" || {
        tail -n 50 "$log/apt-update.log" >&2
        fail 'apt-get update failed in the chroot'
    }
    say "the archive stands still: $(grep -o 'invalid since .*[0-9]s' "$log/apt-update.log" | head -n 1)"
    echo 'Acquire::Check-Valid-Until "false";' >"$lenient"
    quietly apt-update.log in_chroot apt-get update || fail 'apt-get update failed in the chroot'
}

# The files of this tree as they are, but for what set-up made in the other one.
copy_tree() {
    mkdir -p "$root$inside"
    find "$root$inside" \( -path "$root$inside/var" -o -path "$root$inside/.venv" -o -path "$root$inside/packagesets/debian/lock" \) \
        -prune -o ! -type d -exec rm {} +
    git ls-files --cached --others --exclude-standard -z | xargs -0 -n 1 sh -c '[ ! -e "$1" ] || printf "%s\0" "$1"' sh |
        tar --create --null --files-from=- | tar --extract --no-same-owner --directory "$root$inside"
}

[ "$(id -u)" = 0 ] || fail 'a chroot takes root'
[ -x /usr/bin/apt-get ] || fail 'this takes a Debian'
rm -rf "$results"
mkdir -p "$log"
ensure_debootstrap
ensure_root
forbid_services
take_over_proxies
copy_tree
say "updating the chroot's packages"
update_lists
quietly apt-upgrade.log in_chroot env DEBIAN_FRONTEND=noninteractive apt-get dist-upgrade --yes ||
    fail 'apt-get dist-upgrade failed in the chroot'
say 'make acceptance, in the chroot'
status=0
in_chroot make -C "$inside" acceptance || status=$?
cp "$root$inside"/var/acceptance/report.* "$results" 2>/dev/null || true
[ "${KEEP:-yes}" != no ] || rm -rf --one-file-system "$root"
say "done: ${results#"$PWD/"}/report.md"
exit "$status"
