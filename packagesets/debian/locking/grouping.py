"""Merge packages that must share a store path: dependency cycles and families.

Store paths cannot refer to each other in a circle, so the packages of a cycle (a strongly connected component) become one
derivation. A family is a set of packages whose programs find each other relative to their own place, as Python finds its
standard library: each is declared by the pattern of its names, since the names carry version numbers.
"""

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """Packages whose names match `pattern` are one family for each text that its groups capture."""

    key: str
    pattern: str

    def pattern_for(self, triplet: str) -> str:
        """The pattern, with `{triplet}` standing for the architecture's."""
        return self.pattern.replace("{triplet}", re.escape(triplet))

    def key_of(self, name: str, triplet: str) -> str | None:
        """The key of the family that `name` belongs to, if it does."""
        match = re.fullmatch(self.pattern_for(triplet), name)
        if match is None:
            return None
        return self.key + next((text for text in match.groups() if text), "")


FAMILIES = (
    Family("libc6", r"libc6|libc-bin|libgcc-s1|libcrypt1"),
    Family("python", r"python(3\.\d+)(?:-minimal|-venv)?|libpython(3\.\d+)-(?:minimal|stdlib)"),
    Family("python3", r"python3(?:-minimal|-distutils|-lib2to3)?|libpython3-stdlib"),
    Family("gcc-", r"(?:gcc|cpp|g\+\+)-(\d+)(?:-{triplet})?|(?:libgcc|libstdc\+\+)-(\d+)-dev"),
    Family("cmake", r"cmake(?:-data)?"),
    Family("golang-", r"golang-(1\.\d+)-(?:go|src)"),
    Family("openjdk-", r"openjdk-(\d+)-(?:jre|jdk)-headless"),
    Family("postgresql-", r"postgresql-(?:client-)?(\d+)"),
    Family("rustc", r"rustc|libstd-rust-(?:dev|\d[\d.]*)"),
    Family("vim", r"vim|vim-runtime|vim-common"),
)
# The unversioned member belongs to the family of the dependency whose name matches.
_DEFAULT_VERSIONS = (("python3", r"python3\.\d+"),)


class _Merger:
    """Disjoint sets of names; a set is known by its smallest member."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        root = name
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        self._parent[name] = root
        return root

    def merge(self, one: str, other: str) -> None:
        first, second = sorted((self.find(one), self.find(other)))
        self._parent[second] = first


def group_packages(graph: Mapping[str, AbstractSet[str]], triplet: str) -> dict[str, str]:
    """For every package of the dependency graph the name of its group, which is the name of one of its members."""
    merger = _Merger()
    _merge_families(graph, triplet, merger)
    contracted: dict[str, set[str]] = {}
    for name, dependencies in graph.items():
        targets = contracted.setdefault(merger.find(name), set())
        targets.update(merger.find(dependency) for dependency in dependencies)
    for component in strongly_connected_components(contracted):
        for member in component[1:]:
            merger.merge(component[0], member)
    members: dict[str, list[str]] = {}
    for name in graph:
        members.setdefault(merger.find(name), []).append(name)
    return {name: group for names in members.values() for group in [_group_name(names)] for name in names}


def _merge_families(graph: Mapping[str, AbstractSet[str]], triplet: str, merger: _Merger) -> None:
    first: dict[str, str] = {}
    any_member = re.compile("|".join(family.pattern_for(triplet) for family in FAMILIES))
    for name in sorted(filter(any_member.fullmatch, graph)):
        for family in FAMILIES:
            key = family.key_of(name, triplet)
            if key is not None:
                merger.merge(name, first.setdefault(key, name))
    for name, pattern in _DEFAULT_VERSIONS:
        for dependency in sorted(graph.get(name, ())):
            if re.fullmatch(pattern, dependency):
                merger.merge(name, dependency)


def _group_name(members: list[str]) -> str:
    """The member that the others are parts of: the family's own name if there is one, else the shortest."""
    keys = {family.key for family in FAMILIES}
    return min(members, key=lambda name: (name not in keys, not name.startswith("gcc-"), len(name), name))


def strongly_connected_components(graph: Mapping[str, AbstractSet[str]]) -> list[list[str]]:
    """Tarjan's algorithm without recursion (Debian's chains are deeper than Python's stack); sorted, so deterministic."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    components: list[list[str]] = []
    for start in sorted(graph):
        if start in order:
            continue
        work = [(start, iter(sorted(graph[start])))]
        while work:
            node, successors = work[-1]
            if node not in order:
                order[node] = low[node] = len(order)
                stack.append(node)
                on_stack.add(node)
            for successor in successors:
                if successor not in order:
                    work.append((successor, iter(sorted(graph.get(successor, ())))))
                    break
                if successor in on_stack:
                    low[node] = min(low[node], order[successor])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    components.append(_pop_component(node, stack, on_stack))
    return components


def _pop_component(root: str, stack: list[str], on_stack: set[str]) -> list[str]:
    cut = stack.index(root)
    component = sorted(stack[cut:])
    del stack[cut:]
    on_stack.difference_update(component)
    return component
