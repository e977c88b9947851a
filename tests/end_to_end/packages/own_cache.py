"""Change the name of the cache in a loader of Debian, which was compiled with another one in nixpkgs.

    own_cache.py LOADER CACHE

The new name is longer. It replaces a part of the text of ``--help``, and the instructions that load the
address of the old name (``lea name(%rip), register``) get the new address.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_OLD = b"\0/etc/ld.so.cache\0"
_HELP = b"\0Usage: "

# REX.W, opcode, and a register with an address relative to the next instruction.
_LEA = re.compile(rb"[\x48\x4c]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d](?=(.{4}))", re.DOTALL)


def main(loader: Path, cache: bytes) -> None:
    """Write the loader anew."""
    content = bytearray(loader.read_bytes())
    # Their addresses are their offsets in the file.
    old, new = content.index(_OLD) + 1, content.index(_HELP) + 1
    changed = 0
    for instruction in _LEA.finditer(bytes(content)):
        operand = instruction.end()
        if operand + 4 + int.from_bytes(instruction[1], "little", signed=True) == old:
            content[operand : operand + 4] = (new - operand - 4).to_bytes(4, "little", signed=True)
            changed += 1
    assert changed, "no instruction loads the address of the cache's name: is this a loader for x86-64?"
    content[new : new + len(cache) + 1] = cache + b"\0"
    loader.write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].encode())
