"""What the package set says of itself for os-release(5): the release of Debian that it was locked from."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

# os-release(5): an identifier.
_NO_IDENTIFIER = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Release:
    """The fields of a Release file that say which release it is of; empty if it does not have them."""

    origin: str = ""
    codename: str = ""
    version: str = ""


def parse_targets(answer: str) -> Release:
    """Return the release of the largest package index; `answer` has lines of a size and tab-separated fields."""
    best, found = -1, Release()
    for line in answer.splitlines():
        size, origin, codename, version = [*line.split("\t"), "", "", "", ""][:4]
        if size.isdecimal() and int(size) > best:
            best, found = int(size), Release(origin, codename, version)
    return found


def os_release(release: Release) -> Mapping[str, str]:
    """Return the facts. The distribution itself is not in an image, so its name is in `ID_LIKE`.

    The file is in the last layer of each image. So it does not have Debian's point releases, as the file of Debian's own
    base-files, and an update of the lock changes no image because of it.
    """
    origin = release.origin or "Debian"
    like = _NO_IDENTIFIER.sub("-", origin.lower()).strip("-") or "debian"
    codename = _NO_IDENTIFIER.sub("-", release.codename.lower()).strip("-")
    number = _NO_IDENTIFIER.sub("-", release.version.lower()).strip("-")
    if like == "debian":
        number = number.partition(".")[0]
    in_words = " ".join(filter(None, (number, f"({codename})" if codename else "")))
    facts = {
        "PRETTY_NAME": f"Nixery image of packages of {origin} {in_words}".strip(),
        "NAME": "Nixery",
        "VERSION_ID": number,
        "VERSION": in_words,
        "VERSION_CODENAME": codename,
        "ID": "nixery",
        "ID_LIKE": like if like == "debian" else f"{like} debian",
    }
    return {key: value for key, value in facts.items() if value}
