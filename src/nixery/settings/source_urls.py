"""Check URLs of package sources, so that no secret in them gets into a program's arguments.

Every user of a machine can read the arguments of all processes. User info is removed from a URL and passed to
git in the environment; this module refuses any secret that cannot be passed in that way, and says what to do
instead.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

from nixery.sources.location import SourceLocation

# Parameters of flake references that Nix knows; none of them is a secret.
_FLAKE_PARAMETERS = frozenset(
    [
        "dir",
        "ref",
        "rev",
        "allRefs",
        "host",
        "shallow",
        "narHash",
        "lastModified",
        "revCount",
        "exportIgnore",
        "lfs",
        "unpack",
        "name",
        "verifyCommit",
        "keytype",
        "publicKey",
        "publicKeys",
    ]
)
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_REMOTE_HELPER = re.compile(r"[a-zA-Z0-9]+::")
_NETRC = "a netrc file (netrc-file in nix.conf) or access-tokens in nix.conf"


def git_url(url: str | None) -> str | None:
    """Check the URL of a git repository.

    Raises:
        ValueError: git would need a secret in its arguments, or would run another program for the URL.
    """
    if url is None:
        return None
    if _REMOTE_HELPER.match(url):
        raise ValueError("git would run a program for this kind of URL; write https, ssh, git or file")
    if url.startswith("-"):
        raise ValueError("git would take it for an option")
    if "://" in url:
        _check(url)
        if re.search(r"[?#]", url):
            raise ValueError(
                "it has a query, which every user of this machine could read in git's arguments; write a token as user info "
                "(https://user:token@host/…), or give it to a credential helper of git's"
            )
    return url


def archive_url(url: str) -> str:
    """Check the URL of commits' archives, with a placeholder; a secret in it is never an argument.

    Raises:
        ValueError: the placeholder is missing, or this is not a URL.
    """
    if "{rev}" not in url:
        raise ValueError("it has no {rev}, in whose place the commit goes")
    _check(url)
    return url


def flake_url(reference: str | None) -> str | None:
    """Check a flake reference.

    Raises:
        ValueError: it may contain a secret, for which Nix has other places.
    """
    if reference is None or reference.startswith(("/", ".")):
        return reference
    if reference.startswith("-"):
        raise ValueError("Nix would take it for an option")
    if "://" in reference:
        _check(reference)
    user_info = re.match(r"([^:/?#]+)://([^/?#]*)@", reference)
    if user_info is not None and not (user_info[1].endswith("ssh") and ":" not in user_info[2]):
        raise ValueError(
            f"it has user info, which every user of this machine could read in Nix's arguments; use {_NETRC}"
        )
    parameters = dict(parse_qsl(urlsplit(reference).query, keep_blank_values=True))
    if "submodules" in parameters:
        raise ValueError(
            "submodules are fetched from wherever the repository says, files of this machine included; leave them out"
        )
    unknown = sorted(parameters.keys() - _FLAKE_PARAMETERS)
    if unknown:
        raise ValueError(
            f"it has a parameter that flakes do not have ({', '.join(unknown)}), and every user of this machine could read it in "
            f"Nix's arguments; for a token use {_NETRC}"
        )
    return reference


def _check(url: str) -> None:
    """Raise a ``ValueError`` for a URL that programs parse differently, or that git cannot accept."""
    location = SourceLocation.parse(url)
    if _CONTROL.search(url) or any(
        _CONTROL.search(text or "") for text in (location.username, location.password)
    ):
        raise ValueError("it has a space or a control character")
    try:
        parts = urlsplit(location.address.replace("{rev}", "0"))
        port = parts.port
    except ValueError:
        port = -1
        parts = urlsplit("")
    if port == -1 or (not parts.hostname and not parts.scheme.endswith("file")):
        raise ValueError("it has no valid host; is a character of the password not percent-encoded?")
