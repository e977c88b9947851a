"""Put the results into docs/reference/debian-package-set.md, between the markers of the release."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scripts.acceptance.report import release
from scripts.debian_smoke.packages import BEST_KNOWN, Package
from scripts.debian_smoke.reasons import Reason, read_reasons
from scripts.debian_smoke.results import Result, Results

PAGE = Path("docs/reference/debian-package-set.md")

# Names on a line of the list of packages that start.
_COLUMNS = 100


class DocumentError(Exception):
    """The page cannot be written."""


def write(packages: Sequence[Package], results: Results) -> None:
    """Replace the section of this machine's release, or add it at the end of the page.

    Raises:
        DocumentError: there are no results.
    """
    found = results.of(package.name for package in packages)
    if not found:
        raise DocumentError("there are no results to write: make debian-smoke")
    system = release()
    section = "\n".join(markdown(system, packages, found, read_reasons()))
    begin, end = f"<!-- smoke: {system} -->", f"<!-- end of smoke: {system} -->"
    text = f"{begin}\n\n{section}\n\n{end}"
    page = PAGE.read_text()
    between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    page = between.sub(lambda _: text, page) if between.search(page) else f"{page.rstrip()}\n\n{text}\n"
    PAGE.write_text(page)


def markdown(
    system: str, packages: Sequence[Package], results: Sequence[Result], reasons: Mapping[str, Reason]
) -> Iterator[str]:
    """Render the results, line by line.

    Args:
        system: the release.
        packages: all of the list.
        results: of the packages that were tried, in the order of the list.
        reasons: of the failures, by package.
    """
    yield f"### {system}"
    yield ""
    yield from _summary(packages, results)
    left = len(packages) - len(results)
    if left:
        yield ""
        yield (
            f"{left} packages of the list have not been tried, most of them with large closures; "
            "the percentages are of the others."
        )
    failures = [result for result in results if not result.is_success]
    if failures:
        yield ""
        yield "| package | command | root | plain user | why |"
        yield "|---|---|---|---|---|"
        for result in failures:
            reason = reasons.get(result.package)
            why = first_fault(result) if reason is None else reason.text
            users = " | ".join("starts" if result.started(user) else "fails" for user in ("root", "plain"))
            yield f"| `{result.package}` | `{_command(result)}` | {users} | {_escape(why)} |"
    yield ""
    yield "These start for both users:"
    yield ""
    yield from _wrapped([f"`{result.package}`" for result in results if result.is_success])


def _summary(packages: Sequence[Package], results: Sequence[Result]) -> Iterator[str]:
    best_known = {package.name for package in packages[:BEST_KNOWN]}
    yield "| packages | tried | images | start as root | start as a plain user |"
    yield "|---|---|---|---|---|"
    for title, group in (
        (f"the {BEST_KNOWN} best-known", [result for result in results if result.package in best_known]),
        (f"all {len(packages)}", list(results)),
    ):
        counts = Counter(user for result in group for user in ("root", "plain") if result.started(user))
        images = sum(not result.build_fault for result in group)
        yield (
            f"| {title} | {len(group)} | {images} | {_share(counts['root'], len(group))} "
            f"| {_share(counts['plain'], len(group))} |"
        )


def first_fault(result: Result) -> str:
    """Return what a package's first failure says."""
    if result.build_fault:
        return f"no image: {result.build_fault.splitlines()[-1]}"
    return next(f"`{start.fault}`" for start in result.starts.values() if start.fault)


def _command(result: Result) -> str:
    failed = [start.command for start in result.starts.values() if start.fault]
    return failed[0] if failed else result.program


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.1f} %)" if whole else "—"


def _escape(cell: str) -> str:
    # A store path's hash is not the reader's.
    return re.sub(r"/nix/store/[0-9a-z]{32}-", "/nix/store/…-", cell).replace("|", r"\|")


def _wrapped(names: Sequence[str]) -> Iterator[str]:
    line = ""
    for number, name in enumerate(names):
        word = name if number == len(names) - 1 else f"{name},"
        if line and len(line) + 1 + len(word) > _COLUMNS:
            yield line
            line = ""
        line = f"{line} {word}".lstrip()
    if line:
        yield line
