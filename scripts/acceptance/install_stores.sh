#!/usr/bin/env bash
# Install further bucket servers for `make acceptance`, besides those of `make test`, and list them.
#
#   minio   S3; compiled from its Go module, where Go is installed: some 5 minutes on two cores, once
#   azure   Azure Blob Storage, by Azurite; from npm, where Node.js is installed: a minute, once
#
# Both verify signatures, which the servers of `make test` do not. Debian has no package of either.
# BUCKET_SERVERS names those to try, all of them by default; continuous integration leaves them out to save time.
# Writes var/acceptance/stores: a line for each, "NAME" or "NAME: why it is not tried".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# Go does not accept the tags of releases as versions; this is the last commit of the main branch.
minio=github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c
azurite=azurite@3.37.0
# Seconds.
minio_limit=1200
azurite_limit=600
log=var/acceptance/log

say() { printf 'stores: %3d s  %s\n' "$SECONDS" "$*" >&2; }
last_line() { tail -n 1 "$1" | cut -c 1-200; }

# Tell whether DIRECTORY has VERSION of PROGRAM.
is_there() { [ "$(cat "$1/version" 2>/dev/null)" = "$2" ] && [ -x "$1/$3" ]; }

ensure_minio() {
    local place=$PWD/var/minio
    if is_there "$place" "$minio" minio; then
        echo minio
    elif ! command -v go >/dev/null; then
        echo 'minio: no Go toolchain to compile it with (1.24 or newer; Debian 13: apt-get install golang)'
    else
        say "compiling MinIO, once: $minio"
        if GOBIN=$place timeout "$minio_limit" nice go install "$minio" >"$log/minio.log" 2>&1 </dev/null; then
            echo "$minio" >"$place/version"
            echo minio
        else
            echo "minio: $(go env GOVERSION) did not compile it within $minio_limit s: $(last_line "$log/minio.log")"
        fi
    fi
}

ensure_azure() {
    local place=$PWD/var/azurite
    if is_there "$place" "$azurite" node_modules/.bin/azurite-blob; then
        echo azure
    elif ! command -v node >/dev/null || ! command -v npm >/dev/null; then
        echo 'azure: no Node.js to run Azurite with, or no npm to install it with (apt-get install nodejs npm)'
    else
        say "installing Azurite, once: $azurite"
        mkdir -p "$place"
        if timeout "$azurite_limit" npm install --prefix "$place" --no-audit --no-fund --ignore-scripts "$azurite" \
            >"$log/azurite.log" 2>&1 </dev/null; then
            echo "$azurite" >"$place/version"
            echo azure
        else
            echo "azure: npm did not install it within $azurite_limit s: $(last_line "$log/azurite.log")"
        fi
    fi
}

mkdir -p "$log"
wanted=${BUCKET_SERVERS-minio azure}
{
    for server in minio azure; do
        case " $wanted " in
            *" $server "*) "ensure_$server" ;;
            *) echo "$server: BUCKET_SERVERS leaves it out" ;;
        esac
    done
} >var/acceptance/stores
say "to try: $(grep -v : var/acceptance/stores | paste -sd ' ' || true)"
if grep : var/acceptance/stores >&2; then
    say 'what is named above is not tried'
fi
