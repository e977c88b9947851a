"""Fail if a test run skipped tests: `no_skips.py REPORT`, a JUnit report of pytest."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree


def main(report: Path) -> int:
    """Name the skipped tests of `report`; returns the exit status."""
    root = ElementTree.parse(report).getroot()  # noqa: S314 -- pytest wrote it a moment ago
    skipped = [
        f"{case.get('classname')}::{case.get('name')}: {why.get('message')}"
        for case in root.iter("testcase")
        for why in case.findall("skipped")
        if why.get("type") != "pytest.xfail"
    ]
    if skipped:
        print("tests may not be skipped here:", *skipped, sep="\n  ", file=sys.stderr)
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
