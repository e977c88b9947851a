#!/usr/bin/env bash
# Run a command as an unprivileged user with its own Nix store: scripts/as_plain_user.sh COMMAND...
#
# Root becomes the user "nobody", with a new directory mounted at /nix. Directories that only root may enter are hidden, except this
# checkout and the Python of .venv inside them. For any other user, this runs the command as it is, with the Nix of that user.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[ "$(id -u)" = 0 ] || exec "$@"

if [ "${1:-}" != --in-namespace ]; then
    directory=$(mktemp -d /tmp/nixery-plain-user.XXXXXX)
    trap 'rm -rf "$directory"' EXIT
    # No exec, so that the trap runs. The mounts end with the name space.
    unshare --mount "scripts/$(basename "$0")" --in-namespace "$directory" "$@"
    exit
fi

directory=$2
shift 2

# Print the topmost directory above a path that other users may not enter, if any.
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
# Without nix/var/nix, Nix would use a store in the user's home directory.
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
