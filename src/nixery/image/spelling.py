"""The spelling of attribute names in image names: which attribute a component selects, and how to write one.

Image names have lower-case letters and digits, separated by ``.``, ``_``, ``__`` or dashes; attribute names may
have any character. The look-up (``nix/expressions/packages.nix`` has the same rule) takes the first of

1. the attribute with the written name, or with ``_`` before it if it begins with a digit;
2. the attribute that differs from these in case alone, the first in byte order;
3. the attribute that an *escaped* spelling stands for: ``__`` and two hexadecimal digits are one character, so
   ``g__2b__2b`` is ``g++``. Without an escaped capital letter, case does not matter here either.

A component cannot begin with an escape, so an ``x`` precedes one: ``x__40angular`` is ``@angular``, or
``x@angular`` if the set has no ``@angular``. Where all of that leads to another attribute, each character is
escaped after an ``x``: ``x__61__2b`` is ``a+`` in a set that also has an attribute ``a__2b``.

Rule 3 accepts nothing but the spelling that ``spell`` returns. Otherwise a client could write a package in
endless ways (``h__65llo``), and each would be an image of its own, with a digest of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rapidfuzz import process
from rapidfuzz.distance import OSA

from nixery.errors import Reason, UnavailablePackage
from nixery.image.name import COMPONENT, LONGEST_NAME, PREFIXES

# The printable characters of ASCII, 0x20 to 0x7e. nixpkgs has had an attribute with a space.
_ESCAPES = {chr(code): f"__{code:02x}" for code in range(0x20, 0x7F)}
_CHARACTERS = {escape: character for character, escape in _ESCAPES.items()}
_ESCAPE = re.compile(r"__([2-6][0-9a-f]|7[0-9a-e])", re.ASCII)
_ESCAPABLE = re.compile(r"[ -~]+", re.ASCII)
_COMPONENT = re.compile(COMPONENT, re.ASCII)

# Separators may stand for themselves between two characters of which neither is a separator, and the second one
# is no escape; all other characters but lower-case letters and digits are escaped.
_TO_ESCAPE = re.compile(r"[^a-z0-9_-]|(?:^|(?<=[_-]))[_-]|[_-](?![a-z0-9])", re.ASCII)

_MARKER = "x"
# Characters that an escape adds.
_GROWTH = 3
_CAPITALS = {letter: letter + 0x20 for letter in range(0x41, 0x5B)}
_ANY_CAPITAL = re.compile(r"[A-Z]", re.ASCII)

# Near names of one missing package, similar names of which they are the first that have a spelling, and the
# similarity, 0 to 1, below which a name is noise rather than a hint.
_MOST_NEAR_NAMES = 3
_MOST_SPELLED = 10
_LEAST_SIMILARITY = 0.6

# Of a similarity.
_PRECISION = 1e-6

# Characters of a word that is looked for in longer names, and what separates words.
_SHORTEST_WORD = 3
_WORDS = re.compile(r"[-_.+]")

# Names that are compared at once, with the interpreter lock: a package author may write 300,000 of any length.
_COMPARED = 2000


# In paths, the set of meta-packages and of what the package set says of itself; the latter begins with a dot.
RESERVED = ".nixery"


class AttributeNames:
    """The attribute names of a package set and of sets within it: what components select, and how to write paths.

    A component of an image name is the spellings of an attribute path, joined by dots. A component that is the
    name of a top-level attribute, dots included, selects that attribute.

    Args:
        sets: the attribute names of each known set, by the attribute path of the set; ``()`` is the package set
            itself. 100,000 names take some tenths of a second. That of ``RESERVED`` has the meta-packages, which are
            selected by their names unless the package set has an attribute for these.
    """

    def __init__(self, sets: Mapping[tuple[str, ...], Iterable[str]]) -> None:
        self._sets = {path: _SetNames(names, is_top=not path) for path, names in sets.items()}
        reserved = self._sets.get((RESERVED,))
        self._reserved = frozenset() if reserved is None else reserved.names

    def resolve(self, component: str) -> tuple[str, ...] | None:
        """Return the attribute path that a component selects; ``None`` if it leads to no name of a known set."""
        reserved = self._reserved
        if component.startswith("."):
            return (RESERVED, component) if component in reserved else None
        if () in self._sets and component in self._sets[()].names:
            return (component,)
        path: tuple[str, ...] = ()
        for part in component.split("."):
            within = self._sets.get(path)
            attribute = within.select(part) if within is not None else None
            if attribute is None:
                return (RESERVED, component) if not path and component in reserved else None
            path = (*path, attribute)
        return path

    def spell(self, path: Sequence[str]) -> str | None:
        """Return the component that selects an attribute path.

        ``None`` if there is none: the path leaves the known sets, its spelling is too long, a name has characters
        other than printable ASCII, or a top-level attribute with dots in its name hides it.
        """
        path = tuple(path)
        if path[:1] == (RESERVED,):
            is_selected = self.resolve(path[-1]) == path and not path[-1].startswith(".")
            return path[-1] if is_selected else None
        parts = []
        for depth, attribute in enumerate(path):
            within = self._sets.get(path[:depth])
            part = within.spell(attribute) if within is not None else None
            if part is None:
                return None
            parts.append(part)
        component = ".".join(parts)
        is_hidden = len(parts) > 1 and component in self._sets[()].names
        return None if is_hidden or not parts or len(component) > LONGEST_NAME else component


class NearNames:
    """The names of one set, searched for those that a client may have meant.

    Args:
        within: the set, as the client wrote it; empty for the package set itself.
        attributes: of the set.
    """

    def __init__(self, within: str, attributes: Iterable[str]) -> None:
        self._prefix = f"{within}." if within else ""
        self._set = _SetNames(attributes, is_top=not within)
        # Compared by what people read and mistype, `libstdc++6`. Only the names that are found are spelled.
        candidates = sorted(
            (_folded(self._prefix + attribute), attribute)
            for attribute in self._set.names
            # Those with a leading dot are not for people: their spellings cannot be guessed.
            if _ESCAPABLE.fullmatch(attribute) and not attribute.startswith(".")
        )
        self._read = [read for read, _ in candidates]
        self._attributes = [attribute for _, attribute in candidates]

    def of(self, wanted: str) -> tuple[str, ...]:
        """Return the names most similar to a missing one, in the form that clients use, the best first."""
        if not self._prefix and wanted in PREFIXES:
            return ()  # no misspelling: it has its meaning at the beginning of a name
        read = _folded(_decoded(wanted))
        found = most_similar(read, self._read, _LEAST_SIMILARITY, _MOST_SPELLED)
        # A word of a longer name, `python3-numpy` for `numpy`, is more likely meant than other letters.
        # One changed letter is a mistake; more than one is another word.
        slip = 1 - 1 / max(1, len(read)) - _PRECISION
        slips = [(index, score) for index, score in found if score >= slip]
        near = dict([*((index, slip) for index in self._with_word(read)), *slips])
        found = [*near.items(), *((index, score) for index, score in found if index not in near)]
        spelled = ((score, self._set.spell(self._attributes[index])) for index, score in found)
        names = ((-score, self._prefix + part) for score, part in spelled if part is not None)
        letters = sorted(wanted)
        # Of equally similar names, first those with exchanged letters, the most frequent mistake: `git` for `gti`.
        best = sorted(
            (score, sorted(name) != letters, len(name), name)
            for score, name in names
            if len(name) <= LONGEST_NAME
        )
        return tuple(name for _, _, _, name in best[:_MOST_NEAR_NAMES])

    def _with_word(self, wanted: str) -> list[int]:
        """Return the positions of the shortest names that have a text as one of their words."""
        if len(wanted) < _SHORTEST_WORD:
            return []
        holding = (index for index, name in enumerate(self._read) if wanted in name)
        found = [index for index in holding if wanted in _WORDS.split(self._read[index])]
        return sorted(found, key=lambda index: (len(self._read[index]), self._read[index]))[:_MOST_SPELLED]


def missing_package(name: str, near: tuple[str, ...] = ()) -> UnavailablePackage:
    """Describe a package that a set does not have.

    Args:
        name: as the client wrote it.
        near: similar names that the set has.
    """
    explanation = f"{name} is the first part of a name, as in {name}/git" if name in PREFIXES else ""
    return UnavailablePackage(name, Reason.MISSING, explanation, near)


def most_similar(wanted: str, names: Sequence[str], least: float, limit: int) -> list[tuple[int, float]]:
    """Return the positions of the names that are most similar to a text, and their similarity, the best first.

    Several hundred thousand names take tenths of a second; other threads run meanwhile.

    Args:
        wanted: the text.
        names: to compare with it.
        least: similarity, 0 to 1.
        limit: of the result.
    """
    found: list[tuple[int, float]] = []
    for start in range(0, len(names), _COMPARED):
        near = process.extract(
            wanted,
            names[start : start + _COMPARED],
            # Not Damerau-Levenshtein, which takes fifty times as long for long names.
            scorer=OSA.normalized_similarity,
            score_cutoff=least,
            limit=limit,
        )
        found += [(start + index, score) for _, score, index in near]
    return sorted(found, key=lambda one: -one[1])[:limit]


class _SetNames:
    """The attribute names of one set.

    Attributes:
        names: of the attributes.
    """

    def __init__(self, names: Iterable[str], *, is_top: bool) -> None:
        self.names = frozenset(names)
        self._is_top = is_top
        self._by_folded: dict[str, str] = {}
        for name in sorted(self.names):
            self._by_folded.setdefault(_folded(name), name)

    def select(self, part: str) -> str | None:
        """Return the attribute that a part without dots selects."""
        found = self._direct(part)
        if found is not None:
            return found
        found = self._escaped(part)
        return found if found is not None and self.spell(found) == part else None

    def spell(self, attribute: str) -> str | None:
        """Return the part that selects an attribute; ``None`` if there is none."""
        if attribute not in self.names:
            return None
        plain = _folded(attribute)
        if plain[:1] == "_" and "0" <= plain[1:2] <= "9":
            plain = plain[1:]
        if self._can_be_plain(plain, attribute) and self._direct(plain) == attribute:
            return plain
        if _ESCAPABLE.fullmatch(attribute) is None:
            return None
        escaped = (part for part in _escaped_spellings(attribute) if self._chosen(part) == attribute)
        return next(escaped, None)

    def _can_be_plain(self, plain: str, attribute: str) -> bool:
        if len(plain) > LONGEST_NAME or _COMPONENT.fullmatch(plain) is None:
            return False
        # A dot leads into a set, except in a whole name of the package set, in which case matters.
        if "." in plain:
            return self._is_top and plain == attribute
        return not (self._is_top and plain in PREFIXES)

    def _chosen(self, part: str) -> str | None:
        # A plain reading wins.
        plain = self._direct(part)
        return self._escaped(part) if plain is None else plain

    def _direct(self, part: str) -> str | None:
        forms = (part, f"_{part}") if "0" <= part[:1] <= "9" else (part,)
        for form in forms:
            if form in self.names:
                return form
        for form in forms:
            if (found := self._by_folded.get(_folded(form))) is not None:
                return found
        return None

    def _escaped(self, part: str) -> str | None:
        if _ESCAPE.search(part) is None:
            return None
        # First without the marker: a name that begins with it has another spelling, and `+` has none.
        is_marked = part.startswith(_MARKER) and _ESCAPE.match(part, 1)
        unmarked = _decoded(part[1:] if is_marked else part)
        for decoded in (unmarked, _MARKER + unmarked) if is_marked else (unmarked,):
            if _encoded(decoded) == part:
                if decoded in self.names:
                    return decoded
                if not _ANY_CAPITAL.search(decoded) and decoded in self._by_folded:
                    return self._by_folded[decoded]
        return unmarked if unmarked in self.names and _marked(unmarked) == part else None


def _folded(name: str) -> str:
    # As Nix does it: in ASCII alone.
    return name.lower() if name.isascii() else name.translate(_CAPITALS)


def _decoded(part: str) -> str:
    return _ESCAPE.sub(_unescape, part)


def _escaped_spellings(attribute: str) -> Iterator[str]:
    """The escaped spellings that a name may have, the shortest first; none is too long."""
    folded = _folded(attribute)
    for name in (folded,) if folded == attribute else (folded, attribute):
        # Not written first: a set may have tens of thousands of long names with special characters alone.
        escapes = len(_TO_ESCAPE.findall(name))
        if escapes and len(name) + _GROWTH * escapes <= LONGEST_NAME:
            part = _encoded(name)
            if len(part) <= LONGEST_NAME:
                yield part
    if len(_MARKER) + (1 + _GROWTH) * len(attribute) <= LONGEST_NAME:
        yield _marked(attribute)


def _encoded(attribute: str) -> str:
    part = _TO_ESCAPE.sub(_escape, attribute)
    return _MARKER + part if part.startswith("_") else part


def _marked(attribute: str) -> str:
    return _MARKER + "".join(_ESCAPES.get(character, character) for character in attribute)


def _escape(character: re.Match[str]) -> str:
    # A component from elsewhere may have other characters; it selects nothing.
    return _ESCAPES.get(character[0], character[0])


def _unescape(escape: re.Match[str]) -> str:
    return _CHARACTERS[escape[0]]
