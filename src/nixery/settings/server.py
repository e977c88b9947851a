"""Where is listened, and what one request may cost."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import BaseModel, Field

from nixery.settings.values import DAY, NotEmpty, Size


class ServerSettings(BaseModel):
    """Where is listened, and what one request may cost.

    Attributes:
        host: address to bind. Nixery binds all addresses; a server that builds what it is asked for should be
            opened to a network on purpose.
        port: TCP port to bind.
        public_builds: whether everybody may see which images are built, and the logs of their builds.
        max_builds: how many images are built at once, and how many tags are looked up at once.
        max_queued: how many others may wait for that; more are told to come back.
        max_packages: that one name may ask for. The grammar allows for 128.
        max_closure: bytes of store paths that an image may have; 0 for any number.
        build_timeout: seconds that an image may take in all, once its turn has come.
        send_timeout: seconds after which a client that takes nothing of what it is sent is cut off.
        failure_ttl: seconds for which a failed build is answered without trying again.
    """

    host: Annotated[str, NotEmpty, Field(alias="NIXERY_HOST")] = "127.0.0.1"
    port: Annotated[int, NotEmpty, Field(alias="PORT", ge=1, le=65535)]
    public_builds: Annotated[bool, NotEmpty, Field(alias="NIXERY_PUBLIC_BUILDS")] = True
    failure_ttl: Annotated[int, NotEmpty, Field(alias="NIXERY_FAILURE_TTL", ge=0, le=DAY)] = 30
    max_builds: Annotated[
        int,
        NotEmpty,
        Field(alias="NIXERY_MAX_BUILDS", ge=1, le=1024, default_factory=lambda: os.cpu_count() or 1),
    ]
    max_queued: Annotated[int, NotEmpty, Field(alias="NIXERY_MAX_QUEUED", ge=0, le=100_000)] = 100
    max_packages: Annotated[int, NotEmpty, Field(alias="NIXERY_MAX_PACKAGES", ge=1, le=128)] = 100
    max_closure: Annotated[int, NotEmpty, Size, Field(alias="NIXERY_MAX_CLOSURE", ge=0)] = 20 * 1024**3
    build_timeout: Annotated[int, NotEmpty, Field(alias="NIXERY_BUILD_TIMEOUT", ge=1, le=7 * DAY)] = 3600
    send_timeout: Annotated[int, NotEmpty, Field(alias="NIXERY_SEND_TIMEOUT", ge=1, le=DAY)] = 300
