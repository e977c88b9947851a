"""A check of the access file, and of everything that it names, before a server uses it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nixery.access.certificates import read_authorities
from nixery.access.configuration import AccessFile, read_access_file
from nixery.access.issuer import Issuer
from nixery.access.passwords import check_htpasswd, count_users
from nixery.access.registry_tokens import read_key
from nixery.errors import SettingsError


@dataclass(frozen=True, slots=True)
class CheckedAccess:
    """The result of a check.

    Attributes:
        summary: numbers of rules, users, issuers and quotas; empty if the file has a mistake.
        problems: mistakes of the file and of those that it names; a server does not start with them.
        unreachable: issuers that cannot be used now, with the reason; a server starts, and refuses their tokens.
    """

    summary: str
    problems: tuple[str, ...] = ()
    unreachable: tuple[str, ...] = ()


async def check_access(path: Path) -> CheckedAccess:
    """Check an access file, the files that it names, and whether its issuers answer."""
    try:
        file = read_access_file(path)
    except SettingsError as error:
        return CheckedAccess("", error.problems)
    problems = tuple(_problems(file))
    unreachable = [
        f"the issuer {url} cannot be used: {reason}"
        for url, ca_file in dict.fromkeys((one.issuer, one.ca_file) for one in file.oidc)
        if (reason := await Issuer(url, ca_file, time.time).check()) is not None
    ]
    return CheckedAccess("" if problems else _summary(file), problems, tuple(unreachable))


def _problems(file: AccessFile) -> Iterator[str]:
    if file.htpasswd is not None:
        yield from check_htpasswd(file.htpasswd)
    if file.tokens.key_file is not None:
        try:
            read_key(file.tokens.key_file)
        except SettingsError as error:
            yield from error.problems
    if file.client_certificates is not None:
        try:
            read_authorities(file.client_certificates.ca_file)
        except SettingsError as error:
            yield from error.problems
    for issuer in file.oidc:
        for named in (issuer.client_secret_file, issuer.ca_file):
            if named is None:
                continue
            try:
                with named.open("rb") as opened:
                    opened.read(1)
            except OSError as error:
                yield f"oidc {issuer.name}: cannot read {named}: {error.strerror}"


def _summary(file: AccessFile) -> str:
    numbers = [
        (len(file.rule), "rule"),
        (0 if file.htpasswd is None else count_users(file.htpasswd), "user"),
        (len({one.issuer for one in file.oidc}), "issuer"),
        (len(file.quota), "quota"),
    ]
    return ", ".join(f"{number} {what}{'' if number == 1 else 's'}" for number, what in numbers)
