"""The package set is no part of the `nixery` package: its generator and builder are imported from their own directory."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "packagesets" / "debian"))
