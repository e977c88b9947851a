"""Rewrite Debian's absolute paths in scripts and other text to the store paths that have these files."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from building.outputs import Outputs

Find = Callable[[str], str | None]

# A path after a character that could be part of a longer one (`$prefix/usr/bin`) is not an absolute path.
_ABSOLUTE = re.compile(
    rb"(?<![A-Za-z0-9_.}/~*\\)-])/(?:usr/)?(?:s?bin|lib(?:64|exec)?|share|games)/[A-Za-z0-9_.+/@-]*[A-Za-z0-9_+@]"
)
_ENV = re.compile(rb"\A#![ \t]*/usr/bin/env[ \t]+(?:-S[ \t]+)?([A-Za-z0-9_.+-]+)")
_SHEBANG = re.compile(rb"\A#![ \t]*(/\S+)")

# Reading and searching these would take long and change nothing that is used.
_UNTOUCHED = (
    "share/man/",
    "share/doc/",
    "share/info/",
    "share/locale/",
    "share/terminfo/",
    "lib/terminfo/",
    "include/",
    # TeX's trees are those of all packages together.
    "share/texlive/texmf-dist/web2c/",
    # Declarations for a whole file system.
    "lib/sysusers.d/",
    "lib/tmpfiles.d/",
    "lib/systemd/",
)
_LARGEST = 8 << 20
# Directories that many packages fill: text that names them means all packages together, which no store path is.
_SHARED = re.compile(
    r"^/(?:usr/)?(?:s?bin|games|lib(?:64|exec)?(?:/[a-z0-9_]+-linux-gnu[a-z0-9]*)?|lib/(?:python3|pkgconfig|systemd|modules)"
    r"|share(?:/(?:applications|doc|fonts|icons|info|locale|man|mime|perl5|pixmaps|pkgconfig|themes))?)/?$"
)


def rewrite_text(content: bytes, find: Find, find_program: Find) -> bytes:
    """The content with its interpreter and its absolute paths leading into the store, where `find` knows them.

    `find` is given Debian's absolute paths, `find_program` names of programs.
    """
    if (match := _ENV.match(content)) and (program := find_program(match[1].decode())):
        content = b"#!" + program.encode() + content[match.end() :]
    elif (match := _SHEBANG.match(content)) and (found := find(match[1].decode())):
        content = b"#!" + found.encode() + content[match.end() :]

    def replace(found: re.Match[bytes]) -> bytes:
        path = found[0].decode()
        if _SHARED.match(path):
            return found[0]
        place = find(path)
        return place.encode() if place else found[0]

    return _ABSOLUTE.sub(replace, content)


def rewrite_file(path: Path, outputs: Outputs) -> None:
    """Rewrite one file of the output if it is text."""
    relative = os.path.relpath(path, outputs.own)
    if relative.startswith(_UNTOUCHED) or path.stat().st_size > _LARGEST:
        return
    content = path.read_bytes()
    if b"\0" in content[:8192] or b"/" not in content:
        return
    rewritten = rewrite_text(content, outputs.find_for_text, outputs.find_program)
    if rewritten != content:
        path.write_bytes(rewritten)
