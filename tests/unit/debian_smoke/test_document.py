from __future__ import annotations

from pathlib import Path

import pytest

from scripts.debian_smoke import document
from scripts.debian_smoke.packages import Package
from scripts.debian_smoke.reasons import Reason
from scripts.debian_smoke.results import Result, Results, Start

GOOD = Start("x --version", "", "x 1.0\n")
BAD = Start("x --help", "cannot open shared object /nix/store/" + 32 * "a" + "-y | z", "")

PACKAGES = [Package("a", "x"), Package("b", "x"), Package("c", "x"), Package("d", "x")]
RESULTS = [
    Result("a", "x", "1", "/nix/store/a.drv", starts={"plain": GOOD, "root": GOOD}),
    Result("b", "x", "1", "/nix/store/b.drv", starts={"plain": BAD, "root": GOOD}),
    Result("c", "x", "1", "/nix/store/c.drv", build_fault="many\nbuilder failed"),
]


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = Results(tmp_path / "new")
    for result in RESULTS:
        results.write(result)
    assert results.of(package.name for package in PACKAGES) == RESULTS
    assert results.read("d") is None


def test_the_table_has_percentages_and_reasons() -> None:
    lines = list(document.markdown("Debian 12", PACKAGES, RESULTS, {}))
    assert "| all 4 | 3 | 2 | 2 (66.7 %) | 1 (33.3 %) |" in lines
    assert any(line.startswith("1 packages of the list have not been tried") for line in lines)
    row = next(line for line in lines if line.startswith("| `b`"))
    assert row == (r"| `b` | `x --help` | starts | fails | `cannot open shared object /nix/store/…-y \| z` |")
    assert "| `c` | `x` | fails | fails | no image: builder failed |" in lines
    assert lines[-1] == "`a`"


def test_a_known_reason_replaces_the_message() -> None:
    reasons = {"b": Reason(frozenset({"plain"}), "it wants a name")}
    lines = list(document.markdown("Debian 12", PACKAGES, RESULTS, reasons))
    assert "| `b` | `x --help` | starts | fails | it wants a name |" in lines


def test_the_section_of_a_release_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\ntext\n")
    monkeypatch.setattr(document, "PAGE", page)
    results = Results(tmp_path / "results")
    with pytest.raises(document.DocumentError, match="make debian-smoke"):
        document.write(PACKAGES, results)
    results.write(RESULTS[0])
    document.write(PACKAGES, results)
    first = page.read_text()
    assert first.startswith("# Title\n\ntext\n\n<!-- smoke: ")
    results.write(RESULTS[1])
    document.write(PACKAGES, results)
    assert page.read_text().count("<!-- smoke: ") == 1
    assert "| `b` |" in page.read_text()
    assert "| `b` |" not in first
