"""Read Nix's database without a process of Nix: which store paths are valid, what they need, who built them.

The tables are those of ``schema.sql`` in Nix's sources, the same since Nix 1.0. Nix's programs remain the fallback:
where the database cannot be read (a client of Nix's daemon), or answers in another form, the methods return
``None``.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from nixery.closure import Closure, PathInfo, StorePath
from nixery.errors import AnswerTooLarge

# Seconds to wait for a process of Nix that writes.
_BUSY = 1.0

_NAR_HASH = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)

# The values of ``NIX_REMOTE`` and of the setting ``store`` that mean the store of this machine.
_LOCAL = frozenset({"", "auto", "local", "daemon"})

# ``json_each`` makes one parameter of any number of names.
_OUTPUTS = """
    SELECT drv.path || '!' || output.id, output.path, built.id IS NOT NULL
    FROM json_each(?) AS wanted
    JOIN ValidPaths AS drv ON drv.path = wanted.value
    JOIN DerivationOutputs AS output ON output.drv = drv.id
    LEFT JOIN ValidPaths AS built ON built.path = output.path
"""

_VALID = "SELECT valid.path FROM json_each(?) AS wanted JOIN ValidPaths AS valid ON valid.path = wanted.value"

_CLOSURE = """
    WITH RECURSIVE needed(id) AS (
        SELECT valid.id FROM json_each(?) AS wanted JOIN ValidPaths AS valid ON valid.path = wanted.value
        UNION
        SELECT reference FROM needed JOIN Refs ON referrer = needed.id
    )
    SELECT needed.id, path, hash, narSize, coalesce(deriver, ''), coalesce(group_concat(reference), '')
    FROM needed JOIN ValidPaths USING (id) LEFT JOIN Refs ON referrer = needed.id
    GROUP BY needed.id
"""

Answer = TypeVar("Answer")


def has_local_store(options: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether Nix's commands use the store of this machine, in its usual place.

    Args:
        options: for every command of Nix.
        environment: of the commands.
    """
    words = {word.removeprefix("--") for word in options}
    own = not words & {"store", "read-only", "offline-store"} and "NIX_STORE_DIR" not in environment
    return own and environment.get("NIX_REMOTE", "") in _LOCAL


class StoreDatabase:
    """Nix's database of the store paths of this machine.

    Args:
        state: Nix's state directory.
    """

    def __init__(self, state: Path) -> None:
        self._file = state / "db" / "db.sqlite"

    def provided(self, installables: Sequence[str]) -> frozenset[StorePath] | None:
        """Return the outputs that installables stand for, if all of them are valid; ``None`` otherwise. Blocks.

        Args:
            installables: in Nix's syntax: ``<derivation>!<output>``, or a store path.
        """

        def ask(database: sqlite3.Connection) -> frozenset[StorePath] | None:
            outputs = {
                name: path for name, path, is_valid in _query_outputs(database, installables) if is_valid
            }
            paths = json.dumps([text for text in installables if "!" not in text])
            outputs.update((path, path) for (path,) in database.execute(_VALID, (paths,)))
            found = [outputs.get(text) for text in installables]
            known = [path for path in found if path is not None]
            # The database may name paths that somebody deleted by hand, which Nix would fetch again.
            if len(known) < len(found) or not all(map(os.path.lexists, known)):
                return None
            return frozenset(map(StorePath.parse, known))

        return self._asked(ask)

    def outputs(self, installables: Sequence[str]) -> Mapping[str, StorePath]:
        """Return the paths of outputs by installable, built or not; leaves out unknown derivations. Blocks.

        Nix has checked that the derivation of a path really builds it (``checkInvariants`` in ``derivations.cc``).

        Args:
            installables: as for ``provided``.
        """

        def ask(database: sqlite3.Connection) -> Mapping[str, StorePath]:
            return {
                name: StorePath.parse(path)
                for name, path, _ in _query_outputs(database, installables)
                if path
            }

        return self._asked(ask) or {}

    def closure(self, paths: Sequence[StorePath], limit: int) -> Closure | None:
        """Return the runtime closure of store paths; ``None`` if one of them is not valid. Blocks.

        Args:
            paths: whose closure it is.
            limit: of the closure's description, in bytes.

        Raises:
            AnswerTooLarge: the closure exceeds it.
        """

        def ask(database: sqlite3.Connection) -> Closure | None:
            wanted = json.dumps([str(path) for path in paths])
            return _read_closure(database.execute(_CLOSURE, (wanted,)), limit)

        found = self._asked(ask)
        return found if found is not None and all(path in found for path in paths) else None

    def _asked(self, ask: Callable[[sqlite3.Connection], Answer | None]) -> Answer | None:
        try:
            database = sqlite3.connect(f"file:{quote(str(self._file))}?mode=ro", timeout=_BUSY, uri=True)
        except sqlite3.Error:
            return None
        try:
            return ask(database)
        except (sqlite3.Error, ValueError):
            return None
        finally:
            database.close()


def _query_outputs(database: sqlite3.Connection, installables: Sequence[str]) -> sqlite3.Cursor:
    derivations = {text.partition("!")[0] for text in installables if "!" in text}
    return database.execute(_OUTPUTS, (json.dumps(sorted(derivations)),))


def _read_closure(rows: Iterable[tuple[int, str, str, int | None, str, str]], limit: int) -> Closure | None:
    left = limit
    paths: dict[int, StorePath] = {}
    registrations = []
    for number, text, nar_hash, nar_size, deriver, references in rows:
        digest = _NAR_HASH.fullmatch(nar_hash)
        if digest is None or nar_size is None:
            return None  # of Nix 1
        # As many bytes as Nix's own description has, at most.
        left -= (len(text) + 1) * (references.count(",") + 2) + len(nar_hash) + len(deriver)
        if left < 0:
            raise AnswerTooLarge("the list of all store paths that the image needs", limit)
        paths[number] = StorePath.parse(text)
        registrations.append((paths[number], digest[1], nar_size, deriver, references))
    infos = []
    for path, nar_hash, nar_size, deriver, references in registrations:
        referred = {paths[int(number)] for number in references.split(",") if number}
        others = tuple(sorted(referred - {path}))
        infos.append(PathInfo(path, nar_hash, nar_size, others, deriver, path in referred))
    return Closure(infos)
