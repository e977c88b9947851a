"""Database files of SQLite, byte for byte (SQLite documentation, "Database File Format").

Not by SQLite itself: its library writes its own version into each file, and no version promises how it fills
pages. These bytes depend on the rows alone. Trees are built from the bottom up, from sorted rows, with full
pages. No overflow pages: a row has to fit into a page, a row of an index into a fraction of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_PAGE = 4096

# Bytes of the largest record in a tree of a table, and of an index, that needs no overflow page ("B-tree
# Pages").
_LARGEST_IN_TABLE = _PAGE - 35
_LARGEST_IN_INDEX = (_PAGE - 12) * 64 // 255 - 23

# Kinds of pages.
_TABLE_LEAF, _TABLE_INTERIOR = 0x0D, 0x05
_INDEX_LEAF, _INDEX_INTERIOR = 0x0A, 0x02

_LEAF_HEADER, _INTERIOR_HEADER, _CELL_POINTER, _CHILD_POINTER = 8, 12, 2, 4

_FILE_HEADER = 100

# The first version that reads every field of the header. A library checks it only together with the change
# counter, so that it trusts the number of pages.
_LIBRARY_VERSION = 3_007_000

# Bytes of an integer by its serial type; the types of 0 and 1 have none.
_INTEGER_SIZES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_ZERO, _TEXT = 8, 13

Value = int | str | None
Row = tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """An index.

    Attributes:
        name: of a constraint of its table: ``sqlite_autoindex_TABLE_NUMBER``.
        columns: their positions in the table; none of their values may be ``None``.
        sql: that creates it; ``None`` for one of a constraint.
    """

    name: str
    columns: tuple[int, ...]
    sql: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        name: of the table.
        sql: that creates it.
        rows: whose rowids are 1, 2, and so on. The value of an ``integer primary key`` is ``None``.
        indexes: of it.
    """

    name: str
    sql: str
    rows: Sequence[Row] = ()
    indexes: Sequence[Index] = ()


@dataclass(frozen=True, slots=True)
class Trigger:
    """A trigger of a table."""

    name: str
    table: str
    sql: str


def database(objects: Sequence[Table | Trigger]) -> bytes:
    """Return a database file with UTF-8 text and a rollback journal.

    Args:
        objects: each trigger after its table. A table with ``autoincrement`` needs its row in
            ``sqlite_sequence``, which is one of the tables.

    Raises:
        ValueError: a row needs an overflow page, or the schema does not fit into the first page.
    """
    pages = _Pages()
    schema: list[Row] = []
    for element in objects:
        match element:
            case Table(name, sql, rows, indexes):
                schema.append(("table", name, name, pages.table(rows), sql))
                schema += [
                    ("index", index.name, name, pages.index(rows, index.columns), index.sql)
                    for index in indexes
                ]
            case Trigger(name, table, sql):
                schema.append(("trigger", name, table, 0, sql))
    return pages.file(schema)


class _Pages:
    """The pages of a file; the first one, with the header and the schema, is made last."""

    def __init__(self) -> None:
        self._pages = [b""]

    def table(self, rows: Sequence[Row]) -> int:
        """Write the tree of a table; return the number of its root page."""
        children: list[int] = []
        separators: list[bytes] = []
        cells = list(_table_cells(rows))
        start = 0
        while start < len(cells) or not children:
            end = _fitting(cells, start, _PAGE - _LEAF_HEADER, 0)
            children.append(self._add(_page(_TABLE_LEAF, cells[start:end])))
            # The largest rowid below the child.
            separators.append(_varint(end))
            start = end
        return self._join(_TABLE_INTERIOR, children, separators)

    def index(self, rows: Sequence[Row], columns: Sequence[int]) -> int:
        """Write the tree of an index; return the number of its root page."""
        children: list[int] = []
        separators: list[bytes] = []
        cells = list(_index_cells(rows, columns))
        start = 0
        while start < len(cells) or not children:
            end = _fitting(cells, start, _PAGE - _LEAF_HEADER, 0)
            # Between two pages there is one row, and no page is empty.
            if end == len(cells) - 1:
                end -= 1
            children.append(self._add(_page(_INDEX_LEAF, cells[start:end])))
            separators += cells[end : end + 1]
            start = end + 1
        return self._join(_INDEX_INTERIOR, children, separators)

    def _join(self, kind: int, children: list[int], separators: list[bytes]) -> int:
        """Add the levels above pages; return the number of the root.

        Args:
            kind: of the pages above.
            children: the pages, in order.
            separators: what comes between each page and the next.
        """
        while len(children) > 1:
            parents: list[int] = []
            between: list[bytes] = []
            start = 0
            while start < len(children):
                # A page has a cell for each child but its last one, whose separator goes up a level.
                end = 1 + _fitting(
                    separators[: len(children) - 1], start, _PAGE - _INTERIOR_HEADER, _CHILD_POINTER
                )
                # No page has one child alone.
                if end == len(children) - 1:
                    end -= 1
                cells = [
                    child.to_bytes(_CHILD_POINTER) + separator
                    for child, separator in zip(
                        children[start : end - 1], separators[start : end - 1], strict=True
                    )
                ]
                parents.append(self._add(_page(kind, cells, last_child=children[end - 1])))
                between += separators[end - 1 : end]
                start = end
            children, separators = parents, between
        return children[0]

    def file(self, schema: Sequence[Row]) -> bytes:
        """Return the file."""
        cells = list(_table_cells(schema))
        if _fitting(cells, 0, _PAGE - _FILE_HEADER - _LEAF_HEADER, 0) < len(cells):
            raise ValueError("the schema does not fit into a page")
        self._pages[0] = _file_header(len(self._pages)) + _page(_TABLE_LEAF, cells, begin=_FILE_HEADER)
        return b"".join(self._pages)

    def _add(self, page: bytes) -> int:
        self._pages.append(page)
        return len(self._pages)


def _table_cells(rows: Sequence[Row]) -> Iterator[bytes]:
    for rowid, row in enumerate(rows, start=1):
        record = _record(row, _LARGEST_IN_TABLE)
        yield _varint(len(record)) + _varint(rowid) + record


def _index_cells(rows: Sequence[Row], columns: Sequence[int]) -> Iterator[bytes]:
    # Python compares text by code points, which is the order of its UTF-8 bytes.
    keys = sorted((*(row[column] for column in columns), rowid) for rowid, row in enumerate(rows, start=1))
    for key in keys:
        record = _record(key, _LARGEST_IN_INDEX)
        yield _varint(len(record)) + record


def _fitting(cells: Sequence[bytes], start: int, room: int, extra: int) -> int:
    """Return the end of the cells that fit into a page.

    Args:
        cells: to place, in order.
        start: the first.
        room: bytes in the page.
        extra: bytes that each cell has in addition.
    """
    end = start
    while end < len(cells) and (size := len(cells[end]) + extra + _CELL_POINTER) <= room:
        room -= size
        end += 1
    return end


def _page(kind: int, cells: Sequence[bytes], *, last_child: int | None = None, begin: int = 0) -> bytes:
    """Return a page of a tree, whose cells are at its end, the first one last.

    Args:
        kind: of the page.
        cells: in order.
        last_child: of a page above others.
        begin: bytes of the page that are used otherwise.
    """
    content = b"".join(reversed(cells))
    free = _PAGE - len(content)
    header = b"".join(
        (
            kind.to_bytes(1),
            bytes(2),  # no free blocks
            len(cells).to_bytes(2),
            free.to_bytes(2),
            bytes(1),  # no fragments
            last_child.to_bytes(_CHILD_POINTER) if last_child is not None else b"",
        )
    )
    pointers = bytearray()
    place = _PAGE
    for cell in cells:
        place -= len(cell)
        pointers += place.to_bytes(_CELL_POINTER)
    used = header + pointers
    return used + bytes(free - begin - len(used)) + content


def _record(row: Row, largest: int) -> bytes:
    types, body = bytearray(), bytearray()
    for value in row:
        match value:
            case None:
                types.append(0)
            case int():
                kind = _integer_type(value)
                types.append(kind)
                body += value.to_bytes(_INTEGER_SIZES.get(kind, 0), signed=True) if kind < _ZERO else b""
            case str():
                text = value.encode()
                types += _varint(2 * len(text) + _TEXT)
                body += text
    # The length of the types includes its own, which is one byte: rows have few columns.
    record = bytes((len(types) + 1, *types, *body))
    if len(record) > largest:
        raise ValueError(f"a row has {len(record)} bytes, more than {largest}")
    return record


def _integer_type(value: int) -> int:
    if value in {0, 1}:
        return _ZERO + value
    return next(kind for kind, size in _INTEGER_SIZES.items() if max(value, ~value).bit_length() < 8 * size)


def _varint(number: int) -> bytes:
    """Return a number below 2**56, seven bits a byte, the highest first; all bytes but the last have their top bit set."""
    digits = [number & 0x7F]
    while number := number >> 7:
        digits.append(number & 0x7F | 0x80)
    return bytes(reversed(digits))


def _file_header(pages: int) -> bytes:
    numbers = (
        1,  # changes of the file, which says that the number of pages is valid
        pages,
        0,  # no list of free pages
        0,
        1,  # changes of the schema
        4,  # format of the schema
        0,  # default size of the cache
        0,  # no automatic vacuum
        1,  # UTF-8
        0,  # version for the user
        0,  # no incremental vacuum
        0,  # identity of the application
        *(0,) * 5,  # reserved
        1,  # changes at the time of the next number
        _LIBRARY_VERSION,
    )
    return b"".join(
        (
            b"SQLite format 3\0",
            _PAGE.to_bytes(2),
            # Rollback journal, for writing and reading; no reserved bytes in pages; three constants.
            bytes((1, 1, 0, 64, 32, 32)),
            *(number.to_bytes(4) for number in numbers),
        )
    )
