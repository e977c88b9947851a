"""The operator's binary caches and keys, from Nix's own configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from nixery.binary_caches.narinfo import Trust


@dataclass(frozen=True, slots=True)
class BinaryCache:
    """A binary cache.

    Attributes:
        name: its URL without logins and parameters, for messages and records.
        url: without logins and parameters, and without a slash at the end; its scheme is http, https, file or s3.
        priority: the operator's; ``None`` to ask the cache.
        trusted: whether its paths need no signature.
        parameters: the other parameters of its URL.
        login: user and password; ``None`` without a login.
    """

    name: str
    url: str
    priority: int | None = None
    trusted: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)
    login: tuple[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class CacheConfiguration:
    """All that the client of binary caches needs.

    Attributes:
        caches: in Nix's order.
        trust: the rules for narinfos.
        authorities: certificates in PEM that are trusted as well; empty for those of the system alone.
        unusable: a line for each substituter that is none of the supported kinds.
    """

    caches: tuple[BinaryCache, ...]
    trust: Trust
    authorities: bytes = b""
    unusable: tuple[str, ...] = ()

    @classmethod
    def read(cls, environment: Mapping[str, str], options: tuple[str, ...] = ()) -> Self:
        """Read what Nix reads: its files, ``NIX_CONFIG``, and options of its commands. Needs no Nix; blocks.

        Args:
            environment: of the process.
            options: ``NIXERY_NIX_OPTIONS``.

        Raises:
            SettingsError: with a line for everything that is wrong.
        """
        raise NotImplementedError
