"""What a run of the suite found, read from pytest's report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree


@dataclass(frozen=True)
class Failure:
    """A test that failed.

    Attributes:
        test: its name, with its parameters.
        sentences: of the specification, that it is of.
        answer: the assertion that did not hold.
    """

    test: str
    sentences: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Report:
    """A run.

    Attributes:
        count: of all tests.
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
