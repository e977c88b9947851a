#!/usr/bin/env bash
# Install the browser tests' browser from Debian, if it is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec scripts/install_peers.sh chromium=chromium
