"""Put the tables of a run into docs/reference/clients.md: ``python -m scripts.acceptance.document REPORT.json...``.

Each goes between the markers of its system, which are added at the end of the page if they are missing.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from scripts.acceptance.report import Report, markdown

PAGE = Path("docs/reference/clients.md")


def main(reports: list[Path]) -> int:
    """Rewrite the page; returns the exit status."""
    if not reports:
        print(f"usage: python -m {__spec__.name} REPORT.json...", file=sys.stderr)
        return 2
    page = PAGE.read_text()
    for file in reports:
        page = replaced(page, Report.read(file))
    PAGE.write_text(page)
    return 0


def replaced(page: str, report: Report) -> str:
    """Return a page with one report's section replaced."""
    begin, end = f"<!-- results: {report.release} -->", f"<!-- end: {report.release} -->"
    section = "\n".join([begin, "", f"### {report.release}", "", *markdown(report), "", end])
    between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if between.search(page):
        return between.sub(lambda _: section, page)
    return f"{page.rstrip()}\n\n{section}\n"


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
