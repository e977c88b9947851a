"""The operator's binary caches and keys, from Nix's own configuration.

Reads what Nix reads, without running it, so that a machine without Nix has the same settings. Sources: Nix manual,
"nix.conf" and "Store types"; ``config.cc`` and ``globals.cc`` of Nix.
"""

from __future__ import annotations

import netrc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

from nixery.binary_caches.narinfo import Trust
from nixery.closure import STORE_DIRECTORY
from nixery.errors import SettingsError

_DIRECTORY = Path("/etc/nix")
_USER_FILE = "nix/nix.conf"

# Nix's defaults.
_SUBSTITUTERS = "https://cache.nixos.org/"
_KEYS = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="

# Bytes of a file.
_LARGEST_CONFIGURATION = 1024 * 1024
_LARGEST_AUTHORITIES = 4 * 1024 * 1024

# Files that include each other.
_DEEPEST_INCLUDE = 16

_MOST_CACHES = 32

_LISTS = frozenset({"substituters", "trusted-public-keys"})
_NAMES = _LISTS | {"substitute", "require-sigs", "netrc-file", "ssl-cert-file"}
_ALIASES = {
    "binary-caches": "substituters",
    "binary-cache-public-keys": "trusted-public-keys",
    "build-use-substitutes": "substitute",
}

_TRUE, _FALSE = frozenset({"true", "yes", "1"}), frozenset({"false", "no", "0"})

_SCHEMES = frozenset({"http", "https", "file", "s3"})


@dataclass(frozen=True, slots=True)
class BinaryCache:
    """A binary cache.

    Attributes:
        name: its URL without logins and parameters, for messages and records; ends in no slash.
        priority: the operator's; ``None`` to ask the cache.
        trusted: whether its paths need no signature.
        parameters: the other parameters of its URL.
        login: user and password; ``None`` without a login.
    """

    name: str
    priority: int | None = None
    trusted: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)
    login: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def scheme(self) -> str:
        """``http``, ``https``, ``file`` or ``s3``."""
        return self.name.partition(":")[0]

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse a substituter.

        Raises:
            ValueError: it is no binary cache of a supported kind.
        """
        split = urlsplit(url)
        _, _, host = split.netloc.rpartition("@")
        shown = f"{split.scheme}://{host}{split.path.rstrip('/')}"
        if split.scheme not in _SCHEMES or bool(host) != (split.scheme != "file") or split.fragment:
            shown = shown if split.scheme else f"{url.partition('?')[0]!r}"
            raise ValueError(
                f"{shown} is not a binary cache that can be read directly: write http(s)://, file:/// or s3://"
            )
        parameters = dict(parse_qsl(split.query))
        if parameters.pop("store", STORE_DIRECTORY) != STORE_DIRECTORY:
            raise ValueError(f"{shown} is of another store directory than {STORE_DIRECTORY}")
        priority = parameters.pop("priority", None)
        if priority is not None and not (priority.isascii() and priority.isdecimal() and len(priority) < 10):  # noqa: PLR2004 -- digits
            raise ValueError(f"the priority of {shown} is not a number")
        trusted = _boolean(parameters.pop("trusted", "false"), f"trusted, of {shown},")
        login = (
            (unquote(split.username), unquote(split.password or "")) if split.username is not None else None
        )
        if split.port == 0:  # also raises for one that is no number
            raise ValueError(f"{shown} has no usable port")
        return cls(shown, None if priority is None else int(priority), trusted, parameters, login)


@dataclass(frozen=True, slots=True)
class CacheConfiguration:
    """All that the client of binary caches needs.

    Attributes:
        caches: in Nix's order.
        trust: the rules for narinfos.
        authorities: certificates in PEM that are trusted besides those of the system.
        unusable: a line for each substituter of another kind.
    """

    caches: tuple[BinaryCache, ...]
    trust: Trust
    authorities: bytes = b""
    unusable: tuple[str, ...] = ()

    @classmethod
    def read(cls, environment: Mapping[str, str], options: Sequence[str] = ()) -> Self:
        """Read Nix's files, ``NIX_CONFIG``, and options of its commands. Blocks.

        Args:
            environment: of the process.
            options: ``NIXERY_NIX_OPTIONS``.

        Raises:
            SettingsError: it is wrong.
        """
        directory = Path(environment.get("NIX_CONF_DIR") or _DIRECTORY)
        try:
            values = _Values()
            values.read_file(directory / "nix.conf")
            for file in reversed(list(_user_files(environment))):
                values.read_file(file)
            values.read(environment.get("NIX_CONFIG", ""), "NIX_CONFIG", directory)
            values.apply(_from_options(options))
            caches, unusable = _caches(values, directory)
            trust = Trust.parse(
                values.get("trusted-public-keys", _KEYS), require_signatures=values.boolean("require-sigs")
            )
            authorities = _authorities(values.get("ssl-cert-file") or environment.get("NIX_SSL_CERT_FILE"))
        except ValueError as error:
            raise SettingsError((f"Nix's configuration is wrong: {error}",)) from error
        return cls(caches, trust, authorities, unusable)


class _Values:
    """The values of Nix's settings that matter here."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def get(self, name: str, default: str = "") -> str:
        return self._values.get(name, default)

    def boolean(self, name: str) -> bool:
        return _boolean(self._values.get(name, "true"), name)

    def apply(self, settings: Iterable[tuple[str, str]]) -> None:
        """Set or extend values, in order.

        Raises:
            ValueError: of what makes the settings.
        """
        for name, value in settings:
            bare = name.removeprefix("extra-")
            setting = _ALIASES.get(bare, bare)
            if setting not in _NAMES or (bare != name and setting not in _LISTS):
                continue
            if bare != name:
                before = self._values.get(setting, _SUBSTITUTERS if setting == "substituters" else _KEYS)
                self._values[setting] = f"{before} {value}"
            else:
                self._values[setting] = value

    def read_file(self, file: Path, depth: int = 0) -> None:
        """Read a file; as Nix, skip one that cannot be read.

        Raises:
            ValueError: it is wrong.
        """
        with suppress(OSError):
            content = _content(file, _LARGEST_CONFIGURATION)
            self.read(content.decode(errors="replace"), str(file), file.parent, depth)

    def read(self, text: str, name: str, directory: Path, depth: int = 0) -> None:
        """Read the text of a configuration.

        Args:
            text: with a setting in each line.
            name: of the text, for messages.
            directory: that includes are relative to.
            depth: number of files that include this one.

        Raises:
            ValueError: it is wrong.
        """
        for number, line in enumerate(text.split("\n"), 1):
            match line.partition("#")[0].split():
                case []:
                    pass
                case ["include" | "!include" as kind, path]:
                    included = directory / path
                    if depth == _DEEPEST_INCLUDE:
                        raise ValueError(f"{name} is included through more than {_DEEPEST_INCLUDE} files")
                    if included.exists():
                        self.read_file(included, depth + 1)
                    elif kind == "include":
                        raise ValueError(f"{name} includes {included}, which does not exist")
                case [setting, "=", *words]:
                    self.apply([(setting, " ".join(words))])
                case _:
                    raise ValueError(f"line {number} of {name} is not a setting")


def _caches(values: _Values, directory: Path) -> tuple[tuple[BinaryCache, ...], tuple[str, ...]]:
    """Return the usable substituters, and a line for each other one."""
    if not values.boolean("substitute"):
        return (), ()
    logins = _logins(Path(values.get("netrc-file") or directory / "netrc"))
    unusable: list[str] = []
    caches: dict[str, BinaryCache] = {}
    for url in values.get("substituters", _SUBSTITUTERS).split():
        try:
            cache = _with_login(BinaryCache.parse(url), logins)
        except ValueError as error:
            unusable.append(str(error))
        else:
            caches.setdefault(cache.name, cache)
    if len(caches) > _MOST_CACHES:
        raise ValueError(f"substituters has {len(caches)} binary caches; {_MOST_CACHES} is the limit")
    return tuple(caches.values()), tuple(unusable)


def _user_files(environment: Mapping[str, str]) -> Iterator[Path]:
    """Return the user's files, the most important one first."""
    if "NIX_USER_CONF_FILES" in environment:
        yield from (Path(name) for name in environment["NIX_USER_CONF_FILES"].split(":") if name)
        return
    home = environment.get("XDG_CONFIG_HOME")
    if not home and environment.get("HOME"):
        home = f"{environment['HOME']}/.config"
    directories = (environment.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    yield from (Path(directory) / _USER_FILE for directory in (home, *directories) if directory)


def _from_options(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    words = iter(options)
    for word in words:
        if word == "--option":
            yield next(words, ""), next(words, "")
        elif word in {"--no-substitute", "--no-require-sigs"}:
            yield word.removeprefix("--no-"), "false"
        elif word.startswith("--") and word.removeprefix("--").removeprefix("extra-") in _LISTS | {
            "netrc-file"
        }:
            yield word.removeprefix("--"), next(words, "")


def _boolean(text: str, name: str) -> bool:
    if text not in _TRUE | _FALSE:
        raise ValueError(f"{name} is {text!r}; expected true or false")
    return text in _TRUE


def _content(file: Path, limit: int) -> bytes:
    with file.open("rb") as opened:
        content = opened.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{file} has more than {limit:,} bytes")
    return content


def _logins(file: Path) -> netrc.netrc | None:
    if not file.exists():
        return None
    try:
        return netrc.netrc(file)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError) as error:
        # The text of a parser's error may quote a password.
        reason = error.strerror if isinstance(error, OSError) else "it is not in the format of netrc"
        raise ValueError(f"cannot read netrc-file {file}: {reason}") from None


def _with_login(cache: BinaryCache, logins: netrc.netrc | None) -> BinaryCache:
    if cache.login is not None or logins is None or cache.scheme not in {"http", "https"}:
        return cache
    found = logins.authenticators(urlsplit(cache.name).hostname or "")
    if found is None:
        return cache
    user, _, password = found
    return BinaryCache(
        cache.name, cache.priority, cache.trusted, cache.parameters, (user or "", password or "")
    )


def _authorities(file: str | None) -> bytes:
    if not file:
        return b""
    try:
        return _content(Path(file), _LARGEST_AUTHORITIES)
    except OSError as error:
        raise ValueError(f"cannot read the certificates in {file}: {error.strerror}") from error
