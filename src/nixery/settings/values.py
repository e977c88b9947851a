"""Parse and check single values of settings.

URLs of package sources are checked for secrets: every user of a machine can read the arguments of all
processes. User info of a URL reaches git through the environment; a secret that has no such way is refused
here, and the error says where to put it instead.
"""

from __future__ import annotations

import re
import shlex
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from nixery.image.platform import Platform
from nixery.quantities import DiskMark
from nixery.source_location import SourceLocation

# Parameters of flake references that Nix knows; none of them is a secret.
_FLAKE_PARAMETER = re.compile(
    "dir|ref|rev|allRefs|host|shallow|narHash|lastModified|revCount|exportIgnore|lfs|unpack|name|verifyCommit"
    "|keytype|publicKeys?"
)
_NETRC = "a netrc file (netrc-file in nix.conf) or access-tokens in nix.conf"

_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_REMOTE_HELPER = re.compile(r"[a-zA-Z0-9]+::")
# Characters of an attribute path; image names are shorter.
_LONGEST_ATTRIBUTE_PATH = 255
_ATTRIBUTE_PATH = re.compile(r"[a-zA-Z_][\w'-]*(\.[a-zA-Z_][\w'-]*)*", re.ASCII)

_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9._-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(?::\d{1,5})?", re.ASCII)

# zstd levels above 19 need more memory than a packing worker may use.
_LEVELS = {"gzip": range(4), "zstd": range(1, 20)}


def not_empty(value: object) -> object:
    """Reject an empty text: a variable that is set to nothing is usually a mistake in a script.

    Raises:
        ValueError: the text is empty.
    """
    if isinstance(value, str) and not value.strip():
        raise ValueError("it is empty; set a value, or unset the variable")
    return value


def comma_separated(value: object) -> object:
    """Split a text at commas, without empty parts."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


def shell_words(value: object) -> object:
    """Split a text as a shell does.

    Raises:
        ValueError: a quote is not closed.
    """
    return tuple(shlex.split(value)) if isinstance(value, str) else value


def platforms(value: object) -> object:
    """Parse platforms that commas separate, without duplicates.

    Raises:
        ValueError: one of them is not a platform.
    """
    parts = comma_separated(value)
    if not isinstance(value, str) or not isinstance(parts, tuple):
        return value
    return tuple(dict.fromkeys(map(Platform.parse, parts)))


def networks(value: object) -> object:
    """Parse addresses and networks that commas separate.

    Raises:
        ValueError: one of them is not a network, or contains all addresses.
    """
    parts = comma_separated(value)
    if not isinstance(parts, tuple):
        return value
    found: tuple[IPv4Network | IPv6Network, ...] = tuple(map(ip_network, parts))
    if any(network.prefixlen == 0 for network in found):
        raise ValueError("a network of all addresses would trust every client; list only the proxies")
    return found


def watermark(value: object) -> object:
    """Parse a percentage or a size; ``none`` is no limit.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, str):
        return value
    return None if value.strip().lower() == "none" else DiskMark.parse(value)


def compression_level(level: int, compression: str) -> int:
    """Check that a compression has a level.

    Raises:
        ValueError: it does not.
    """
    levels = _LEVELS[compression]
    if level not in levels:
        raise ValueError(f"the levels of {compression} are {levels[0]} to {levels[-1]}")
    return level


def trace_exporter(value: str) -> str:
    """Check the name of an exporter of traces.

    Raises:
        ValueError: it is not supported.
    """
    if value.strip() not in {"", "none", "otlp"}:
        raise ValueError(f"{value!r} is not supported; use otlp or none")
    return value.strip()


def trace_protocol(value: str) -> str:
    """Check the name of a protocol for traces.

    Raises:
        ValueError: it is not supported.
    """
    if value.strip() not in {"", "http/protobuf"}:
        raise ValueError(f"{value!r} is not supported; use http/protobuf")
    return value.strip()


def base_url(url: str) -> str:
    """Normalise the URL of a registry: scheme and host, without a path.

    Raises:
        ValueError: it is not an http(s) URL, or has more than a host.
    """
    parts = urlsplit(url.strip())
    host = parts.netloc.lower()
    if parts.scheme not in {"http", "https"} or not _HOST.fullmatch(host):
        raise ValueError(
            f"{url!r} is not an http(s) URL with a host; write for example https://registry.example.org"
        )
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"{url!r} has more than a host; a registry is at the root of its host")
    return f"{parts.scheme}://{host}"


def package_set(path: Path) -> Path:
    """Make the path of a package set absolute.

    Raises:
        ValueError: there is no package set.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.is_dir() and not (path / "default.nix").is_file():
        raise ValueError(f"{path} has no default.nix; expected a Nix package set")
    # Not resolved: a symlink may be moved to the next version while the server runs.
    return path.absolute()


def attribute_paths(text: str) -> tuple[tuple[str, ...], ...]:
    """Parse attribute paths that are separated by commas.

    Raises:
        ValueError: one is no path of plain attribute names.
    """
    paths = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    wrong = [
        path for path in paths if not _ATTRIBUTE_PATH.fullmatch(path) or len(path) > _LONGEST_ATTRIBUTE_PATH
    ]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no attribute path; write for example python3Packages,images")
    return tuple(tuple(path.split(".")) for path in paths)


def git_url(url: str) -> str:
    """Check the URL of a git repository.

    Raises:
        ValueError: git would need a secret in its arguments, or would run another program for the URL.
    """
    if _REMOTE_HELPER.match(url):
        raise ValueError("git would run a program for this kind of URL; use https, ssh, git or file")
    if url.startswith("-"):
        raise ValueError("git would take it for an option")
    if "://" in url:
        _require_parsable(url)
        if re.search(r"[?#]", url):
            raise ValueError(
                "it has a query, which every user of this machine could read in git's arguments; write a token as user "
                "info (https://user:token@host/…), or give it to a credential helper of git"
            )
    return url


def archive_url(url: str) -> str:
    """Check the URL of the archives of commits. It may hold a secret, since it is never an argument.

    Raises:
        ValueError: the placeholder is missing, or this is not a URL.
    """
    if "{rev}" not in url:
        raise ValueError("it has no {rev}, the placeholder for the commit")
    _require_parsable(url)
    return url


def flake_reference(reference: str) -> str:
    """Check a flake reference.

    Raises:
        ValueError: it may contain a secret, for which Nix has other places.
    """
    if reference.startswith(("/", ".")):
        return reference
    if reference.startswith("-"):
        raise ValueError("Nix would take it for an option")
    if "://" in reference:
        _require_parsable(reference)
    user_info = re.match(r"([^:/?#]+)://([^/?#]*)@", reference)
    if user_info is not None and not (user_info[1].endswith("ssh") and ":" not in user_info[2]):
        raise ValueError(
            f"it has user info, which every user of this machine could read in Nix's arguments; use {_NETRC}"
        )
    parameters = dict(parse_qsl(urlsplit(reference).query, keep_blank_values=True))
    if "submodules" in parameters:
        raise ValueError(
            "submodules may be fetched from any place that the repository names, files of this machine included; "
            "remove the parameter"
        )
    unknown = sorted(name for name in parameters if not _FLAKE_PARAMETER.fullmatch(name))
    if unknown:
        raise ValueError(
            f"it has a parameter that flakes do not have ({', '.join(unknown)}), and every user of this machine could "
            f"read it in Nix's arguments; for a token use {_NETRC}"
        )
    return reference


def _require_parsable(url: str) -> None:
    """Raise a ``ValueError`` for a URL that programs parse differently, or that git cannot accept."""
    location = SourceLocation.parse(url)
    if any(_CONTROL.search(text or "") for text in (url, location.username, location.password)):
        raise ValueError("it has a space or a control character")
    try:
        parts = urlsplit(location.address.replace("{rev}", "0"))
        has_host = bool(parts.hostname) or parts.scheme.endswith("file")
        _ = parts.port  # raises for a port that is none
    except ValueError:
        has_host = False
    if not has_host:
        raise ValueError("it has no valid host; is a character of the password not percent-encoded?")
