#!/usr/bin/env bash
# Look up published vulnerabilities of the pinned Python packages. A package that the service does not know is a failure: pip-audit alone
# would skip it silently.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools=$(scripts/python_tools.sh)
for pins in runtime otel build dev tools; do
    "$tools/pip-audit" --strict --disable-pip --require-hashes --progress-spinner off --requirement "requirements/$pins.txt"
done
