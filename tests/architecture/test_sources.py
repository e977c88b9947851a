"""What the import contracts cannot see."""

import re
from pathlib import Path

import nixery

SOURCES = sorted(Path(nixery.__file__).parent.rglob("*.py"))


def test_there_are_sources() -> None:
    assert len(SOURCES) > 40


def test_only_the_command_line_reads_the_environment() -> None:
    readers = {path.name for path in SOURCES if re.search(r"\bos\.(environ|getenv)\b", path.read_text())}
    assert readers == {"building.py", "completion.py", "copying.py", "serving.py", "workshop.py"}


def test_every_module_says_what_it_is() -> None:
    assert not [path for path in SOURCES if not path.read_text().startswith('"""')]
