"""The files that every system has: accounts, name look-ups, certificates, time zones, locales, a shell.

They are added to the packages' own files; a package that brings one of them keeps its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from nixery.packing.closure_files import ClosureFiles
from nixery.packing.root_filesystem import Content, Link, Tree

CA_BUNDLE = b"etc/ssl/certs/ca-bundle.crt"
ZONEINFO = b"share/zoneinfo"
LOCALE_ARCHIVE = b"lib/locale/locale-archive"

_CA_CERTIFICATES = b"etc/ssl/certs/ca-certificates.crt"

# Programs that look up their user fail without an entry, and servers drop privileges to the user ``nobody``.
PASSWD, GROUP = b"etc/passwd", b"etc/group"
ACCOUNTS = {
    PASSWD: b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    GROUP: b"root:x:0:\nnobody:x:65534:\n",
}

# Without it the C library does not look into /etc/hosts, where runtimes write the names of containers.
_NSSWITCH = b"passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"

# Scripts begin with #!/bin/sh or #!/usr/bin/env, and the C library's system() calls /bin/sh. C.utf8 is the
# locale that LANG names; a C library that was not built by Nix looks for locales in /usr/lib/locale, and for
# time zones in /usr/share/zoneinfo.
_CLOSURE_FILES = (b"bin/sh", b"bin/env", b"lib/locale/C.utf8", LOCALE_ARCHIVE, ZONEINFO)


def add_system_files(tree: Tree, files: ClosureFiles, os_release: Mapping[str, str]) -> None:
    """Add to a tree of packages the system files that it lacks.

    Args:
        tree: of the packages.
        files: of the image.
        os_release: what the package set says of itself for ``/etc/os-release``.

    Raises:
        StorageError: a package cannot be read.
        UnsafeContents: see ``ClosureFiles``.
    """
    for name, content in ACCOUNTS.items():
        tree.add(name, Content(content))
    tree.add(b"etc/nsswitch.conf", Content(_NSSWITCH))
    variables = {"ID": "nixery", **os_release}
    tree.add(
        b"etc/os-release",
        Content("".join(f'{name}="{value}"\n' for name, value in variables.items()).encode()),
    )
    for name, other in ((CA_BUNDLE, _CA_CERTIFICATES), (_CA_CERTIFICATES, CA_BUNDLE)):
        if isinstance(tree.get(name), Link):
            # A link to the name rather than into the store: replacing that file then replaces both.
            tree.add(other, Link(os.path.basename(name)))
    candidates = sorted(files.closure, key=lambda path: (path.name, path.base_name))
    for name in _CLOSURE_FILES:
        present = tree.get(name)
        if isinstance(present, Link) and not files.exists(present.target):
            # A package's bin/sh -> /bin/sh would lead to itself.
            tree.remove(name)
            present = None
        if present is None:
            places = (str(path).encode() + b"/" + name for path in candidates)
            target = next((file for file in places if files.exists(file)), None)
            if target is not None:
                tree.add(name, Link(target))
