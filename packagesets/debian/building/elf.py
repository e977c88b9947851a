"""Read what matters of an ELF file's dynamic section, and have patchelf set its interpreter and RUNPATH."""

import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from building.errors import BuildError
from building.layout import output_path
from building.outputs import Outputs
from building.roomy_elf import patch_in_place

_HEADER_SIZE, _CLASS_64 = 64, 2
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
# Directories that are searched by default in Debian: a RUNPATH that names them says nothing.
_DEFAULT_DIRECTORIES = ("lib", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu")


@dataclass(frozen=True, slots=True)
class Dynamic:
    """What the loader is told by a program or library."""

    has_interpreter: bool
    needed: tuple[str, ...]
    run_path: tuple[str, ...]


def read_dynamic(data: bytes) -> Dynamic | None:
    """The dynamic section of an ELF file's content; None for static programs, objects and anything that is not ELF."""
    if data[:4] != b"\x7fELF" or len(data) < _HEADER_SIZE:
        return None
    try:
        return _read(data)
    except (struct.error, IndexError, ValueError):
        return None


def _read(data: bytes) -> Dynamic | None:
    wide = data[4] == _CLASS_64
    order = "<" if data[5] == 1 else ">"
    if wide:
        table, size, count = (
            *struct.unpack_from(order + "Q", data, 32),
            *struct.unpack_from(order + "HH", data, 54),
        )
    else:
        table, size, count = (
            *struct.unpack_from(order + "I", data, 28),
            *struct.unpack_from(order + "HH", data, 42),
        )
    segments = []
    for index in range(count):
        if wide:
            kind, _, offset, address, _, length = struct.unpack_from(
                order + "IIQQQQ", data, table + index * size
            )
        else:
            kind, offset, address, _, length = struct.unpack_from(order + "IIIII", data, table + index * size)
        segments.append((kind, offset, address, length))
    dynamic = next((segment for segment in segments if segment[0] == _PT_DYNAMIC), None)
    if dynamic is None:
        return None
    entries = list(
        struct.iter_unpack(order + ("qQ" if wide else "iI"), data[dynamic[1] : dynamic[1] + dynamic[3]])
    )
    strings = _file_offset(next((value for tag, value in entries if tag == _DT_STRTAB), -1), segments)

    def text(offset: int) -> str:
        start = strings + offset
        return data[start : data.index(b"\0", start)].decode()

    paths = [text(value) for tag, value in entries if tag in (_DT_RPATH, _DT_RUNPATH)]
    return Dynamic(
        has_interpreter=any(segment[0] == _PT_INTERP for segment in segments),
        needed=tuple(text(value) for tag, value in entries if tag == _DT_NEEDED),
        run_path=tuple(part for path in paths for part in path.split(":") if part),
    )


def _file_offset(address: int, segments: list[tuple[int, int, int, int]]) -> int:
    for kind, offset, start, length in segments:
        if kind == _PT_LOAD and start <= address < start + length:
            return offset + address - start
    raise ValueError(address)


def new_run_path(dynamic: Dynamic, outputs: Outputs) -> list[str]:
    """The directories of the needed libraries, after those that the file asked for itself."""
    directories = []
    for path in dynamic.run_path:
        if path.startswith("$ORIGIN"):
            directories.append(path)
        elif output_path(path) not in _DEFAULT_DIRECTORIES:
            directories += outputs.find_directories(output_path(path))
    found_libraries = map(outputs.find_library_directory, dynamic.needed)
    directories.extend(directory for directory in found_libraries if directory)
    return list(dict.fromkeys(directories))


def patch(path: Path, outputs: Outputs) -> None:
    """Make the program or library at `path` find its loader and its libraries in the store."""
    content = path.read_bytes()
    dynamic = read_dynamic(content)
    if dynamic is None:
        return
    options = []
    if dynamic.has_interpreter and outputs.loader and not _is_of_libc(path):
        options += ["--set-interpreter", outputs.loader]
    run_path = new_run_path(dynamic, outputs)
    if run_path != list(dynamic.run_path) and not _is_of_libc(path):
        options += ["--set-rpath", ":".join(run_path)] if run_path else ["--remove-rpath"]
    if not options:
        return
    if dynamic.has_interpreter and outputs.loader and not dynamic.run_path:
        patched = patch_in_place(content, outputs.loader, ":".join(run_path))
        if patched is not None:
            path.write_bytes(patched)
            return
    done = subprocess.run(
        ["patchelf", *options, os.fspath(path)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildError(f"{path}: patchelf failed: {done.stderr.strip()}")


def _is_of_libc(path: Path) -> bool:
    """The loader and libc itself are mapped in ways that patchelf's moved sections break."""
    return path.name.startswith(("ld-linux", "ld-2.", "libc.so.", "libc-2.", "ld.so"))
