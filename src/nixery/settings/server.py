"""Where is listened, and what one request may cost."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from nixery.settings.values import DAY, NotEmpty


class ServerSettings(BaseModel):
    """Where is listened, and what one request may cost.

    Attributes:
        host: address to bind. Nixery binds all addresses; a server that builds what it is asked for should be
            opened to a network on purpose.
        port: TCP port to bind.
        public_builds: whether everybody may see which images are built, and the logs of their builds.
        failure_ttl: seconds for which a failed build is answered without trying again.
    """

    host: Annotated[str, NotEmpty, Field(alias="NIXERY_HOST")] = "127.0.0.1"
    port: Annotated[int, NotEmpty, Field(alias="PORT", ge=1, le=65535)]
    public_builds: Annotated[bool, NotEmpty, Field(alias="NIXERY_PUBLIC_BUILDS")] = True
    failure_ttl: Annotated[int, NotEmpty, Field(alias="NIXERY_FAILURE_TTL", ge=0, le=DAY)] = 30
