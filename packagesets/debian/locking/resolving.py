"""Decide which package meets each dependency: alternatives, Provides and version constraints.

As apt does for a fresh system, the first alternative that can be met wins; a real package beats one that provides the name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from locking.index import Package
from locking.versions import satisfies

# Needed by maintainer scripts, which never run here, and by nothing that they install. Following them would
# tie half of Debian into one cycle.
MAINTAINER_ONLY = frozenset(
    {
        "adduser", "base-files", "cdebconf", "debconf", "debconf-2.0", "dpkg", "init-system-helpers", "install-info", "lsb-base",
        "update-inetd", "ucf", "usrmerge", "usr-is-merged", "init", "systemd-standalone-sysusers",
    }
)  # fmt: skip
# These really use dpkg or debconf, rather than only calling them from a maintainer script.
_USES_DPKG = re.compile(
    r"^(dpkg-.*|apt|libapt-.*|debconf-.*|devscripts|debhelper|libdpkg-.*|libpam-runtime)$"
)

# Their scripts start Java for the programs of other packages, of which some leave the choice of a runtime to the user.
_STARTS_JAVA = frozenset({"java-wrappers", "jarwrapper"})
_JAVA_RUNTIME = re.compile(r"(default|openjdk-\d+)-(jre|jdk)(-headless)?|java\d*-runtime(-headless)?")
_DEFAULT_JAVA = "default-jre-headless"

_TERM = re.compile(r"^([^\s:(\[]+)(?::\S+)?\s*(?:\(\s*([<>=]+)\s*([^\s)]+)\s*\))?")


@dataclass(frozen=True, slots=True)
class Term:
    """One alternative of a dependency clause; `relation` is empty when any version will do."""

    name: str
    relation: str
    version: str


@dataclass(frozen=True, slots=True)
class _Provider:
    package: str
    version: str


@cache
def parse_clause(clause: str) -> tuple[Term, ...]:
    """`a (>= 1) | b:any` as terms, in the order of preference."""
    matches = (_TERM.match(part.strip()) for part in clause.split("|"))
    return tuple(Term(match[1], match[2] or "", match[3] or "") for match in matches if match)


class Resolver:
    """Answers which package meets a clause, among the packages of one architecture."""

    def __init__(self, packages: Mapping[str, Package]) -> None:
        self._packages = packages
        self._providers: dict[str, list[_Provider]] = {}
        for name in sorted(packages):
            for clause in packages[name].provides:
                for term in parse_clause(clause):
                    self._providers.setdefault(term.name, []).append(_Provider(name, term.version))
        self._cache: dict[str, str | None] = {}

    def dependencies(self, package: Package) -> tuple[set[str], list[str]]:
        """The names of the packages that `package` depends on, and the clauses that nothing meets."""
        names: set[str] = set()
        unmet: list[str] = []
        uses_dpkg = _USES_DPKG.match(package.name)
        for clause in package.dependencies:
            if _is_maintainer_only(clause) and not uses_dpkg:
                continue
            name = self.resolve(clause)
            if name is None:
                unmet.append(clause)
            elif name != package.name:
                names.add(name)
        if names & _STARTS_JAVA and not _names_java(package) and (java := self.resolve(_DEFAULT_JAVA)):
            names.add(java)
        return names, unmet

    def resolve(self, clause: str) -> str | None:
        """The package that meets `clause`, or None."""
        if clause not in self._cache:
            answers = (self._resolve_term(term) for term in parse_clause(clause))
            self._cache[clause] = next((name for name in answers if name), None)
        return self._cache[clause]

    def _resolve_term(self, term: Term) -> str | None:
        package = self._packages.get(term.name)
        if package and (not term.relation or satisfies(package.version, term.relation, term.version)):
            return term.name
        for provider in self._providers.get(term.name, ()):
            # An unversioned Provides meets no versioned dependency (Policy 7.5).
            if not term.relation or (
                provider.version and satisfies(provider.version, term.relation, term.version)
            ):
                return provider.package
        return None


def _names_java(package: Package) -> bool:
    return any(
        _JAVA_RUNTIME.fullmatch(term.name) for clause in package.dependencies for term in parse_clause(clause)
    )


@cache
def _is_maintainer_only(clause: str) -> bool:
    return any(term.name in MAINTAINER_ONLY for term in parse_clause(clause))


def by_name(packages: Iterable[Package]) -> dict[str, Package]:
    """The packages by name; should there be several of one name, the highest version is taken."""
    found: dict[str, Package] = {}
    for package in packages:
        other = found.get(package.name)
        if other is None or satisfies(package.version, ">>", other.version):
            found[package.name] = package
    return found
