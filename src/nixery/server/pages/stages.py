"""The stages of a build, as they are shown."""

from __future__ import annotations

from dataclasses import dataclass

from nixery.builds.history import BuildReport, State
from nixery.server.pages.templating import duration

_TITLES = {
    "queued": "Wait",
    "evaluate": "Evaluate",
    "realise": "Fetch and build",
    "group": "Group",
    "pack": "Pack",
    "store": "Store",
}


@dataclass(frozen=True, slots=True)
class ShownStage:
    """A stage; ``kind`` is a class of the style sheet."""

    name: str
    title: str
    kind: str
    took: str
    hidden: bool


def shown_stages(report: BuildReport) -> list[ShownStage]:
    """Return all stages there can be, with those that are to come."""
    entered = {stage.name: stage for stage in report.stages}
    shown = []
    for name, title in _TITLES.items():
        stage = entered.get(name)
        if stage is None:
            # Most builds need not wait.
            shown.append(ShownStage(name, title, "future", "", hidden=name == "queued"))
        elif stage.ended is None:
            shown.append(ShownStage(name, title, "current", "…", hidden=False))
        else:
            is_culprit = report.state is State.FAILED and stage is report.stages[-1]
            kind = "failed" if is_culprit else "past"
            shown.append(ShownStage(name, title, kind, duration(stage.ended - stage.started), hidden=False))
    return shown
