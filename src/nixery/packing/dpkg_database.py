"""dpkg's database of an image whose store paths were made of Debian's packages.

A store path says in ``nix-support/dpkg-status`` of which packages it was made, in the format of dpkg's own
file. Scanners find the packages of an image in the database, and programs that ask dpkg get an answer.
"""

from __future__ import annotations

import re

from nixery.errors import UnsafeContents
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.root_filesystem import Content, Tree

_STATUS = b"var/lib/dpkg/status"
_RECORD = b"nix-support/dpkg-status"

# Bytes. A package has about 500; Debian's largest store path was made of 38 packages, and all of Debian has 63,000.
_LONGEST_RECORD = 1 << 20
_LONGEST_STATUS = 1 << 25

_STANZA_BEGIN = re.compile(rb"Package: ([a-z0-9][a-z0-9.+-]*)\n")


def add_dpkg_database(tree: Tree, files: ClosureFiles) -> None:
    """Add the database to a tree of packages if a store path of the image names packages of Debian.

    It replaces that of the package dpkg, which has no packages.

    Raises:
        StorageError: a store path cannot be read.
        UnsafeContents: what the store paths say is longer than the limits, or no regular file.
    """
    stanzas: dict[bytes, bytes] = {}
    size = 0
    for path in sorted(files.closure):
        record = str(path).encode() + b"/" + _RECORD
        for stanza in (files.read(record, _LONGEST_RECORD) or b"").split(b"\n\n"):
            begin = _STANZA_BEGIN.match(stanza)
            if begin is None:
                continue
            size += len(stanza)
            if size > _LONGEST_STATUS:
                raise UnsafeContents(
                    record, f"dpkg's database would have more than {_LONGEST_STATUS:,} bytes"
                )
            stanzas.setdefault(begin[1], stanza.rstrip(b"\n") + b"\n")
    if stanzas:
        tree.remove(_STATUS)
        tree.add(_STATUS, Content(b"\n".join(stanzas[name] for name in sorted(stanzas))))
