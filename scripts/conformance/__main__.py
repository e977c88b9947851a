"""Run the conformance suite against Debian's docker-registry: ``python -m scripts.conformance``.

Our server builds a small image, skopeo copies it there under several tags, and the suite tests it. A registry of
another hand is what shows that the suite can fail, and that it fails for the right reasons.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from scripts.conformance.report import Report
from scripts.peers.copying import copy_image
from scripts.peers.docker_registry import docker_registry, version
from scripts.peers.nixery import nixery
from scripts.peers.process import Peer, PeerError

_IMAGE = "hello"
_PACKAGE_SET = "tests/packageset"
# The tests of listings need several.
_TAGS = ("latest", "b", "C", "a", "1.0")

# Seconds for the whole suite.
_TIMEOUT = 300.0


def main() -> int:
    """Run it; 0 if the suite ran and found something, as it does with every version that Debian has."""
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
    # Anything but "some tests failed" and "all passed" is a mistake of ours.
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
