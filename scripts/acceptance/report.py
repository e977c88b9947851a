"""The results of a run of the acceptance tests, as JSON and as Markdown."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Test functions in the order of the table, with their titles.
TESTS = {
    "test_pull_by_tag": "pull by tag",
    "test_run": "run",
    "test_escaped_name": "escaped name",
    "test_pull_by_digest": "pull by digest",
    "test_many_layers": "many layers",
    "test_index": "index",
    "test_zstd": "zstd layers",
    "test_broken_off_blob": "broken-off blob",
    "test_mirror": "as a mirror",
    "test_missing_package": "missing package",
    "test_failed_build": "failed build",
}

# The same, of access rules and credentials.
ACCESS_TESTS = {
    "test_pull_without_credentials": "pull what everyone may",
    "test_login": "log in",
    "test_pull_with_a_password": "pull with a password",
    "test_pull_with_an_api_token": "pull with an API token",
    "test_wrong_password": "wrong password",
    "test_expired_token": "expired token",
    "test_token_of_another_registry": "token of another registry",
    "test_user_without_the_right": "user without the right",
    "test_no_credentials": "no credentials",
    "test_list_of_tags": "list tags",
    "test_list_of_images": "list images",
}

# Tests of the messages that users read.
_MESSAGES = (
    "test_missing_package",
    "test_failed_build",
    "test_wrong_password",
    "test_user_without_the_right",
    "test_no_credentials",
)


@dataclass
class Result:
    """How one test ended.

    Attributes:
        outcome: ``passed`` or ``failed``.
        note: a short remark.
        message: the client's output.
    """

    outcome: str
    note: str = ""
    message: str = ""


@dataclass
class ClientReport:
    """One client: its versions by program, its results by test."""

    versions: dict[str, str] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)


@dataclass
class Report:
    """A run.

    Attributes:
        release: of the system that the clients came from.
        clients: by name.
        not_tried: reasons, by the names of missing clients.
    """

    release: str
    clients: dict[str, ClientReport] = field(default_factory=dict)
    not_tried: dict[str, str] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Write ``report.json`` and ``report.md``."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "report.json").write_text(json.dumps(asdict(self), indent=2) + "\n")
        (directory / "report.md").write_text("\n".join(markdown(self)) + "\n")

    @classmethod
    def read(cls, file: Path) -> Report:
        """Read a ``report.json``."""
        document: dict[str, Any] = json.loads(file.read_text())
        clients = {
            name: ClientReport(
                client["versions"], {test: Result(**result) for test, result in client["results"].items()}
            )
            for name, client in document["clients"].items()
        }
        return cls(document["release"], clients, document["not_tried"])


def release() -> str:
    """Return the name and version of this system; for a release without a version yet, its code name."""
    try:
        about = platform.freedesktop_os_release()
    except OSError:
        return platform.system()
    return about.get("PRETTY_NAME", about["NAME"])


def markdown(report: Report) -> Iterator[str]:
    """Render the tables, line by line."""
    yield from _results(report, TESTS)
    for name, reason in report.not_tried.items():
        yield f"\nNot tried: {name} ({reason})."
    yield from _shown(report, TESTS)
    if any(test in client.results for client in report.clients.values() for test in ACCESS_TESTS):
        yield "\nWith access rules:\n"
        yield from _results(report, ACCESS_TESTS)
        yield from _shown(report, ACCESS_TESTS)


def _shown(report: Report, tests: Mapping[str, str]) -> Iterator[str]:
    """Render the messages that users read."""
    for test in tests:
        messages = {
            name: client.results[test].message
            for name, client in report.clients.items()
            if test in _MESSAGES and test in client.results and client.results[test].message
        }
        if messages:
            yield f"\nMessage, {tests[test]}:\n"
        for name, message in messages.items():
            yield f"- {name}:\n\n" + "\n".join(f"        {line}" for line in message.splitlines()) + "\n"


def _results(report: Report, tests: Mapping[str, str]) -> Iterator[str]:
    """Render one table, of the clients that have results in it."""
    clients = {
        name: client
        for name, client in report.clients.items()
        if not client.results or any(test in client.results for test in tests)
    }
    yield from _table(
        ["", *clients],
        [
            ["versions", *(_versions(client.versions) for client in clients.values())],
            *(
                [title, *(_cell(client.results.get(test)) for client in clients.values())]
                for test, title in tests.items()
            ),
        ],
    )


def _versions(versions: Mapping[str, str]) -> str:
    return "<br>".join(f"{program} {version}" for program, version in versions.items())


def _cell(result: Result | None) -> str:
    if result is None:
        return "—"
    mark = "✓" if result.outcome == "passed" else "✗"
    return f"{mark} {result.note}".strip()


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(_escape(cell) for cell in row)} |"


def _escape(cell: str) -> str:
    return cell.replace("|", r"\|").replace("\n", " ")


# Text that differs between runs and has no meaning for readers.
_NOISE = (
    (re.compile(r"\x1b\[[0-9;]*[A-Za-z]"), ""),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1:8080"),
    (re.compile(r"\b[0-9a-z]{32}-(?=failing)"), ""),
    (re.compile(r'(time="?|^)\d{4}[-/]\d\d[-/]\d\d[T ][^" ]*("| )', re.MULTILINE), ""),
)
# Progress, which a terminal overwrites; steps of builders; and what crictl logs before it prints it.
_PROGRESS = re.compile(
    r"elapsed: |.*: resolving |Using default tag|Trying to pull|#\d+ |-+$|> \[|INFO\[|STEP |Sending build context|Step "
    r"|E\d{4} |Building at STEP|WARNING|Dockerfile:\d|\s*\d+ \|"
)


def message_of(output: str) -> str:
    """Reduce a client's output to its final lines: no progress, no ports, no times."""
    for pattern, replacement in _NOISE:
        output = pattern.sub(replacement, output)
    lines = [line.strip() for line in re.split(r"[\r\n]+", output)]
    kept = [line for line in lines if line and not _PROGRESS.match(line)]
    # Retries repeat the same lines.
    return "\n".join(dict.fromkeys(kept))
