"""Names somebody may have meant."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz import process
from rapidfuzz.distance import DamerauLevenshtein

from nixery.errors import InvalidName
from nixery.image.request import validate_name

_MOST = 3

# Similarity, 0 to 1, under which a name is noise rather than a hint.
_LEAST_SIMILARITY = 0.6


def near_names(wanted: str, within: str, attributes: Sequence[str]) -> tuple[str, ...]:
    """Return the names most similar to ``wanted`` that a client can ask for, the best first.

    Args:
        wanted: the name that is missing, as the client wrote it.
        within: path of the set it was looked for in; empty for the package set itself.
        attributes: what that set has.
    """
    prefix = f"{within}.".lower() if within else ""
    candidates = sorted({name for attribute in attributes if (name := _as_component(prefix, attribute))})
    found = process.extract(
        wanted,
        candidates,
        scorer=DamerauLevenshtein.normalized_similarity,
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
