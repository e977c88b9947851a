"""Set interpreter and RUNPATH of a program without moving anything, where its first page has room for them.

Go's own linker leaves such room behind the program headers, and its programs crash once patchelf has moved these.
"""

import struct

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_STRTAB, _DT_DEBUG, _DT_RUNPATH = 5, 21, 29
_LITTLE_ENDIAN_64 = b"\x7fELF\x02\x01"
_ENTRY, _DYNAMIC = "<IIQQQQQQ", "<qQ"
_FIRST_PAGE = 4096


def patch_in_place(data: bytes, interpreter: str, run_path: str) -> bytes | None:
    """The content of an ELF file with another interpreter and RUNPATH; None if it has no room for them.

    The RUNPATH takes the place of DT_DEBUG, which only debuggers use.
    """
    if not data.startswith(_LITTLE_ENDIAN_64):
        return None
    (table,), (size, count) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<HH", data, 54)
    headers = {
        offset: struct.unpack_from(_ENTRY, data, offset)
        for offset in range(table, table + size * count, size)
    }
    load = next((header for header in headers.values() if header[0] == _PT_LOAD and header[2] == 0), None)
    place = next((offset for offset, header in headers.items() if header[0] == _PT_INTERP), None)
    dynamic = next((header for header in headers.values() if header[0] == _PT_DYNAMIC), None)
    if load is None or place is None or dynamic is None:
        return None
    start = table + size * count
    texts = interpreter.encode() + b"\0" + run_path.encode() + b"\0"
    if start + len(texts) > _FIRST_PAGE or any(data[start : start + len(texts)]):
        return None
    if any(start <= header[2] < start + len(texts) for header in headers.values() if header[5]):
        return None

    patched = bytearray(data)
    patched[start : start + len(texts)] = texts
    address, length = load[3] + start, len(interpreter.encode()) + 1
    struct.pack_into(_ENTRY, patched, place, _PT_INTERP, 4, start, address, address, length, length, 1)
    entries = {
        struct.unpack_from(_DYNAMIC, data, offset)[0]: offset
        for offset in range(dynamic[2], dynamic[2] + dynamic[5], 16)
    }
    if _DT_DEBUG not in entries or _DT_STRTAB not in entries or _DT_RUNPATH in entries:
        return None
    strings = struct.unpack_from(_DYNAMIC, data, entries[_DT_STRTAB])[1]
    # An offset from the string table, which is behind: it wraps around, as the loader's addition does.
    offset = (address + length - strings) % (1 << 64)
    struct.pack_into(_DYNAMIC, patched, entries[_DT_DEBUG], _DT_RUNPATH, offset)
    return bytes(patched)
