#!/usr/bin/env bash
# Look for published flaws of the pinned Python packages. A package that the advisories' service does not know is a failure: pip-audit by itself
# skips it, and finds nothing wrong with what it has skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools=$(scripts/python_tools.sh)
for pins in runtime otel build dev tools; do
    "$tools/pip-audit" --strict --disable-pip --require-hashes --progress-spinner off --requirement "requirements/$pins.txt"
done
