#!/usr/bin/env bash
# Pin the Python requirements, with the hashes of all files, for every Python and machine that we support.
# Where packages come from is up to the machine: no index or folder of this machine gets into the files.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools=var/lock-tools
[ -x "$tools/bin/uv" ] || {
    "${PYTHON:-python3}" -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check 'uv>=0.9'
}

compile() {
    # "fewest" prefers one version for all Pythons to the newest for each: the same code everywhere.
    env -u UV_FIND_LINKS "$tools/bin/uv" pip compile --quiet --no-config --universal --python-version 3.11 \
        --fork-strategy fewest --generate-hashes --no-emit-index-url --no-emit-find-links --strip-extras \
        --custom-compile-command 'make lock' "$@"
}

compile pyproject.toml --output-file requirements/runtime.txt
# With the extra, for those who install it: the same versions, and more.
compile pyproject.toml --extra otel --constraint requirements/runtime.txt --output-file requirements/otel.txt
compile pyproject.toml --extra otel --group pyproject.toml:dev requirements/build.in \
    --constraint requirements/runtime.txt --output-file requirements/dev.txt

if grep -nE '://|^ *-(i|f|-index|-extra-index|-find-links)' requirements/*.txt; then
    echo 'lock: the lines above name a machine or an index' >&2
    exit 1
fi
