"""Nix's registration format: the one way to ask for path infos that every version from 2.0 on answers alike.

``nix path-info --json`` is marked experimental and has changed its shape three times. ``nix-store --dump-db`` prints,
for each path, lines with the path, its NAR hash, NAR size, deriver, the number of references, and each reference
(``makeValidityRegistration`` in Nix's ``store-api.cc``).
"""

from __future__ import annotations

from collections.abc import Iterator

from nixery.closure.graph import PathInfo
from nixery.closure.store_path import StorePath


def parse_registrations(text: str) -> Iterator[PathInfo]:
    """Read the output of ``nix-store --dump-db``.

    Raises:
        ValueError: it is not in that format.
    """
    lines = iter(text.splitlines())
    for line in lines:
        path = StorePath.parse(line)
        try:
            nar_hash, nar_size, _deriver, count = next(lines), int(next(lines)), next(lines), int(next(lines))
            references = {StorePath.parse(next(lines)) for _ in range(count)}
        except StopIteration:
            raise ValueError(f"the registration of {path} is cut off") from None
        yield PathInfo(path, nar_hash, nar_size, tuple(sorted(references - {path})))
