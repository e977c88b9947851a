#!/bin/sh
# Print commands to try, then run the server in the foreground: make serve.
set -eu
cd "$(dirname "$0")/.."

export PORT="${PORT:-8080}"
export NIXERY_PKGS_PATH="${NIXERY_PKGS_PATH:-packagesets/debian}"
export NIXERY_STORAGE_BACKEND="${NIXERY_STORAGE_BACKEND:-filesystem}"
export STORAGE_PATH="${STORAGE_PATH:-var/storage}"
registry="127.0.0.1:$PORT"

cat <<END
nixery on http://$registry -- try, in another terminal:

  docker   docker run --rm -it $registry/shell/hello
  podman   podman run --rm -it --tls-verify=false $registry/shell/hello
  skopeo   skopeo copy --src-tls-verify=false docker://$registry/shell/hello:latest oci:hello:latest

Docker accepts plain HTTP from loopback addresses by default; the others need the option. Ctrl-C stops the server.

END
exec .venv/bin/nixery serve
