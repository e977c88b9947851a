"""Builds, as far as everybody may see them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from nixery.pipeline.build_history import BuildHistory
from nixery.pipeline.build_report import BuildReport, Line

# Followers at the same time; each is a connection that stays open.
_FOLLOWERS = 200

_HIDDEN = "hidden"


class PublishedBuilds:
    """What is known of builds, without names and logs unless those are public.

    Args:
        history: of builds.
        public: whether everybody may see what is built, and what is said about it.
    """

    def __init__(self, history: BuildHistory, *, public: bool) -> None:
        self._history = history
        self._followers = 0
        self.public = public

    def get(self, build: str) -> BuildReport | None:
        """Return what is known of a build."""
        report = self._history.get(build)
        return report and self._shown(report)

    def recent(self) -> Sequence[BuildReport]:
        """Return all that are known, the latest first."""
        return [self._shown(report) for report in self._history.recent()]

    @property
    def is_crowded(self) -> bool:
        """Whether nobody else can follow a build for now."""
        return self._followers >= _FOLLOWERS

    async def follow(
        self, build: str, after: int
    ) -> AsyncGenerator[tuple[BuildReport, Sequence[Line]], None]:
        """See ``BuildHistory.follow``."""
        self._followers += 1
        try:
            async for report, lines in self._history.follow(build, after):
                yield self._shown(report), lines if self.public else ()
        finally:
            self._followers -= 1

    def _shown(self, report: BuildReport) -> BuildReport:
        if self.public:
            return report
        error = report.error and _HIDDEN
        return report.model_copy(
            update={
                "name": _HIDDEN,
                "log": [],
                "dropped": 0,
                "building": [],
                "error": error,
                "manifest": None,
                "request_id": None,
            }
        )
