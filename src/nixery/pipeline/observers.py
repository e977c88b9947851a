"""Several observers of one stream of events."""

from __future__ import annotations

from nixery.pipeline.events import Build, BuildEvent, BuildObserver


class Observers:
    """The ``BuildObserver`` that tells others, in their order."""

    def __init__(self, *observers: BuildObserver) -> None:
        self._observers = observers

    def observe(self, build: Build, event: BuildEvent) -> None:
        """See ``BuildObserver.observe``."""
        for observer in self._observers:
            observer.observe(build, event)
