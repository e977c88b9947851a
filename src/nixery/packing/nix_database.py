"""The state of Nix in an image that contains Nix: its database of store paths, and the roots of its garbage collector.

Without them, Nix starts with an empty database: it takes the image's own store paths for garbage, which
``nix-collect-garbage`` deletes, and for missing, so that nothing builds. With them, the image is what Nix
itself would have installed: all paths are valid, and the roots keep them.

Nix writes into its state even for a query, so without a daemon it works for those alone who may do that:
root, the user of an image definition, and with group 0 the arbitrary user of a platform like OpenShift. That
user's group may also write into the store, but the sticky bit keeps everyone but root from replacing the
image's own paths.
"""

from __future__ import annotations

from collections.abc import Iterable

from nixery.closure import Closure, StorePath
from nixery.errors import UnsafeContents
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.root_filesystem import Content, Link, Tree
from nixery.packing.sqlite_file import Index, Row, Table, Trigger, database

_STORE, _STATE, _LOGS = b"nix/store", b"nix/var/nix", b"nix/var/log/nix"

# Of the store; and of the directories and files of the state, if their group is 0 and if it is another one.
_STORE_MODE = 0o1775
_MODES_OF_GROUP_0, _MODES = (0o775, 0o664), (0o755, 0o644)

_ROOT = (0, 0)

# Below the state.
_DIRECTORIES = (b"db", b"gcroots", b"profiles", b"temproots")

# Any of them is Nix.
_PROGRAMS = (b"bin/nix-store", b"bin/nix")

# The version of the schema (`nixSchemaVersion` in Nix's local-store.hh), the same since Nix 1.11.
_SCHEMA_VERSION = b"10"

# A container is root alone and has no users for builds. It may not make the namespaces of Nix's sandbox
# either, except with privileges, and Nix falls back to none only in some of the cases.
_CONFIGURATION = (
    b"# Written by nixery: containers have no users for builds, and may not make the namespaces of a sandbox.\n"
    b"build-users-group =\n"
    b"sandbox = false\n"
)

# References of all paths of an image, each of which takes some 40 bytes. A store path of some megabytes can
# refer to all others; the largest images have some ten thousand references.
_MOST_REFERENCES = 1 << 19
_TOO_MANY = f"with it, the store paths of the image have more than {_MOST_REFERENCES:,} references"

# Seconds since the epoch: the mtime of every file in a store.
_REGISTERED = 1

# Nix's own tables (libstore/schema.sql, version 10).
_VALID_PATHS = """CREATE TABLE ValidPaths (
    id               integer primary key autoincrement not null,
    path             text unique not null,
    hash             text not null,
    registrationTime integer not null,
    deriver          text,
    narSize          integer,
    ultimate         integer,
    sigs             text,
    ca               text
)"""

_REFS = """CREATE TABLE Refs (
    referrer  integer not null,
    reference integer not null,
    primary key (referrer, reference),
    foreign key (referrer) references ValidPaths(id) on delete cascade,
    foreign key (reference) references ValidPaths(id) on delete restrict
)"""

_DELETE_SELF_REFS = """CREATE TRIGGER DeleteSelfRefs before delete on ValidPaths
  begin
    delete from Refs where referrer = old.id and reference = old.id;
  end"""

_DERIVATION_OUTPUTS = """CREATE TABLE DerivationOutputs (
    drv  integer not null,
    id   text not null,
    path text not null,
    primary key (drv, id),
    foreign key (drv) references ValidPaths(id) on delete cascade
)"""


def add_nix_database(
    tree: Tree,
    files: ClosureFiles,
    closure: Closure,
    roots: Iterable[StorePath],
    user: tuple[int, int] = _ROOT,
) -> None:
    """Add Nix's state to an image that contains Nix, and a configuration unless a package has one.

    Args:
        tree: the root file system, which no package can have put a ``/nix`` into.
        files: of the image.
        closure: all store paths of the image.
        roots: the paths whose closure that is.
        user: the ids of the image's user and its group.

    Raises:
        StorageError: a package cannot be read.
        UnsafeContents: the paths have more references than the limit.
    """
    if not any(_leads_to_a_file(tree, files, program) for program in _PROGRAMS):
        return
    _, group = user
    tree.add(_STORE, Tree(mode=_STORE_MODE, owner=(0, group)))
    directory_mode, file_mode = _MODES if group else _MODES_OF_GROUP_0
    for directory in (_STATE, *(_STATE + b"/" + name for name in _DIRECTORIES), _LOGS):
        tree.add(directory, Tree(mode=directory_mode, owner=user))
    for name, content in ((b"db.sqlite", nix_database(closure)), (b"schema", _SCHEMA_VERSION)):
        tree.add(_STATE + b"/db/" + name, Content(content, file_mode, user))
    for root in roots:
        tree.add(_STATE + b"/gcroots/image/" + root.base_name.encode(), Link(str(root).encode()))
    # Nix makes this link only together with the directory; without it, the collector deletes profiles.
    tree.add(_STATE + b"/gcroots/profiles", Link(b"/" + _STATE + b"/profiles"))
    tree.add(b"etc/nix/nix.conf", Content(_CONFIGURATION))


def nix_database(closure: Closure) -> bytes:
    """Return Nix's database of a closure.

    The deriver of a path is left out: it depends on the machine that built or fetched the path.

    Raises:
        UnsafeContents: the paths have more references than the limit.
    """
    numbers = {info.path: number for number, info in enumerate(closure, start=1)}
    references: list[Row] = []
    for info in closure:
        if len(references) + len(info.references) + info.refers_to_itself > _MOST_REFERENCES:
            raise UnsafeContents(str(info.path).encode(), _TOO_MANY)
        number = numbers[info.path]
        targets = [*(numbers[path] for path in info.references), *([number] if info.refers_to_itself else [])]
        references += ((number, target) for target in sorted(targets))
    paths: list[Row] = [
        (None, str(info.path), f"sha256:{info.nar_hash}", _REGISTERED, None, info.nar_size, None, None, None)
        for info in closure
    ]
    return database(
        (
            Table("ValidPaths", _VALID_PATHS, paths, [Index("sqlite_autoindex_ValidPaths_1", (1,))]),
            Table("sqlite_sequence", "CREATE TABLE sqlite_sequence(name,seq)", [("ValidPaths", len(paths))]),
            Table(
                "Refs",
                _REFS,
                references,
                [
                    Index("sqlite_autoindex_Refs_1", (0, 1)),
                    Index("IndexReferrer", (0,), "CREATE INDEX IndexReferrer on Refs(referrer)"),
                    Index("IndexReference", (1,), "CREATE INDEX IndexReference on Refs(reference)"),
                ],
            ),
            Trigger("DeleteSelfRefs", "ValidPaths", _DELETE_SELF_REFS),
            Table(
                "DerivationOutputs",
                _DERIVATION_OUTPUTS,
                (),
                [
                    Index("sqlite_autoindex_DerivationOutputs_1", (0, 1)),
                    Index(
                        "IndexDerivationOutputs",
                        (2,),
                        "CREATE INDEX IndexDerivationOutputs on DerivationOutputs(path)",
                    ),
                ],
            ),
        )
    )


def _leads_to_a_file(tree: Tree, files: ClosureFiles, name: bytes) -> bool:
    node = tree.get(name)
    return isinstance(node, Link) and files.exists(node.target)
