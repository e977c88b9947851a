"""The log lines of builds."""

from __future__ import annotations

from structlog.testing import capture_logs

from nixery.builds.events import Build, LoggingObserver, NamesClashed
from nixery.image.name import parse_image_name
from nixery.packing.root_filesystem import NameClash
from nixery.sources.source import Pin


def test_thousands_of_name_clashes_are_summarised_in_the_log() -> None:
    clashes = [NameClash(f"bin/{number}", "a", "b") for number in range(5000)]
    build = Build.of(parse_image_name("a/b"), Pin("path:", "1", "1"))
    with capture_logs() as lines:
        LoggingObserver().observe(build, NamesClashed(clashes))
    assert len(lines) == 21
    assert (lines[0]["name"], lines[-1]["names"]) == ("bin/0", 4980)
