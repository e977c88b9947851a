#!/usr/bin/env bash
# Install the browser of the browser tests from Debian, where it is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec scripts/install_peers.sh chromium=chromium
