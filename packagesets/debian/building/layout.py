"""Where a file of a .deb goes in the output: `usr/` moves up, all program directories become `bin`, all `lib*` become `lib`.

Programs keep their other names: `sbin/NAME` and `usr/games/NAME` are links to `bin/NAME`.
"""

import posixpath

_DIRECTORIES = {"sbin": "bin", "games": "bin", "lib64": "lib", "lib32": "lib32", "libx32": "libx32"}
_MOVED_UP = tuple(
    f"usr/{name}"
    for name in (
        "bin/",
        "games/",
        "include/",
        "lib/",
        "lib32/",
        "lib64/",
        "libexec/",
        "libx32/",
        "sbin/",
        "share/",
    )
)
# Debian's directories of programs whose names `bin` has in an output, to where an image expects them.
_OTHER_NAMES = (("/usr/sbin/", "sbin"), ("/sbin/", "sbin"), ("/usr/games/", "usr/games"))
_LEFT_OUT = ("share/lintian/overrides/", "share/bug/", "share/doc-base/", "usr/local/")
_DOCUMENTATION = "share/doc/"


def output_path(path: str) -> str:
    """The place in an output of Debian's `path`, which may be absolute or relative to the root."""
    relative = posixpath.normpath("/" + path.lstrip("/")).lstrip("/")
    if relative == "usr" or f"{relative}/".startswith(_MOVED_UP):
        relative = relative[4:]
    first, slash, rest = relative.partition("/")
    return _DIRECTORIES.get(first, first) + slash + rest


def other_name(path: str) -> str | None:
    """The second place in an output for the program at Debian's absolute `path`, if it has one beside `bin`."""
    for start, directory in _OTHER_NAMES:
        if path.startswith(start) and "/" not in (name := path[len(start) :]):
            return f"{directory}/{name}"
    return None


def is_left_out(path: str) -> bool:
    """Whether the output does without `path`: documentation but for licences, and notes for Debian's own tools."""
    if path.startswith(_DOCUMENTATION):
        return posixpath.basename(path) != "copyright"
    return path.startswith(_LEFT_OUT)
