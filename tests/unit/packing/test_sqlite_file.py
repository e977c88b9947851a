"""Database files, read and changed by SQLite itself."""

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from nixery.packing.sqlite_file import Index, Row, Table, Trigger, database

# The trees get their second level, their third one, and each way to divide the last rows among pages.
NUMBERS = (0, 1, 2, *range(10, 40), *range(150, 160), 700, 5000, 40_000)

INTEGERS = (0, 1, -1, 2, 127, 128, -128, -129, 2**15, 2**23, -(2**31), 2**40, 2**55, -(2**63), 2**63 - 1)


def rows(count: int) -> list[Row]:
    # In another order than their numbers, and of all lengths up to the longest name in a Nix store.
    names = [hashlib.sha256(b"%d" % number).hexdigest() * 4 for number in range(count)]
    return [
        (None, name[: 32 + number * 7 % 222] + str(number), number * 7919 % 10_007)
        for number, name in enumerate(names)
    ]


def with_rows(content: list[Row]) -> bytes:
    return database(
        (
            Table(
                "Names",
                "CREATE TABLE Names (id integer primary key autoincrement not null, name text unique not null, number integer)",
                content,
                [
                    Index("sqlite_autoindex_Names_1", (1,)),
                    Index("Numbers", (2,), "CREATE INDEX Numbers on Names(number)"),
                ],
            ),
            Table("sqlite_sequence", "CREATE TABLE sqlite_sequence(name,seq)", [("Names", len(content))]),
            Trigger(
                "KeepOne",
                "Names",
                "CREATE TRIGGER KeepOne before delete on Names begin select raise(ignore) where old.id = 1; end",
            ),
        )
    )


@pytest.mark.parametrize("count", NUMBERS)
def test_sqlite_reads_and_changes_a_database(tmp_path: Path, count: int) -> None:
    content = rows(count)
    file = tmp_path / "database"
    file.write_bytes(with_rows(content))
    with closing(sqlite3.connect(file)) as connection, connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = connection.execute("SELECT name, number FROM Names ORDER BY id").fetchall()
        assert found == [row[1:] for row in content]
        by_name = connection.execute(
            "SELECT name FROM Names INDEXED BY sqlite_autoindex_Names_1 ORDER BY name"
        )
        assert by_name.fetchall() == sorted((row[1],) for row in content)
        for row in content[:: 1 + count // 10]:
            query = "SELECT count(*) FROM Names INDEXED BY Numbers WHERE number = ?"
            same = sum(other[2] == row[2] for other in content)
            assert connection.execute(query, (row[2],)).fetchone() == (same,)

        # A new row continues the sequence; the trigger keeps the first row.
        added = connection.execute("INSERT INTO Names (name, number) VALUES ('new', 1)").lastrowid
        assert added == count + 1
        connection.execute("DELETE FROM Names WHERE id % 3 = 1")
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if count:
            assert connection.execute("SELECT min(id) FROM Names").fetchone() == (1,)


def test_integers_and_text_of_all_sizes(tmp_path: Path) -> None:
    content: list[Row] = [(number, None, "ä" * 60) for number in INTEGERS]
    sql = "CREATE TABLE Numbers (number, empty, text)"
    file = tmp_path / "database"
    file.write_bytes(
        database([Table("Numbers", sql, content, [Index("I", (0,), "CREATE INDEX I on Numbers(number)")])])
    )
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT * FROM Numbers").fetchall() == content


def test_the_bytes_depend_on_the_rows_alone() -> None:
    # Known bytes: those of another version of this module would change the digests of images.
    digest = hashlib.sha256(with_rows(rows(1000))).hexdigest()
    assert digest == "619a89241f5500312523e63e8e5cdea5f741794a0cdb6d0960d768c8fe721653"


def test_a_row_that_needs_an_overflow_page_is_refused() -> None:
    sql = "CREATE TABLE Names (name text)"
    with pytest.raises(ValueError, match="a row has 4067 bytes, more than 4061"):
        database([Table("Names", sql, [("x" * 4064,)])])
    with pytest.raises(ValueError, match="more than 1002"):
        database([Table("Names", sql, [("x" * 1000,)], [Index("I", (0,), "CREATE INDEX I on Names(name)")])])


def test_a_schema_of_more_than_a_page_is_refused() -> None:
    tables = [Table(f"T{number}", f"CREATE TABLE T{number} (name text)") for number in range(100)]
    with pytest.raises(ValueError, match="schema does not fit"):
        database(tables)
