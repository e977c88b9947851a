"""The rules that apply now: made of the access file, and made anew when it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from nixery.access.api_tokens import ApiTokens
from nixery.access.authentication import Authenticator, Verifiers
from nixery.access.certificates import CertificateVerifier
from nixery.access.configuration import AccessFile, read_access_file
from nixery.access.failed_logins import FailedLogins
from nixery.access.oidc import OidcIssuers
from nixery.access.passwords import Htpasswd
from nixery.access.policy import Policy
from nixery.access.quotas import Quotas
from nixery.access.registry_tokens import RegistryTokens, SigningKeys
from nixery.errors import SettingsError
from nixery.storage.records import RecordStore

# Seconds between two looks at the file.
_INTERVAL = 2.0

# A file's state: (modified in nanoseconds, inode, bytes); ``None`` if it is missing or cannot be read.
_Stamp = tuple[int, int, int] | None
_Stamps = Mapping[Path, _Stamp]

_log = structlog.get_logger("nixery.access")


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything that the access file decides; replaced as a whole when the file changes.

    Attributes:
        policy: who may do what.
        authenticator: checks credentials.
        oidc: the issuers, some of which may have a login for pages; there may be none.
    """

    policy: Policy
    authenticator: Authenticator
    oidc: OidcIssuers


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What is read from files, which may be on a slow file system.

    Attributes:
        file: the access file.
        passwords: of its users; ``None`` for none.
        certificates: of clients; ``None`` for none.
        stamps: of the files that change together: when one does, all are read again.
    """

    file: AccessFile
    passwords: Htpasswd | None
    certificates: CertificateVerifier | None
    stamps: _Stamps


class AccessRules:
    """Loads the access file, and loads it again when it changes.

    Args:
        path: of the file.
        records: of the storage, for tokens and keys.
        quotas: get the quotas of the file.

    Attributes:
        current: the rules.
        keys: that sign tokens of the token service.
        tokens: of the token service.

    Raises:
        SettingsError: the file, or one that it names, is wrong; one line for each mistake.
    """

    def __init__(self, path: Path, records: RecordStore, quotas: Quotas) -> None:
        self._path = path
        self._quotas = quotas
        loaded = _load(path)
        file = loaded.file
        self.keys = SigningKeys(records, file.tokens.key_file)
        self.tokens = RegistryTokens(self.keys, file.tokens.lifetime)
        self._api_tokens = ApiTokens(records)
        self._failed_logins = FailedLogins()
        self._passwords: Htpasswd | None = None
        # Of the passwords that were checked last.
        self._version = 0
        self._stamps = loaded.stamps
        # Of the last reading, as logged.
        self._problems: Sequence[str] = ()
        self.current = self._made(loaded)

    async def watch(self) -> None:
        """Load the file again whenever it changes, until cancelled. A file with a mistake changes nothing."""
        seen = self._stamps
        while True:
            await asyncio.sleep(_INTERVAL)
            await self._refresh_passwords()
            stamps = await asyncio.to_thread(_stamps, self._stamps)
            # Two looks have to agree: the last rule of a file that is being written may lack the line that limits it.
            is_stable, seen = stamps == seen, stamps
            # A mistake may be in a file that only the new access file names.
            if is_stable and (stamps != self._stamps or self._problems):
                self._stamps = stamps
                await self._reload()

    async def _refresh_passwords(self) -> None:
        if self._passwords is None:
            return
        await self._passwords.refresh()
        # A login may have read the file again before.
        if self._passwords.version != self._version:
            self._version = self._passwords.version
            self.current.authenticator.forget()

    async def close(self) -> None:
        """Release connections and threads."""
        await self._api_tokens.close()
        await self.current.oidc.close()
        if self._passwords is not None:
            await self._passwords.close()

    async def _reload(self) -> None:
        passwords, before = self._passwords, self.current.policy
        try:
            loaded = await asyncio.to_thread(_load, self._path)
            self.current = self._made(loaded, self.current.oidc)
        except SettingsError as error:
            if error.problems != self._problems:
                _log.error(
                    "the access file has a mistake: the rules of before stay in force",
                    problems=list(error.problems),
                )
            self._problems = error.problems
            return
        file, self._problems = loaded.file, ()
        self._stamps = loaded.stamps
        before.is_in_force = False
        self.tokens.lifetime = file.tokens.lifetime
        if passwords is not None:
            await passwords.close()
        _log.info("loaded the access file", rules=len(file.rule), quotas=len(file.quota))

    def _made(self, loaded: _Loaded, before: OidcIssuers | None = None) -> Rules:
        file, passwords = loaded.file, loaded.passwords
        oidc = OidcIssuers(file.oidc, before=before)
        verifiers = Verifiers(
            self.tokens,
            self._api_tokens,
            self._failed_logins,
            passwords,
            file.groups,
            oidc if file.oidc else None,
            file.proxy,
            loaded.certificates,
        )
        self._passwords = passwords
        self._version = passwords.version if passwords is not None else 0
        self._quotas.replace(file.quota)
        return Rules(file.policy, Authenticator(verifiers), oidc)


def _load(path: Path) -> _Loaded:
    """Read the access file, its password file and its authorities. Blocks.

    Raises:
        SettingsError: one of them cannot be used.
    """
    before = {path: _stamp(path)}
    file = read_access_file(path)
    section = file.client_certificates
    if section is not None:
        before[section.ca_file] = _stamp(section.ca_file)
    passwords = None if file.htpasswd is None else Htpasswd(file.htpasswd)
    certificates = None if section is None else CertificateVerifier(section, file.groups)
    return _Loaded(file, passwords, certificates, before)


def _stamps(files: Iterable[Path]) -> _Stamps:
    return {file: _stamp(file) for file in files}


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
