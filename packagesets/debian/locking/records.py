"""From packages to the records of the lock: one for each package and one for each group that is built as one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from locking.aliases import ESSENTIAL, NEEDLESS, PRIORITIES, extra_dependencies, main_program
from locking.grouping import group_packages
from locking.index import Package
from locking.names import store_name, store_version
from locking.resolving import Resolver

Record: TypeAlias = dict[str, Any]

# The lock names no package registry, not even as a home page.
_REGISTRY = re.compile(
    r"//[^/]*\b(bioconductor|cpan|cran|crates|ctan|debian|docker|hackage|maven|npm|npmjs|packagist|pecl|pkg|pypi|rubygems)\b"
)


@dataclass(frozen=True, slots=True)
class Records:
    """What the lock says, by name.

    `essential` are the groups that the builder of a group may use if its record does not say otherwise; `unmet` counts the
    dependencies that no package of the index meets.
    """

    packages: dict[str, Record]
    groups: dict[str, Record]
    essential: list[str]
    unmet: int


def make_records(packages: Mapping[str, Package], triplet: str) -> Records:
    """Resolve and group all of `packages`."""
    graph, unmet = _dependency_graph(packages)
    group_of = group_packages(graph, triplet)
    groups = _groups(packages, graph, group_of)
    essential = _add_essential(groups, group_of)
    records = {name: _package_record(package, group_of[name]) for name, package in packages.items()}
    _split_certificates(records, groups)
    return Records(records, groups, essential, unmet)


def add_programs(records: Records, programs: Mapping[str, list[str]]) -> None:
    """Add to each package's record the names of its programs, as far as they are known."""
    for name, record in records.packages.items():
        if programs.get(name):
            record["programs"] = programs[name]


def _dependency_graph(packages: Mapping[str, Package]) -> tuple[dict[str, set[str]], int]:
    resolver = Resolver(packages)
    graph: dict[str, set[str]] = {}
    unmet = 0
    for name, package in packages.items():
        names, missing = resolver.dependencies(package)
        needed = {other for other in names if (name, other) not in NEEDLESS}
        graph[name] = needed | {extra for extra in extra_dependencies(name) if extra in packages}
        unmet += len(missing)
    return graph, unmet


def _groups(
    packages: Mapping[str, Package], graph: Mapping[str, set[str]], group_of: Mapping[str, str]
) -> dict[str, Record]:
    groups: dict[str, Record] = {}
    dependencies: dict[str, set[str]] = {}
    for name in sorted(packages):
        group = group_of[name]
        record = groups.setdefault(group, {"members": []})
        package = packages[name]
        record["members"].append(
            {
                "name": store_name(name, package.version) + ".deb",
                "sha256": package.sha256,
                "file": package.filename,
            }
        )
        dependencies.setdefault(group, set()).update(group_of[dependency] for dependency in graph[name])
    for group, record in groups.items():
        record["name"] = store_name(group, packages[group].version)
        record["dependencies"] = sorted(dependencies[group] - {group})
        record["essential"] = []
    return groups


# nixery adds it to each image for its data. Its script, which few images need, would bring the basic commands into all of
# them; it runs where an image has those anyway.
_DATA_ALONE = "netbase"
# The certificates of a package whose scripts need OpenSSL and the basic commands; nixery adds them to each image by this name.
_CERTIFICATES = "cacert"
_CERTIFICATES_PACKAGE = "ca-certificates"


def _split_certificates(records: dict[str, Record], groups: dict[str, Record]) -> None:
    """Add the group of the certificates alone, on which their package then depends for them."""
    package = groups.get(_CERTIFICATES_PACKAGE)
    if package is None:
        return
    record = records[_CERTIFICATES_PACKAGE]
    name = store_name(_CERTIFICATES, record["version"])
    groups[_CERTIFICATES] = {**package, "name": name, "dependencies": [], "essential": []}
    records[_CERTIFICATES] = {key: value for key, value in record.items() if key != "mainProgram"} | {
        "group": _CERTIFICATES,
        "name": name,
    }
    package["dependencies"] = sorted([*package["dependencies"], _CERTIFICATES])


def _add_essential(groups: dict[str, Record], group_of: Mapping[str, str]) -> list[str]:
    """Give each group the Essential packages that do not depend on it themselves; returns all of them."""
    essential = list(dict.fromkeys(group_of[name] for name in ESSENTIAL if name in group_of))
    for group in essential:
        closure = _closure(groups, group)
        for name, record in groups.items():
            if name not in closure:
                record["essential"].append(group)
    for record in groups.values():
        # Nearly all groups have all of them.
        if record["essential"] == essential:
            del record["essential"]
    if _DATA_ALONE in groups:
        groups[_DATA_ALONE] |= {"dependencies": [], "essential": []}
    return essential


def _closure(groups: Mapping[str, Record], group: str) -> set[str]:
    closure: set[str] = set()
    waiting = [group]
    while waiting:
        name = waiting.pop()
        if name not in closure:
            closure.add(name)
            waiting += [*groups[name]["dependencies"], *groups[name]["essential"]]
    return closure


def _package_record(package: Package, group: str) -> Record:
    optional = {
        "homepage": None if _REGISTRY.search(package.homepage) else package.homepage,
        "mainProgram": main_program(package),
        "priority": PRIORITIES.get(package.name),
        "unfree": package.section.startswith("non-free/") or None,
    }
    return {
        "group": group,
        "version": store_version(package.version),
        "name": store_name(package.name, package.version),
        "description": package.description,
        **{key: value for key, value in optional.items() if value},
    }
