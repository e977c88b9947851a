"""The files that every system has: accounts, name look-ups, certificates, fonts, time zones, locales, a shell.

They are added to the packages' own files; a package that brings one of them keeps its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from nixery.closure import STORE_DIRECTORY, StorePath
from nixery.errors import UnsafeContents
from nixery.image.os_release import os_release_file
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.java_keystore import MOST_BYTES, java_keystore
from nixery.packing.root_filesystem import Content, Link, Tree

CA_BUNDLE = b"etc/ssl/certs/ca-bundle.crt"
JAVA_KEYSTORE = b"etc/ssl/certs/java/cacerts"
ZONEINFO = b"share/zoneinfo"
LOCALE_ARCHIVE = b"lib/locale/locale-archive"

# The name that Debian, Go, GnuTLS and OpenSSL of Nix have compiled in, and the others by which programs look
# for the same file: OpenSSL of upstream, Fedora and Debian reads a cert.pem of its own.
_CA_CERTIFICATES = b"etc/ssl/certs/ca-certificates.crt"
_CA_NAMES = {
    b"etc/ssl/cert.pem": b"certs/ca-certificates.crt",
    b"etc/pki/tls/cert.pem": b"../../ssl/certs/ca-certificates.crt",
    b"etc/pki/tls/certs/ca-bundle.crt": b"../../../ssl/certs/ca-certificates.crt",
    b"lib/ssl/cert.pem": b"/etc/ssl/certs/ca-certificates.crt",
}

PASSWD, GROUP = b"etc/passwd", b"etc/group"

# The Linux Standard Base requires root, bin and daemon. The kernel and runtimes give files to 65534 and to tty,
# the group of terminals. Many servers run as the user `nobody`, in the group `nobody` or `nogroup`. `useradd` looks up
# the groups mail and users.
_USERS = (
    ("root", 0, "/root", ""),
    ("daemon", 1, "/usr/sbin", "/bin/false"),
    ("bin", 2, "/bin", "/bin/false"),
    ("nobody", 65534, "/", "/bin/false"),
)
_GROUPS = {
    "root": 0,
    "daemon": 1,
    "bin": 2,
    "tty": 5,
    "mail": 8,
    "users": 100,
    "nobody": 65534,
    "nogroup": 65534,
}

# Without it the C library does not look into /etc/hosts, where runtimes write the names of containers.
_NSSWITCH = b"passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"

# systemd's places: the first is a symlink to the second. A scanner that reads layers without following
# symlinks finds a regular file under one of the names.
_OS_RELEASE, _OS_RELEASE_BELOW_USR = b"etc/os-release", b"usr/lib/os-release"
_OS_RELEASE_OF_PACKAGES = (_OS_RELEASE, b"lib/os-release")
_LONGEST_OS_RELEASE = 1 << 16

# fontconfig of Debian and of Nix reads this file. Every user may write to the cache, as to /tmp: without one,
# each process reads all fonts and says so on stderr.
_FONTS_CONF = b"etc/fonts/fonts.conf"
_FONTS_CONF_DIRECTORY = b"etc/fonts/conf.d"
_FONTS = b"share/fonts"
_FONTS_CACHE = b"var/cache/fontconfig"
_OUR_FONTS_CONF = b"""<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig>
  <dir>/usr/share/fonts</dir>
  <dir>/usr/local/share/fonts</dir>
  <dir prefix="xdg">fonts</dir>
  <include ignore_missing="yes">/etc/fonts/conf.d</include>
  <cachedir>/var/cache/fontconfig</cachedir>
  <cachedir prefix="xdg">fontconfig</cachedir>
</fontconfig>
"""

# Scripts begin with #!/bin/sh or #!/usr/bin/env, and the C library's system() calls /bin/sh. C.utf8 is the
# locale that LANG names; a C library that was not built by Nix looks for locales in /usr/lib/locale, and for
# time zones in /usr/share/zoneinfo.
_CLOSURE_FILES = (b"bin/sh", b"bin/env", b"lib/locale/C.utf8", LOCALE_ARCHIVE, ZONEINFO)


def add_system_files(tree: Tree, files: ClosureFiles, os_release: Mapping[str, str] | None = None) -> None:
    """Add to a tree of packages the system files that it lacks.

    Args:
        tree: before its completion.
        files: of the image.
        os_release: facts of the package set, for ``/etc/os-release``.

    Raises:
        InvalidFacts: see ``os_release_file``.
        StorageError: a package cannot be read.
        UnsafeContents: see ``ClosureFiles``.
    """
    candidates = sorted(files.closure, key=lambda path: (path.name, path.base_name))
    for name in _CLOSURE_FILES:
        _add_closure_file(tree, files, candidates, name)
    for name, content in default_accounts(tree).items():
        tree.add(name, Content(content))
    tree.add(b"etc/nsswitch.conf", Content(_NSSWITCH))
    _add_os_release(tree, files, os_release or {})
    _add_certificates(tree, files, candidates)
    _add_fonts(tree, files, candidates)


def default_accounts(tree: Tree) -> Mapping[bytes, bytes]:
    """Return ``/etc/passwd`` and ``/etc/group`` of an image whose packages bring neither.

    Programs that look up their user fail without an entry.
    """
    shell = login_shell(tree)
    users = (
        f"{name}:x:{number}:{number}:{name}:{home}:{own_shell or shell}\n"
        for name, number, home, own_shell in _USERS
    )
    groups = (f"{name}:x:{number}:\n" for name, number in _GROUPS.items())
    return {PASSWD: "".join(users).encode(), GROUP: "".join(groups).encode()}


def login_shell(tree: Tree) -> str:
    """Return the shell of people, which terminals and editors start: as ``sh``, bash completes nothing."""
    return "/bin/bash" if tree.get(b"bin/bash") is not None else "/bin/sh"


def _add_closure_file(
    tree: Tree, files: ClosureFiles, candidates: Sequence[StorePath], name: bytes
) -> StorePath | None:
    """Add a file of the first store path that has it, unless a package does; return the store path."""
    present = tree.get(name)
    if isinstance(present, Link) and not files.exists(present.target):
        # A package's bin/sh -> /bin/sh would lead to itself.
        tree.remove(name)
        present = None
    found = _first_with(name, candidates, files) if present is None else None
    if found is not None:
        tree.add(name, Link(_inside(found, name)))
    return found


def _first_with(name: bytes, candidates: Iterable[StorePath], files: ClosureFiles) -> StorePath | None:
    return next((path for path in candidates if files.exists(_inside(path, name))), None)


def _inside(path: StorePath, name: bytes) -> bytes:
    return str(path).encode() + b"/" + name


def _add_os_release(tree: Tree, files: ClosureFiles, facts: Mapping[str, str]) -> None:
    of_packages = (tree.get(name) for name in _OS_RELEASE_OF_PACKAGES)
    links = [node.target for node in of_packages if isinstance(node, Link)]
    contents = (files.read(target, _LONGEST_OS_RELEASE) for target in links)
    content = next((content for content in contents if content is not None), None)
    for name in _OS_RELEASE_OF_PACKAGES:
        tree.remove(name)
    tree.add(_OS_RELEASE_BELOW_USR, Content(os_release_file(facts) if content is None else content))
    tree.add(_OS_RELEASE, Link(b"../" + _OS_RELEASE_BELOW_USR))


def _add_certificates(tree: Tree, files: ClosureFiles, candidates: Sequence[StorePath]) -> None:
    bundle, other = tree.get(_CA_CERTIFICATES), tree.get(CA_BUNDLE)
    if not isinstance(bundle, Link):
        if not isinstance(other, Link):
            return
        bundle = Link(other.target)
        tree.add(_CA_CERTIFICATES, bundle)
    if not isinstance(other, Link) or files.are_one(bundle.target, other.target):
        # A symlink to the name rather than into the store: replacing that file then replaces both.
        tree.remove(CA_BUNDLE)
        tree.add(CA_BUNDLE, Link(os.path.basename(_CA_CERTIFICATES)))
    for name, target in _CA_NAMES.items():
        tree.add(name, Link(target))
    if tree.get(JAVA_KEYSTORE) is None and _first_with(b"bin/java", candidates, files) is not None:
        keystore = _keystore(files, bundle.target)
        if keystore is not None:
            tree.add(JAVA_KEYSTORE, Content(keystore))


def _keystore(files: ClosureFiles, bundle: bytes) -> bytes | None:
    try:
        content = files.read(bundle, MOST_BYTES)
    except UnsafeContents:
        return None
    return java_keystore(content) if content is not None else None


def _add_fonts(tree: Tree, files: ClosureFiles, candidates: Sequence[StorePath]) -> None:
    """Add fonts of packages that are not installed, and fontconfig's configuration from its package if possible."""
    found = _add_closure_file(tree, files, candidates, _FONTS_CONF)
    if found is not None and files.is_directory(_inside(found, _FONTS_CONF_DIRECTORY)):
        for name, _ in files.names(_inside(found, _FONTS_CONF_DIRECTORY)):
            file = _FONTS_CONF_DIRECTORY + b"/" + name
            tree.add(file, Link(_inside(found, file)))
    tree.add(_FONTS_CONF, Content(_OUR_FONTS_CONF))
    fonts = tree.get(_FONTS)
    installed = _store_names(fonts) if isinstance(fonts, Tree) else set()
    for path in candidates:
        base_name = path.base_name.encode()
        if base_name not in installed and files.is_directory(_inside(path, _FONTS)):
            tree.add(_FONTS + b"/" + base_name, Link(_inside(path, _FONTS)))
    if tree.get(_FONTS) is not None:
        tree.add(_FONTS_CACHE, Tree())
        cache = tree.get(_FONTS_CACHE)
        if isinstance(cache, Tree):
            cache.mode = 0o1777


def _store_names(tree: Tree) -> set[bytes]:
    """The store paths that the links of a tree lead to."""
    names: set[bytes] = set()
    trees = [tree]
    while trees:
        for node in trees.pop().children.values():
            if isinstance(node, Tree):
                trees.append(node)
            elif isinstance(node, Link):
                names.add(node.target.removeprefix(_STORE).partition(b"/")[0])
    return names


_STORE = STORE_DIRECTORY.encode() + b"/"
