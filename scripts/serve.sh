#!/bin/sh
# Print commands to try, then run the server in the foreground: make serve.
#
# Every variable of the operator wins over a default here. Without a package source, the server has Debian's
# packages. With nixpkgs, Nix uses the public binary cache, if its configuration is the one that set-up wrote;
# NIX_CONFIG='substituters = ...' and `trusted-public-keys` name another cache.
set -eu
cd "$(dirname "$0")/.."

export PORT="${PORT:-8080}"
export NIXERY_STORAGE_BACKEND="${NIXERY_STORAGE_BACKEND:-filesystem}"
export STORAGE_PATH="${STORAGE_PATH:-var/storage}"

# The same list as _SOURCES in src/nixery/settings; a variable that is set but empty is an error there.
if [ -z "${NIXERY_CHANNEL+set}${NIXERY_PKGS_REPO+set}${NIXERY_PKGS_PATH+set}${NIXERY_FLAKE+set}" ]; then
    export NIXERY_PKGS_PATH=packagesets/debian
fi

# A directory may hold packages of any kind, which a cache of nixpkgs does not have, unless it is nixpkgs itself.
if [ -z "${NIXERY_PKGS_PATH+set}" ] || [ -e "$NIXERY_PKGS_PATH/pkgs/top-level/all-packages.nix" ]; then
    cached=$PWD/var/nix/public-cache
    if [ "${NIX_CONF_DIR:-}" = "$PWD/var/nix" ] && [ -e "$cached/nix.conf" ]; then
        export NIX_CONF_DIR="$cached"
    fi
fi

registry="127.0.0.1:$PORT"
cat <<END
nixery on http://$registry -- try, in another terminal:

  docker   docker run --rm -it $registry/shell/hello
  podman   podman run --rm -it --tls-verify=false $registry/shell/hello
  skopeo   skopeo copy --src-tls-verify=false docker://$registry/shell/hello:latest oci:hello:latest

Docker accepts plain HTTP from loopback addresses by default; the others need the option. Ctrl-C stops the server.

END
exec .venv/bin/nixery serve
