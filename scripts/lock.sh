#!/usr/bin/env bash
# Pin the Python requirements, with the hashes of all files, for every Python and machine that we support.
# Where packages come from is up to the machine: no index or folder of this machine gets into the files.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools=$(scripts/python_tools.sh)

compile() {
    # "fewest" prefers one version for all Pythons to the newest for each: the same code everywhere.
    env -u UV_FIND_LINKS "$tools/uv" pip compile --quiet --no-config --universal --python-version 3.11 \
        --fork-strategy fewest --generate-hashes --no-emit-index-url --no-emit-find-links --strip-extras \
        --custom-compile-command 'make lock' "$@"
}

compile pyproject.toml --output-file requirements/runtime.txt
# With the extra, for those who install it: the same versions, and more.
compile pyproject.toml --extra otel --constraint requirements/runtime.txt --output-file requirements/otel.txt
compile pyproject.toml --extra otel --group pyproject.toml:dev requirements/build.in \
    --constraint requirements/runtime.txt --output-file requirements/dev.txt
# The build back end, for installations from a checkout: without a pin, pip would download and run the newest one.
compile requirements/build.in --constraint requirements/dev.txt --output-file requirements/build.txt
compile requirements/tools.in --output-file requirements/tools.txt

if grep -nE '://|^ *-(i|f|-index|-extra-index|-find-links)' requirements/*.txt; then
    echo 'lock: the lines above name a machine or an index' >&2
    exit 1
fi
