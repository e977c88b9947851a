"""Run the conformance suite against Debian's docker-registry: ``python -m scripts.conformance``.

Nixery builds a small image, skopeo copies it to docker-registry under several tags, and the suite tests it
there. Another registry shows that the suite can fail, and fails for the right reasons.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.markup import escape

from scripts.peers.docker_registry import copy_image, docker_registry, version
from scripts.peers.nixery import nixery
from scripts.peers.process import Peer, PeerError

_IMAGE = "hello"
_PACKAGE_SET = "tests/packageset"
# The tests of listings need several.
_TAGS = ("latest", "b", "C", "a", "1.0")

# Seconds for the whole suite.
_TIMEOUT = 300.0


@dataclass(frozen=True)
class Failure:
    """A failed test.

    Attributes:
        test: name with parameters.
        sentences: of the specification that it tests.
        answer: the failed assertion.
    """

    test: str
    sentences: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Report:
    """The results of a run.

    Attributes:
        count: number of all tests.
    """

    count: int
    failures: tuple[Failure, ...]

    @classmethod
    def read(cls, file: Path) -> Report:
        """Read a JUnit report as pytest writes it."""
        root = ElementTree.parse(file).getroot()  # noqa: S314 -- pytest wrote it a moment ago
        cases = list(root.iter("testcase"))
        return cls(len(cases), tuple(_failures(cases)))


def _failures(cases: list[ElementTree.Element]) -> Iterator[Failure]:
    for case in cases:
        for failure in (*case.findall("failure"), *case.findall("error")):
            sentences = [
                entry.get("value", "") for entry in case.iter("property") if entry.get("name") == "sentence"
            ]
            answer = failure.get("message", "").strip().splitlines()
            yield Failure(case.get("name", ""), tuple(sentences), answer[0] if answer else "")


def main() -> int:
    """Run the suite; returns 0 if some of its tests failed, as they do with each version in Debian."""
    console = Console(highlight=False, soft_wrap=True)
    Path("var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="conformance-", dir="var") as name:
        directory = Path(name).resolve()
        try:
            with docker_registry(directory / "peer") as peer:
                with nixery(directory / "nixery", _PACKAGE_SET) as ours:
                    copy_image(ours, peer, _IMAGE, *_TAGS)
                report = _test(peer, directory / "report.xml")
        except PeerError as error:
            console.print(f"[red]{escape(str(error))}[/red]")
            return 1
    _show(console, report)
    return 0 if report.failures else 1


def _test(peer: Peer, file: Path) -> Report:
    command = (
        *(sys.executable, "-m", "pytest", "tests/conformance", "-q", "-p", "no:cacheprovider"),
        *("--registry", peer.address, "--image", f"{_IMAGE}:latest", f"--junitxml={file}"),
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT)
    # Other statuses than "passed" and "some tests failed" are errors of this script.
    if done.returncode not in (0, 1):
        raise PeerError(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return Report.read(file)


def _show(console: Console, report: Report) -> None:
    console.print(f"docker-registry {version()}: {len(report.failures)} of {report.count} tests fail\n")
    for failure in report.failures:
        console.print(f"[bold]{escape(failure.test)}[/bold]")
        for sentence in failure.sentences:
            console.print(f"    {escape(sentence)}")
        console.print(f"    [red]{escape(failure.answer)}[/red]")


if __name__ == "__main__":
    sys.exit(main())
