#!/usr/bin/env bash
# Pin the Python requirements with hashes, for every supported Python and machine. The files must not name an index or a folder of
# this machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools=$(scripts/python_tools.sh)

compile() {
    # "fewest" prefers one version for all Pythons to the newest for each.
    env -u UV_FIND_LINKS "$tools/uv" pip compile --quiet --no-config --universal --python-version 3.11 \
        --fork-strategy fewest --generate-hashes --no-emit-index-url --no-emit-find-links --strip-extras \
        --custom-compile-command 'make lock' "$@"
}

compile pyproject.toml --output-file requirements/runtime.txt
# The same with the extra.
compile pyproject.toml --extra otel --constraint requirements/runtime.txt --output-file requirements/otel.txt
compile pyproject.toml --extra otel --group pyproject.toml:dev requirements/build.in \
    --constraint requirements/runtime.txt --output-file requirements/dev.txt
# The build back end: unpinned, pip would download and run the newest one.
compile requirements/build.in --constraint requirements/dev.txt --output-file requirements/build.txt
compile requirements/tools.in --output-file requirements/tools.txt

if grep -nE '://|^ *-(i|f|-index|-extra-index|-find-links)' requirements/*.txt; then
    echo 'lock: the lines above name a machine or an index' >&2
    exit 1
fi
