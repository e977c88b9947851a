"""Names somebody may have meant."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz import process
from rapidfuzz.distance import OSA

from nixery.errors import InvalidName
from nixery.image.request import validate_name

_MOST = 3

# Similarity, 0 to 1, under which a name is noise rather than a hint.
_LEAST_SIMILARITY = 0.6


class NearNames:
    """The names of one set, for finding those that somebody may have meant.

    Args:
        within: path of the set; empty for the package set itself.
        attributes: what it has.
    """

    def __init__(self, within: str, attributes: Sequence[str]) -> None:
        prefix = f"{within}.".lower() if within else ""
        self._names = sorted({name for attribute in attributes if (name := _as_component(prefix, attribute))})

    def of(self, wanted: str) -> tuple[str, ...]:
        """Return the names most similar to one that is missing, as a client can ask for them, the best first."""
        found = process.extract(
            wanted,
            self._names,
            # Not Damerau-Levenshtein, which takes fifty times as long for long names, and holds the
            # interpreter's lock: with a package set of 30,000 names of 250 letters, each missing name stopped
            # the server for up to nine seconds.
            scorer=OSA.normalized_similarity,
            score_cutoff=_LEAST_SIMILARITY,
            limit=_MOST,
        )
        return tuple(name for name, _, _ in found)


def _as_component(prefix: str, attribute: str) -> str | None:
    # The top level is found whatever the case; inside nested sets only lower case can be asked for.
    name = prefix + (attribute if prefix else attribute.lower().removeprefix("_"))
    try:
        validate_name(name)
    except InvalidName:
        return None
    return name
