"""The reference lists the meta-packages that every package set has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nixery.image.meta_packages import META_PACKAGES

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "image-names.md"


@pytest.mark.parametrize("name", META_PACKAGES)
def test_the_reference_lists_a_meta_package(name: str) -> None:
    section = PAGE.read_text().partition("## Meta-packages\n")[2].partition("\n## ")[0]
    (row,) = re.findall(rf"^\| `{name}`(?:, at the beginning)? \| .*$", section, re.MULTILINE)
    _, _, packages, optional, command, _ = row.split("|")
    expected = META_PACKAGES[name]
    assert tuple(re.findall(r"`([^`]+)`", packages)) == expected.packages
    assert tuple(re.findall(r"`([^`]+)`", optional)) == expected.optional
    assert tuple(re.findall(r"`([^`]+)`", command)) == expected.command
