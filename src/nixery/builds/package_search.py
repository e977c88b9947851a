"""Search a package set by names, programs, and words of descriptions, while a user types."""

from __future__ import annotations

import heapq
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

# Matches of words that are ranked by their names.
_MOST_RANKED = 2000

# Words of a search, and words that the last one may be the beginning of.
_MOST_WORDS, _MOST_COMPLETED = 8, 256

# Programs that a search knows; each takes some 200 bytes of memory. nixpkgs has 40,000.
_MOST_PROGRAMS = 1_000_000

# Package authors write any number of words. The most distinct words; packages that one word finds, those with the
# shortest names; and packages with completed words that one search looks at, which takes some milliseconds.
_MOST_DISTINCT, _MOST_WITH_WORD, _MOST_LOOKED_AT = 300_000, 50_000, 100_000

_WORD = re.compile(r"[a-z0-9][a-z0-9+#]*", re.ASCII)

# Words that most descriptions have.
_COMMON = frozenset(
    {"a", "an", "and", "by", "for", "from", "in", "is", "it", "of", "on", "or", "that", "the", "to", "with"}
)


class FoundPackage(NamedTuple):
    """What a search shows of a package, a list of packages, or an image definition.

    Attributes:
        name: a component of image names that selects it.
        attribute: its path in the package set, for people.
        version: may be empty.
        description: likewise.
        programs: that it installs, where the package set says so.
        reason: why it is not available; empty if it is, or if that is not known yet.
        alias_of: the name of the package that this is another name of; empty for most.
    """

    name: str
    attribute: str
    version: str = ""
    description: str = ""
    programs: tuple[str, ...] = ()
    reason: str = ""
    alias_of: str = ""


class PackageSearch:
    """An immutable index of packages. Making one of 100,000 packages takes a second or two.

    It consists of strings, numbers and plain tuples of them: Python's garbage collector stops all threads while it
    looks at every other object, for half a second with 60,000 packages.

    Args:
        packages: in any order, with distinct names.
    """

    def __init__(self, packages: Iterable[FoundPackage]) -> None:
        # Shorter names are better answers, so a position in this list is also a rank.
        ranked = sorted(packages, key=lambda package: (len(package.name), package.name))
        self._packages = [tuple(package) for package in ranked]
        self._ranked = [package.name for package in ranked]
        self._position = {name: number for number, name in enumerate(self._ranked)}
        self._names = sorted(self._position)
        # Of the names in that order: a set of nixpkgs has 20,000 names with the same beginning.
        self._positions = array("I", map(self._position.__getitem__, self._names))
        # Searching one text takes a tenth of the time of searching all names.
        self._text = "\n".join(["", *self._position, ""])
        words: dict[str, array[int]] = {}
        programs: dict[str, list[int]] = {}
        for number, package in enumerate(ranked):
            for program in map(str.lower, package.programs):
                if program in programs or len(programs) < _MOST_PROGRAMS:
                    programs.setdefault(program, []).append(number)
            text = " ".join((package.name, package.description, *package.programs)).lower()
            for word in set(_WORD.findall(text)) - _COMMON:
                postings = words.get(word)
                if postings is None:
                    if len(words) == _MOST_DISTINCT:
                        continue
                    postings = words[word] = array("I")
                if len(postings) < _MOST_WITH_WORD:
                    postings.append(number)
        self._programs = {
            program: tuple(sorted(numbers, key=lambda number: bool(ranked[number].alias_of)))
            for program, numbers in programs.items()
        }
        self._words = sorted(words)
        # The packages with the first word, then those with the second, and where each begins.
        self._postings, self._starts = array("I"), array("L", [0])
        for word in self._words:
            self._postings.extend(words[word])
            self._starts.append(len(self._postings))

    def __len__(self) -> int:
        return len(self._packages)

    def __iter__(self) -> Iterator[FoundPackage]:
        return map(FoundPackage._make, self._packages)

    def search(self, text: str, limit: int) -> Sequence[FoundPackage]:
        """Find packages, the best first: names that begin with a text, the program of that name, names that contain it.

        Then packages whose name, programs and description have all its words, the last of which may be
        incomplete.
        """
        text = text.lower().strip()
        if not text.isprintable() or limit <= 0:
            return []
        found = dict.fromkeys(islice(self._candidates(text, limit), limit))
        return [FoundPackage._make(self._packages[number]) for number in found]

    def get(self, name: str) -> FoundPackage | None:
        """Return a package; ``None`` if there is none of that name."""
        number = self._position.get(name)
        return None if number is None else FoundPackage._make(self._packages[number])

    def _candidates(self, text: str, limit: int) -> Iterator[int]:
        """Yield positions, each once, the best first."""
        seen: set[int] = set()
        for numbers in (
            self._exact(text),
            self._beginning(text, limit),
            self._containing(text) if text else (),
            self._with_words(text, limit),
        ):
            for number in numbers:
                if number not in seen:
                    seen.add(number)
                    yield number

    def _exact(self, text: str) -> Iterator[int]:
        if text in self._position:
            yield self._position[text]
        # Packages before their aliases, and short names before others.
        yield from self._programs.get(text, ())

    def _beginning(self, text: str, limit: int) -> Iterable[int]:
        if not text:
            return range(len(self._packages))
        first, last = bisect_left(self._names, text), bisect_left(self._names, text + "\x7f")
        return heapq.nsmallest(limit, self._positions[first:last])

    def _containing(self, text: str) -> Iterator[int]:
        """Names that contain a text, the shortest first."""
        at = self._text.find(text)
        while at >= 0:
            end = self._text.find("\n", at)
            yield self._position[self._text[self._text.rfind("\n", 0, at) + 1 : end]]
            at = self._text.find(text, end)

    def _with_words(self, text: str, limit: int) -> Sequence[int]:
        words = [word for word in dict.fromkeys(_WORD.findall(text)) if word not in _COMMON][:_MOST_WORDS]
        if not words:
            return ()
        first = bisect_left(self._words, words[-1])
        last = bisect_left(self._words, words[-1] + "\x7f", first)
        found: set[int] = set()
        looked_at = 0
        for at in range(first, min(last, first + _MOST_COMPLETED)):
            postings = self._with_word(at)[: _MOST_LOOKED_AT - looked_at]
            found.update(postings)
            looked_at += len(postings)
        for word in words[:-1]:
            at = bisect_left(self._words, word)
            is_known = at < len(self._words) and self._words[at] == word
            found.intersection_update(self._with_word(at) if is_known else ())

        def rank(number: int) -> tuple[int, int]:
            # What is called so comes before what is described so.
            name = self._ranked[number]
            return -sum(word in name for word in words), number

        return heapq.nsmallest(limit, heapq.nsmallest(_MOST_RANKED, found), key=rank)

    def _with_word(self, at: int) -> array[int]:
        return self._postings[self._starts[at] : self._starts[at + 1]]
