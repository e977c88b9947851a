#!/usr/bin/env bash
# Install the tools of requirements/tools.txt into their own environment; print its directory of programs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools=$PWD/var/python-tools
wanted=$(sha256sum <requirements/tools.txt)
if [ "$(cat "$tools/set-up" 2>/dev/null)" != "$wanted" ]; then
    "${PYTHON:-python3}" -m venv --clear "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check --no-input --require-hashes --requirement requirements/tools.txt >&2
    echo "$wanted" >"$tools/set-up"
fi
echo "$tools/bin"
