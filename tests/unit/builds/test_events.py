"""The stages and the log lines of builds."""

from __future__ import annotations

from structlog.testing import capture_logs

from nixery.builds.events import (
    Build,
    Evaluated,
    Grouped,
    LayersComplete,
    LoggingObserver,
    NamesClashed,
    Queued,
    Realised,
    Requested,
    Stage,
    Started,
    stage_begun_by,
)
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


def test_each_stage_begins_with_an_event() -> None:
    events = (Queued(1), Started(), Evaluated(()), Realised(1, 1), Grouped(1), LayersComplete())
    assert [stage_begun_by(event) for event in events] == list(Stage)
    assert stage_begun_by(Requested()) is None
