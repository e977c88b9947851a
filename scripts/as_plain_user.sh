#!/usr/bin/env bash
# Run a command as a user without rights, with a Nix store of its own: scripts/as_plain_user.sh COMMAND...
#
# Root becomes nobody, and a new directory of that user stands where /nix is. Directories that only root may enter are covered: of them the
# command sees this checkout and the Python of .venv, if they are inside, and nothing else. A plain user runs the command as it is, with
# the Nix that this user has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[ "$(id -u)" = 0 ] || exec "$@"

if [ "${1:-}" != --in-namespace ]; then
    directory=$(mktemp -d /tmp/nixery-plain-user.XXXXXX)
    trap 'rm -rf "$directory"' EXIT
    # No exec: the trap has to run. Mounts end with the namespace.
    unshare --mount "scripts/$(basename "$0")" --in-namespace "$directory" "$@"
    exit
fi

directory=$2
shift 2

# The topmost directory above a path that others may not enter, if there is one.
closed_above() {
    local above found=''
    above=$(dirname "$1")
    while [ "$above" != / ]; do
        case $(stat -c %a "$above") in
        *[1357]) ;;
        *) found=$above ;;
        esac
        above=$(dirname "$above")
    done
    echo "$found"
}

as_nobody() {
    setpriv --reuid=65534 --regid=65534 --clear-groups env -i "HOME=$directory/home" "NIX_CONF_DIR=$directory/etc" \
        PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LC_ALL=C.UTF-8 "HYPOTHESIS_STORAGE_DIRECTORY=$directory/home/hypothesis" \
        PYTHONDONTWRITEBYTECODE=1 "$@"
}

chmod 755 "$directory"
# Without nix/var/nix, Nix would take a directory in the user's home for its store, and mount it where it builds.
mkdir -p "$directory"/{nix/store,nix/var/nix,etc,home,held/{0,1}}
paths=("$PWD" "$(.venv/bin/python -c 'import sys; print(sys.base_prefix)')")
for number in 0 1; do
    closed[number]=$(closed_above "${paths[number]}")
    mount --bind "${paths[number]}" "$directory/held/$number"
done
for covered in $(printf '%s\n' "${closed[@]}" | sort -u); do
    mount -t tmpfs -o mode=755 tmpfs "$covered"
done
for number in 0 1; do
    [ -n "${closed[number]}" ] || continue
    mkdir -p "${paths[number]}"
    mount --bind "$directory/held/$number" "${paths[number]}"
done
cd "${paths[0]}"
mount --bind "$directory/nix" /nix
chown -R 65534:65534 "$directory"/{nix,etc,home}

for sandbox in true false; do
    cat >"$directory/etc/nix.conf" <<END
substituters =
experimental-features = nix-command flakes
sandbox = $sandbox
sandbox-fallback = false
sandbox-paths = /bin /lib /lib64? /usr
END
    as_nobody nix-build --no-out-link --expr 'derivation {
        name = "trial"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo > $out" ];
    }' >"$directory/log" 2>&1 && break
    echo "as_plain_user: sandbox = $sandbox does not work for nobody: $(tail -n 1 "$directory/log")" >&2
done
as_nobody "$@"
