"""The access file: who identifies whom, what they may do, and how much. One TOML document, checked as a whole."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from nixery.access.identity import Right
from nixery.access.policy import Policy, Rule, check_term
from nixery.errors import SettingsError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# Bytes of the file.
_LARGEST = 1024 * 1024

# Seconds for which a token of the token service is valid: the distribution specification has 60 at least.
_LEAST_LIFETIME, _LIFETIME, _MOST_LIFETIME = 60, 300, 3600

# Issuers with tokens for every account of a public service, also with any audience that a job asks for.
_PUBLIC_ISSUERS = frozenset(
    {
        "https://token.actions.githubusercontent.com",
        "https://gitlab.com",
        "https://accounts.google.com",
        "https://agent.buildkite.com",
        "https://app.terraform.io",
    }
)

Term = Annotated[str, AfterValidator(check_term)]
Terms = Annotated[tuple[Term, ...], Field(min_length=1)]
# The name of a header field.
_HEADER = r"^[A-Za-z0-9-]{1,64}$"

Patterns = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
    )


class _RuleSection(_Section):
    who: Terms
    may: frozenset[Right]
    packages: Patterns = ("*",)
    tags: Patterns = ("*",)
    platforms: Patterns = ("*",)


class Quota(_Section):
    """Limits for each identity of ``who``, and for each address of anonymous ones; the first quota that matches counts.

    Attributes:
        who: as in a rule.
        requests_per_minute: of any kind.
        builds_per_hour: builds that this identity starts, of images that are not stored.
        builds_at_once: of them, those that run or wait at the same time.
        bytes_per_day: of images that this identity had built, compressed.
    """

    who: Terms
    requests_per_minute: int | None = Field(None, ge=1)
    builds_per_hour: int | None = Field(None, ge=0)
    builds_at_once: int | None = Field(None, ge=0)
    bytes_per_day: int | None = Field(None, ge=0)


class OidcIssuer(_Section):
    """An issuer of OpenID Connect tokens.

    Attributes:
        name: short; the prefix of names and groups, unless ``prefix`` is set.
        issuer: its URL, exactly as in the claim ``iss``.
        audience: that tokens have to be for.
        user_claim: whose value, after the prefix, is the name.
        groups_claim: whose values, after the prefix, are the groups.
        prefix: of names and groups; ``NAME:`` if unset.
        claims: that rules can name.
        required_claims: patterns that claims have to match.
        client_id: of the login for pages; without it, this issuer has none.
        client_secret_file: with the secret of that client; without it, the client is a public one.
        scopes: that the login asks for.
        ca_file: PEM of the authorities that the issuer's certificate is from, instead of the machine's.
    """

    name: str = Field(pattern=r"^[a-z0-9-]{1,40}$")
    issuer: str = Field(pattern=r"^https?://[^\s?#]+$", max_length=512)
    audience: str = Field(min_length=1, max_length=512)
    user_claim: str = "sub"
    groups_claim: str | None = None
    prefix: str | None = Field(None, max_length=64)
    claims: tuple[str, ...] = Field((), max_length=50)
    required_claims: dict[str, str] = Field(default_factory=dict)
    client_id: str | None = Field(None, min_length=1, max_length=512)
    client_secret_file: Path | None = None
    scopes: tuple[Annotated[str, Field(pattern=r"^[!#-\[\]-~]{1,128}$")], ...] = Field(
        ("openid", "profile", "email"), max_length=20
    )
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _has_required_claims(self) -> OidcIssuer:
        # Rules for `authenticated` would be for everybody with an account there.
        if self.issuer.rstrip("/") in _PUBLIC_ISSUERS and not self.required_claims:
            raise ValueError(
                f"every account of {self.issuer} gets tokens; set required-claims to those of your organization, "
                'or { sub = "*" } to accept all'
            )
        return self


class _Proxies(_Section):
    """Proxies whose header fields are believed.

    Attributes:
        addresses: of the proxies; others' header fields are ignored.
    """

    addresses: tuple[IPv4Network | IPv6Network, ...] = Field(min_length=1)

    def has_address(self, text: str) -> bool:
        """Whether an address is one of the proxies'."""
        try:
            address = ip_address(text)
        except ValueError:
            return False
        plain = (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
        return any(plain in network for network in self.addresses)


class Proxy(_Proxies):
    """Proxies that identify users, and say whom in header fields.

    Attributes:
        user_header: with the name.
        groups_header: with groups that commas separate.
    """

    user_header: str = Field(pattern=_HEADER)
    groups_header: str | None = Field(None, pattern=_HEADER)


class CertificateName(StrEnum):
    """Names in a certificate: the first three are parts of its subject, the others are alternative names of it."""

    COMMON_NAME = "common-name"
    ORGANIZATION = "organization"
    ORGANIZATIONAL_UNIT = "organizational-unit"
    EMAIL = "email"
    DNS = "dns"
    URI = "uri"


class ClientCertificates(_Proxies):
    """Proxies that verify certificates of clients, and hand them on in a header field.

    Attributes:
        header: with the certificate.
        ca_file: PEM of the authorities that certificates have to be from.
        user: which name of a certificate is the user's.
        groups: which names of a certificate are groups; ``None`` for none.
        prefix: of names and groups from certificates.
    """

    header: str = Field("Client-Cert", pattern=_HEADER)
    ca_file: Path
    user: CertificateName = CertificateName.COMMON_NAME
    groups: CertificateName | None = None
    prefix: str = Field("", max_length=64)


class Tokens(_Section):
    """The token service of the registry.

    Attributes:
        key_file: PEM of the private P-256 key that signs tokens; without it, a key is made and kept in the storage.
        lifetime: seconds for which a token is valid.
    """

    key_file: Path | None = None
    lifetime: Annotated[int, Field(ge=_LEAST_LIFETIME, le=_MOST_LIFETIME)] = _LIFETIME


class AccessFile(_Section):
    """The whole file.

    Attributes:
        rule: in their order.
        show_denials: whether those who identified themselves learn that something is not allowed; it looks missing
            otherwise.
        htpasswd: file of users and their password hashes, as Apache's ``htpasswd`` writes it.
        groups: users by group, for users of the htpasswd file and of client certificates.
        oidc: issuers whose tokens are accepted.
        proxy: that identifies users.
        client_certificates: that proxies hand on.
        tokens: of the token service.
        quota: in their order.
    """

    rule: tuple[_RuleSection, ...]
    show_denials: bool = False
    htpasswd: Path | None = None
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    oidc: tuple[OidcIssuer, ...] = ()
    proxy: Proxy | None = None
    client_certificates: ClientCertificates | None = None
    tokens: Tokens = Tokens()
    quota: tuple[Quota, ...] = ()

    @property
    def policy(self) -> Policy:
        """Return the rules."""
        rules = [Rule(rule.who, rule.may, rule.packages, rule.tags, rule.platforms) for rule in self.rule]
        return Policy(rules, shows_denials=self.show_denials)


# Sections of the file with keys of their own.
_SECTIONS: Mapping[str, type[_Section]] = {
    "rule": _RuleSection,
    "quota": Quota,
    "oidc": OidcIssuer,
    "proxy": Proxy,
    "client-certificates": ClientCertificates,
    "tokens": Tokens,
}

_NETWORK = "an address or a network, such as 10.0.0.0/8"

# What values should be, by pydantic's type of mistake.
_TYPES = {
    "tuple_type": 'a list, such as ["..."]',
    "frozen_set_type": 'a list, such as ["..."]',
    "string_type": "a text in quotes",
    "path_type": "a path in quotes",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a table",
    "model_type": "a table",
    "ip_v4_network": _NETWORK,
    "ip_v6_network": _NETWORK,
}


def read_access_file(path: Path) -> AccessFile:
    """Read and check the file. Paths in it are relative to its directory.

    Raises:
        SettingsError: it cannot be read, or is wrong: one line for each mistake.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise SettingsError((f"NIXERY_ACCESS: cannot read {path}: {error.strerror}",)) from None
    if len(content) > _LARGEST:
        raise SettingsError((f"NIXERY_ACCESS: {path} has more than {_LARGEST} bytes",))
    try:
        found = AccessFile.model_validate(tomllib.loads(content.decode()))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError((f"{path}: {error}",)) from None
    except ValidationError as error:
        raise SettingsError(tuple(f"{path}: {line}" for line in dict.fromkeys(_mistakes(error)))) from None
    return _with_places(found, path.parent)


def _mistakes(error: ValidationError) -> Iterator[str]:
    """Describe each mistake in a line."""
    problems = error.errors()
    places = [problem["loc"] for problem in problems]
    for problem in problems:
        place = problem["loc"]
        # A list without its wrong elements may be too short; the elements have lines of their own.
        if problem["type"] == "too_short" and any(
            other[: len(place)] == place and len(other) > len(place) for other in places
        ):
            continue
        yield f"{_place(place)}: {_sentence(problem)}"


def _sentence(problem: ErrorDetails) -> str:
    """Say what is wrong, in words of TOML rather than in those of Python's types."""
    kind, place = problem["type"], problem["loc"]
    if kind == "extra_forbidden":
        sections = [part for part in place[:-1] if isinstance(part, str)]
        known = _keys(sections)
        near = get_close_matches(str(place[-1]), known, 1)
        return "there is no such key" + (
            f"; did you mean {near[0]}?" if near else f" among {', '.join(known)}"
        )
    if kind == "missing":
        return "this key is missing"
    if kind == "too_short":
        return "the list is empty"
    if kind in _TYPES:
        return f"should be {_TYPES[kind]}"
    return problem["msg"].removeprefix("Value error, ").removeprefix("Input ")


def _keys(sections: Sequence[str]) -> list[str]:
    """Return the keys of a section, ``[]`` for the whole file."""
    model = _SECTIONS.get(sections[0], AccessFile) if sections else AccessFile
    return [name.replace("_", "-") for name in model.model_fields]


def _place(location: Sequence[str | int]) -> str:
    """Write where a mistake is, for example ``rule 2, may``."""
    words: list[str] = []
    for part in location:
        if isinstance(part, int) and words:
            words[-1] += f" {part + 1}"
        elif isinstance(part, str) and "[" in part:
            # Where a value may be of several types, pydantic adds the type.
            continue
        else:
            words.append(str(part))
    return ", ".join(words) or "the file"


def _with_places(file: AccessFile, directory: Path) -> AccessFile:
    def place(path: Path | None) -> Path | None:
        return None if path is None else directory / path

    changes: dict[str, Any] = {
        "htpasswd": place(file.htpasswd),
        "oidc": tuple(
            one.model_copy(
                update={
                    "client_secret_file": place(one.client_secret_file),
                    "ca_file": place(one.ca_file),
                }
            )
            for one in file.oidc
        ),
        "client_certificates": file.client_certificates
        and file.client_certificates.model_copy(
            update={"ca_file": directory / file.client_certificates.ca_file}
        ),
        "tokens": file.tokens.model_copy(update={"key_file": place(file.tokens.key_file)}),
    }
    return file.model_copy(update=changes)
