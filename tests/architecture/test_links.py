"""Links in the documentation lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PAGES = sorted(
    [_ROOT / "README.md", _ROOT / "SECURITY.md", _ROOT / "CHANGELOG.md", *(_ROOT / "docs").rglob("*.md")]
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub generates from headings."""
    headings = _HEADING.findall(page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def _broken(page: Path) -> list[str]:
    broken = []
    for link in _LINK.findall(page.read_text()):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / path if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in _anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    assert _broken(page) == []


def test_the_index_has_every_page() -> None:
    docs = _ROOT / "docs"
    linked = {docs / link.partition("#")[0] for link in _LINK.findall((docs / "README.md").read_text())}
    pages = {page for page in _PAGES if page.is_relative_to(docs)}
    assert pages - linked == {docs / "README.md"}


def test_the_tests_that_the_threat_model_names_are_there() -> None:
    text = (_ROOT / "docs" / "explanation" / "threat-model.md").read_text()
    named = re.findall(r"`(tests/[\w/]+(?:\.py)?)?(?:::(\w+))?`", text)
    file = ""
    checked = 0
    for path, function in named:
        file = path or file
        if not path and not function:
            continue
        assert (_ROOT / file).exists(), file
        if function:
            assert f"def {function}(" in (_ROOT / file).read_text(), f"{file}::{function}"
        checked += 1
    assert checked > 10


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n[a](#one) [b](#two) [c](missing.md)")
    assert _broken(page) == ["#two", "missing.md"]
