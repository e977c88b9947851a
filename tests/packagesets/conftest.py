"""Imports the generator and the builder of the package set from their directory, outside the package `nixery`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "packagesets" / "debian"))
