"""Where an image is pushed to."""

from __future__ import annotations

import re
from dataclasses import dataclass

_HOST = r"\[[0-9a-fA-F:]+\](?::\d+)?|[a-zA-Z0-9.-]+(?::\d+)?"
# Repository names and tags are those of the distribution specification ("Pulling manifests").
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_TARGET = re.compile(
    rf"(?P<host>{_HOST})/(?P<name>{_COMPONENT}(?:/{_COMPONENT})*)(?::(?P<tag>[a-zA-Z0-9_][a-zA-Z0-9._-]{{0,127}}))?",
    re.ASCII,
)
_LOOPBACK = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Target:
    """A tag of a repository in a registry.

    Attributes:
        host: with its port, if there is one.
    """

    host: str
    name: str
    tag: str

    def __str__(self) -> str:
        return f"{self.host}/{self.name}:{self.tag}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine, where plain HTTP is as good as TLS."""
        return _LOOPBACK.fullmatch(self.host) is not None

    @classmethod
    def parse(cls, text: str, tag: str) -> Target:
        """Read ``HOST[:PORT]/NAME[:TAG]``.

        Args:
            text: as it was given.
            tag: what it is called if the text has none.

        Raises:
            ValueError: it is none.
        """
        found = _TARGET.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no HOST[:PORT]/NAME[:TAG]")
        return cls(found["host"], found["name"], found["tag"] or tag)
