#!/usr/bin/env bash
# Run a target of the Makefile with the clients, the Nix and the Python of Debian testing, in a chroot below var/:
# in_debian_testing.sh TARGET RESULTS. The files of the target in var/RESULTS are copied to var/RESULTS-new.
#
# The chroot has its own mount and process name spaces, so that no mount and no process is left behind, even after an error.
#
# The chroot is kept for the next run (KEEP=no deletes it); `rm -rf var/debian-testing` starts over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=$1
made=$2
root=$PWD/var/debian-testing
results=$PWD/var/$made-new
log=$results/log
# The path of this checkout in the chroot.
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

# The archive that this machine's apt uses.
archive() {
    apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | sed -n 1p
}

# The chroot uses the same proxies.
take_over_proxies() {
    local scheme proxy
    for scheme in http https; do
        proxy=$(apt-config dump --format '%v' "Acquire::$scheme::Proxy")
        [ -z "$proxy" ] || printf 'Acquire::%s::Proxy "%s";\n' "$scheme" "$proxy"
    done >"$root/etc/apt/apt.conf.d/01proxies"
}

in_chroot() {
    # All processes end with the first, and the mounts with the last.
    unshare --mount --pid --fork --kill-child --propagation private bash -euc '
        root=$1
        shift
        # runc needs pivot_root, which requires a mount point.
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        for directory in /sys /dev; do mount --rbind "$directory" "$root$directory"; done
        mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
        mount --bind /etc/hosts "$root/etc/hosts"
        # The certificates that this machine trusts.
        [ ! -e "$root/etc/ssl/certs/ca-certificates.crt" ] || [ ! -e /etc/ssl/certs/ca-certificates.crt ] ||
            mount --bind /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
        cd "$root"
        exec env -u NIX_CONF_DIR -u TMPDIR -u MAKEFLAGS -u MAKELEVEL -u MFLAGS HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . "$@"
    ' in_chroot "$root" "$@"
}

# apt in the chroot must not start services, which would run on this machine.
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
    # Also in separate name spaces: if interrupted, debootstrap leaves mounts behind.
    quietly debootstrap.log unshare --mount --pid --fork --kill-child --mount-proc --propagation private \
        debootstrap --variant=minbase --include=ca-certificates,make,python3,python3-venv \
        testing "$root" "$from" || fail "debootstrap failed: ${log#"$PWD/"}/debootstrap.log"
    touch "$root/complete"
}

# The release file of testing expires after a week. An outdated mirror, such as a snapshot, is good enough for tests, with its
# signatures still verified, but the output says so.
update_lists() {
    local lenient=$root/etc/apt/apt.conf.d/02expired
    rm -f "$lenient"
    if in_chroot apt-get update >"$log/apt-update.log" 2>&1 </dev/null; then return; fi
    grep -q 'is expired' "$log/apt-update.log" || {
        tail -n 50 "$log/apt-update.log" >&2
        fail 'apt-get update failed in the chroot'
    }
    say "the archive is outdated: $(grep -o 'invalid since .*[0-9]s' "$log/apt-update.log" | head -n 1)"
    echo 'Acquire::Check-Valid-Until "false";' >"$lenient"
    quietly apt-update.log in_chroot apt-get update || fail 'apt-get update failed in the chroot'
}

# Copy the files of this checkout, except those that set-up made in the chroot.
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
say "make $target, in the chroot"
status=0
in_chroot make -C "$inside" "$target" || status=$?
cp "$root$inside/var/$made"/* "$results" 2>/dev/null || true
[ "${KEEP:-yes}" != no ] || rm -rf --one-file-system "$root"
say "done: ${results#"$PWD/"}"
exit "$status"
