"""Identities: who sends a request, as the rules, quotas and logs see it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

# Characters of a name, a group, a claim's name or its value; and of each, the most that are kept: credentials of
# other servers decide about them.
LONGEST_TEXT = 256
MOST_GROUPS, MOST_CLAIMS = 200, 50

_UNPRINTABLE = re.compile(r"[^ -~\xa1-\uffff]")

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Kind(StrEnum):
    """How somebody was identified."""

    ANONYMOUS = "anonymous"
    PASSWORD = "password"  # noqa: S105 -- a kind of identity
    API_TOKEN = "api-token"  # noqa: S105
    OIDC = "oidc"
    CERTIFICATE = "certificate"
    PROXY = "proxy"


class Right(StrEnum):
    """What a rule can allow.

    ``PULL`` is for images that are stored, ``BUILD`` for having one built that is not, ``SEE_BUILDS`` for reports and
    logs of builds, and ``ADMIN`` for figures about the whole server.
    """

    PULL = "pull"
    BUILD = "build"
    SEE_BUILDS = "see-builds"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Limits:
    """What credentials allow at most, whatever the rules allow their owner.

    Attributes:
        rights: that they can be used for.
        packages: patterns of names, as in a rule.
    """

    rights: frozenset[Right] = frozenset(Right)
    packages: tuple[str, ...] = ("*",)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sends a request. Made by what checked the credentials; no part of it is taken from a client unchecked.

    Attributes:
        kind: how somebody was identified.
        name: unique among all kinds but ``ANONYMOUS``: names from an OIDC issuer begin with the issuer's prefix.
        groups: that the rules can name.
        claims: of an OIDC token, which the rules can name; texts only.
        limits: of the credentials; ``None`` if they have none.
    """

    kind: Kind
    name: str
    groups: frozenset[str] = frozenset()
    claims: Mapping[str, str] = field(default_factory=lambda: _NOTHING, hash=False)
    limits: Limits | None = None

    @property
    def is_anonymous(self) -> bool:
        """Whether no credentials were sent."""
        return self.kind is Kind.ANONYMOUS

    def __str__(self) -> str:
        """Return the name in logs and messages."""
        return "anonymous" if self.is_anonymous else self.name


ANONYMOUS = Identity(Kind.ANONYMOUS, "")


class CredentialsRefused(Exception):
    """Credentials are wrong, expired or of an unknown kind. The message is for the client: it tells no users' names.

    Args:
        message: for the client.
        user: whose credentials they claim to be, if that is a user of this registry; for the audit log. ``None`` for
            others: people also type passwords where a name should be.
    """

    def __init__(self, message: str, user: str | None = None) -> None:
        super().__init__(message)
        self.user = user


def is_text(text: str) -> bool:
    """Whether a name, a group or a claim from elsewhere can be used: short, and safe to print."""
    return 0 < len(text) <= LONGEST_TEXT and _UNPRINTABLE.search(text) is None
