"""How Nix is run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from nixery.settings.values import DAY, NotEmpty, arguments

# Nix does not take arbitrarily large numbers.
_WEEK = 7 * DAY

# What Nix reads itself, and what its downloads need. A package set may read whatever it is given.
_FOR_NIX = re.compile(
    r"PATH|HOME|USER|LOGNAME|TMPDIR|LOCALE_ARCHIVE|LC_ALL|LANG|XDG_\w+_(HOME|DIRS)|NIX_\w+|SSL_CERT_\w+|NETRC"
    # With the mark, an evaluation does not outlive a server that is killed.
    r"|NIXERY_STARTED_BY|(https?|ftp|all|no)_proxy|(HTTPS?|FTP|ALL|NO)_PROXY|CURL_CA_BUNDLE|GIT_SSL_CAINFO|SSH_AUTH_SOCK|GIT_SSH_COMMAND"
)

_FOR_GIT = re.compile(
    r"PATH|HOME|USER|LOGNAME|TMPDIR|LOCALE_ARCHIVE|LC_ALL|LANG|XDG_CONFIG_HOME|XDG_CACHE_HOME|SSL_CERT_\w+|NIXERY_STARTED_BY"
    r"|(https?|ftp|all|no)_proxy|(HTTPS?|FTP|ALL|NO)_PROXY|CURL_CA_BUNDLE|SSH_AUTH_SOCK|GIT_SSH(_COMMAND|_VARIANT)?|GIT_SSL_\w+"
    r"|GIT_CONFIG_\w+|GIT_PROXY_SSL_\w+|GIT_HTTP_\w+"
)


class NixSettings(BaseModel):
    """How Nix is run.

    Attributes:
        nix_timeout: seconds a builder may run.
        nix_arguments: added to all commands of Nix.
        nix_sandbox: whether builders run in Nix's sandbox; ``auto`` for what Nix's own configuration says.
        allow_ifd: whether an evaluation may build things, and then read them (import from derivation).
        evaluation_memory: MiB that an evaluation may take; 0 for no bound.
    """

    nix_timeout: Annotated[int, NotEmpty, Field(alias="NIX_TIMEOUT", ge=1, le=_WEEK)] = 60
    nix_arguments: Annotated[
        tuple[str, ...], NotEmpty, BeforeValidator(arguments), Field(alias="NIXERY_NIX_OPTIONS")
    ] = ()
    nix_sandbox: Annotated[Literal["auto", "on", "off"], NotEmpty, Field(alias="NIXERY_NIX_SANDBOX")] = "auto"
    allow_ifd: Annotated[bool, NotEmpty, Field(alias="NIXERY_ALLOW_IFD")] = False
    evaluation_memory: Annotated[int, NotEmpty, Field(alias="NIXERY_EVALUATION_MEMORY", ge=0, le=1 << 22)] = (
        4096
    )

    # Not a setting, and kept out of sight: it may hold secrets.
    environment: Annotated[Mapping[str, str], Field(alias="", repr=False)] = {}

    @property
    def evaluation_environment(self) -> Mapping[str, str]:
        """What of the environment an evaluation is given: what Nix itself needs."""
        return {name: value for name, value in self.environment.items() if _FOR_NIX.fullmatch(name)}

    @property
    def git_environment(self) -> Mapping[str, str]:
        """What of the environment git is given: what it and SSH need to reach a repository."""
        return {name: value for name, value in self.environment.items() if _FOR_GIT.fullmatch(name)}

    @property
    def fetch_environment(self) -> Mapping[str, str]:
        """What of the environment a command of Nix is given that fetches, and builds and evaluates nothing of others."""
        return {
            name: value
            for name, value in self.environment.items()
            if _FOR_NIX.fullmatch(name) or _FOR_GIT.fullmatch(name)
        }
