"""Build events as log lines."""

from __future__ import annotations

import structlog

from nixery.errors import PackageSetChanged, RequestError, TooBusy
from nixery.pipeline.events import (
    Build,
    BuildEvent,
    Evaluated,
    Failed,
    Grouped,
    Joined,
    LayerPacked,
    LayerReused,
    LayersComplete,
    NamesClashed,
    Queued,
    Realised,
    Requested,
    Reused,
    Started,
    Stored,
)

_log = structlog.get_logger("nixery.build")


# Clashes of an image that are logged one by one.
_CLASHES = 20


class LoggingObserver:
    """The ``BuildObserver`` that writes logs; a build that goes well is two lines at level info."""

    def observe(self, build: Build, event: BuildEvent) -> None:  # noqa: C901, PLR0912 -- a case each
        """See ``BuildObserver.observe``."""
        request = build.request
        log = _log.bind(image="/".join(request.requested) or "(base)", platform=str(request.platform))
        match event:
            case Requested() | Started() | LayersComplete():
                pass  # what comes next tells more
            case Queued(position):
                log.debug("queued", position=position)
            case Grouped(layers):
                log.debug("grouped", layers=layers)
            case Evaluated(packages):
                log.info("building", packages=len(packages))
            case Realised(paths, size):
                log.debug("realised", paths=paths, bytes=size)
            case LayerPacked(layer):
                log.debug("packed", digest=str(layer.descriptor.digest), bytes=layer.descriptor.size)
            case LayerReused(layer):
                log.debug("reused", digest=str(layer.descriptor.digest))
            case NamesClashed(clashes):
                for clash in clashes[:_CLASHES]:
                    log.warning("names clash", name=clash.name, winner=clash.winner, loser=clash.loser)
                if len(clashes) > _CLASHES:
                    log.warning("more names clash", names=len(clashes) - _CLASHES)
            case Stored(manifest, layers):
                log.info("built", manifest=str(manifest), layers=layers)
            case Joined(first):
                log.info("joined", build_request_id=first)
            case Reused(manifest):
                log.info("found", manifest=str(manifest))
            case Failed(error=(RequestError() | TooBusy()) as error):
                log.info("not built", reason=str(error))
            case Failed(error=PackageSetChanged()):
                # The request restarts with the current state; if that fails, too, its answer says so.
                log.info("package set changed", reason="a file was written since it was looked at")
            case Failed(error):
                log.error("build failed", reason=str(error))
