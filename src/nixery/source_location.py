"""URLs of package sources: the address for programs, the public form for people, and the secrets.

Every text about a source that leaves the process (errors, warnings, logs, annotations) passes through this
module.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

# A commit: SHA-1, the digest of almost every repository.
COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)

# Clients see this instead of a URL that is not public.
UNNAMED = "the package source"

# In any text. A password may contain an unencoded "@": user info ends at the last one before the path.
_SSH_PASSWORD = re.compile(r"(?<=ssh://)([^/?#\s:@]*):[^/?#\s]*@")
_USER_INFO = re.compile(r"(?<!ssh)(://)[^/?#\s'\"]*@")
# The query and the fragment of a URL, or of a flake reference such as github:owner/repository?ref=x.
_QUERY = re.compile(r"(?<![\w+.-])([A-Za-z][\w+.-]*:[^\s?#'\"<>]+)[?#][^\s'\"<>]*")

# The user of these is a part of the address, and not secret.
_SSH = ("ssh://", "git+ssh://")

# A shorter text is no secret, and would match ordinary words.
_SHORTEST_SECRET = 4
_HIDDEN = "…"


def redacted(text: str) -> str:
    """Return a text without the user info, the query and the fragment of any URL in it; the user of SSH stays."""
    text = _SSH_PASSWORD.sub(r"\1@", text)
    text = _USER_INFO.sub(r"\1", text)
    return _QUERY.sub(rf"\1?{_HIDDEN}", text)


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """The parsed URL of a package source.

    Attributes:
        address: without user info, except for SSH, where the user is a part of the address. Only this may be
            in an argument list, which every user of the machine can read.
        username: for HTTP; ``None`` without one. Decoded.
        password: likewise; ``None`` also for a user without one.
        public: whether clients may see the URL; ``None``: in annotations alone, if it has no secret.
        local: whether messages go to the operator of this process, and not to clients.
        secrets: texts that no message contains.
    """

    address: str
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    public: bool | None = None
    local: bool = False
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def parse(cls, url: str, *, public: bool | None = None, local: bool = False) -> SourceLocation:
        """Parse a URL, or any other form that git accepts."""
        scheme, separator, rest = url.partition("://")
        end = re.search(r"[/?#]|$", rest)
        authority = rest[: end.start()] if end and separator else ""
        user_info, at, host = authority.rpartition("@")
        username, colon, password = user_info.partition(":")
        queries = _query_values(url) if separator else ()
        remainder = rest[len(authority) :]
        if url.startswith(_SSH):
            address = f"{scheme}://{username}{at}{host}{remainder}"
            return cls(address, public=public, local=local, secrets=tuple(_variants(password, *queries)))
        if not at:
            return cls(url, public=public, local=local, secrets=tuple(_variants(*queries)))
        secrets = (user_info, password, *queries) if colon else (username, *queries)
        return cls(
            f"{scheme}://{host}{remainder}",
            unquote(username),
            unquote(password) if colon else None,
            public,
            local,
            tuple(_variants(*secrets)),
        )

    @property
    def shown(self) -> str:
        """The URL for operators of this server, without secrets."""
        return self.redact(self.address)

    @property
    def name(self) -> str:
        """The source, in messages for clients."""
        return self.shown if self.is_disclosed else UNNAMED

    @property
    def is_disclosed(self) -> bool:
        """Whether messages name the source, and quote the errors of git or Nix."""
        return bool(self.public) or self.local

    @property
    def identity(self) -> str:
        """A digest that identifies this address, without its secrets."""
        if self.shown == self.address:
            return self.address
        # Two archives may differ in their queries alone.
        return f"{self.shown}#{_digest(self.address)}"

    @property
    def has_secrets(self) -> bool:
        """Whether the URL holds user info, a query or a fragment."""
        return self.username is not None or self.shown != self.address

    @property
    def published(self) -> str | None:
        """The URL for images' annotations; ``None`` for a place on this machine, or a private URL."""
        if self.public is False or (self.has_secrets and not self.public):
            return None
        return self.shown if _is_remote(self.shown) else None

    def redact(self, text: str) -> str:
        """Return a text without this source's secrets, and without those of any URL in it."""
        # The exact texts first, since the rules below may leave a part of them in a URL.
        for secret in self.secrets:
            text = text.replace(secret, _HIDDEN)
        return redacted(text).replace(f"://{_HIDDEN}@", "://")


def _is_remote(url: str) -> bool:
    is_network = "://" in url and not url.startswith(("file://", "git+file://"))
    is_short_ssh = re.match(r"[\w.-]+@[\w.-]+:", url) is not None
    return is_network or is_short_ssh


def _query_values(url: str) -> tuple[str, ...]:
    parts = urlsplit(url.replace("{rev}", ""))
    raw = [
        pair.partition("=")[2] or pair for text in (parts.query, parts.fragment) for pair in text.split("&")
    ]
    return tuple(value for value in (*raw, *(value for _, value in parse_qsl(parts.query))) if value)


def _variants(*secrets: str) -> Iterator[str]:
    """Yield the forms in which programs repeat a secret, the longest first."""
    found: set[str] = set()
    for secret in secrets:
        plain = unquote(secret)
        for text in (secret, plain, quote(plain, safe=""), quote(plain), quote_plus(plain)):
            found |= {text, re.sub(r"%[0-9A-F]{2}", lambda code: code[0].lower(), text)}
        if ":" in secret:
            found.add(base64.b64encode(plain.encode()).decode())
    yield from sorted((text for text in found if len(text) >= _SHORTEST_SECRET), key=lambda t: (-len(t), t))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
