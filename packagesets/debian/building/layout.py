"""Where a file of a .deb goes in the output: `usr/` moves up, all program directories become `bin`, all `lib*` become `lib`."""

import posixpath

_DIRECTORIES = {"sbin": "bin", "games": "bin", "lib64": "lib", "lib32": "lib32", "libx32": "libx32"}
_LEFT_OUT = ("share/lintian/", "share/bug/", "share/doc-base/", "usr/local/")
_DOCUMENTATION = "share/doc/"


def output_path(path: str) -> str:
    """The place in an output of Debian's `path`, which may be absolute or relative to the root."""
    relative = posixpath.normpath("/" + path.lstrip("/")).lstrip("/")
    if relative == "usr" or (relative.startswith("usr/") and not relative.startswith("usr/local")):
        relative = relative[4:]
    first, slash, rest = relative.partition("/")
    return _DIRECTORIES.get(first, first) + slash + rest


def is_left_out(path: str) -> bool:
    """Whether the output does without `path`: documentation but for licences, and notes for Debian's own tools."""
    if path.startswith(_DOCUMENTATION):
        return posixpath.basename(path) != "copyright"
    return path.startswith(_LEFT_OUT)
