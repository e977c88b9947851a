"""What an image says of itself in ``/etc/os-release``: facts of its package set, in the format of os-release(5).

Scripts read the file with a shell (``. /etc/os-release``), so its names come from a list and its values are
quoted. Nothing in it depends on nixery's version or on the time: the file is in the last layer of each image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# A package set that says nothing. It has no releases that could be a version.
DEFAULT_FACTS: Mapping[str, str] = {
    "PRETTY_NAME": "Nixery image",
    "NAME": "Nixery",
    "VERSION_ID": "rolling",
    "VERSION": "rolling",
    "ID": "nixery",
}

# In the order of the file: readers take the first lines for the most important ones.
_KEYS = (
    *("PRETTY_NAME", "NAME", "VERSION_ID", "VERSION", "VERSION_CODENAME", "ID", "ID_LIKE"),
    *("VARIANT", "VARIANT_ID", "BUILD_ID", "CPE_NAME", "VENDOR_NAME", "VENDOR_URL"),
    *("HOME_URL", "DOCUMENTATION_URL", "SUPPORT_URL", "BUG_REPORT_URL", "PRIVACY_POLICY_URL", "SUPPORT_END"),
    *("ANSI_COLOR", "LOGO"),
)

# Identifiers are for programs; ID_LIKE is a list of them.
_IDENTIFIERS = {
    "ID": re.compile(r"[a-z0-9._-]+"),
    "ID_LIKE": re.compile(r"[a-z0-9._-]+( [a-z0-9._-]+)*"),
    "VARIANT_ID": re.compile(r"[a-z0-9._-]+"),
    "VERSION_CODENAME": re.compile(r"[a-z0-9._-]+"),
    "VERSION_ID": re.compile(r"[a-z0-9._+~-]+"),
}

# Characters of a value; a URL is the longest.
_LONGEST = 1000

_PLAIN = re.compile(r"[a-zA-Z0-9._-]+")
_SPECIAL = re.compile(r'(["$`\\])')


class InvalidFacts(ValueError):
    """A package set's facts cannot be written to os-release; the message names the key."""


def os_release_file(facts: Mapping[str, str]) -> bytes:
    """Write the facts of a package set as a file; those of ``DEFAULT_FACTS`` if there are none.

    ``ID`` and ``NAME`` are required. ``PRETTY_NAME`` is the name and the version unless the facts say
    otherwise.

    Raises:
        InvalidFacts: a key that os-release(5) does not have, or a value that is too long or of other
            characters than its key takes.
    """
    facts = dict(facts or DEFAULT_FACTS)
    for key, value in facts.items():
        _check(key, value)
    for key in ("ID", "NAME"):
        if key not in facts:
            raise InvalidFacts(f"{key} is required")
    facts.setdefault("PRETTY_NAME", " ".join(filter(None, (facts["NAME"], facts.get("VERSION")))))
    return "".join(f"{key}={_quoted(facts[key])}\n" for key in _KEYS if key in facts).encode()


def _check(key: str, value: str) -> None:
    if key not in _KEYS:
        raise InvalidFacts(f"{key[:100]!a} is not a field of os-release; they are {', '.join(_KEYS)}")
    if not 0 < len(value) <= _LONGEST:
        raise InvalidFacts(f"{key} should have 1 to {_LONGEST} characters, not {len(value)}")
    pattern = _IDENTIFIERS.get(key)
    if pattern is not None and pattern.fullmatch(value) is None:
        raise InvalidFacts(
            f"{key} should have lower-case letters, digits and ._- only, unlike {value[:100]!a}"
        )
    if not value.isprintable():
        raise InvalidFacts(f"{key} should be printable, unlike {value[:100]!a}")


def _quoted(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    escaped = _SPECIAL.sub(r"\\\1", value)
    return f'"{escaped}"'
