"""Accounts and directories that packages declare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from nixery.closure import StorePath
from nixery.errors import UnsafeContents
from nixery.packing import accounts
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.declared_accounts import add_declared_accounts
from nixery.packing.local_store import LocalStore
from nixery.packing.root_filesystem import Content, InstalledOutput, Tree, plan_root_filesystem
from nixery.packing.system_files import add_system_files
from nixery.packing.user_files import add_user_files

_POSTGRES = {
    "sysusers.d/postgresql.conf": (
        "# PostgreSQL\n"
        "g postgres -\n"
        "g ssl-cert -\n"
        'u postgres - "PostgreSQL administrator" /var/lib/postgresql /bin/bash\n'
        "m postgres ssl-cert\n"
    ),
    "tmpfiles.d/postgresql.conf": (
        "d /var/lib/postgresql 0700 postgres postgres - -\n"
        "d /run/postgresql 2775 postgres postgres - -\n"
        "d /var/log/postgresql 1775 root postgres - -\n"
        "r! /etc/passwd\n"
    ),
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tmp_path / "store"
    store.mkdir()
    return store


def package(store: Path, name: str, declarations: Mapping[str, str]) -> StorePath:
    path = StorePath(f"{name:a>32}-{name}")
    for file, content in declarations.items():
        place = store / path.base_name / "lib" / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
    return path


@pytest.fixture
def local(store: Path) -> Iterator[LocalStore]:
    with LocalStore(bytes(store)) as contents:
        yield contents


def planned(local: LocalStore, *paths: StorePath) -> tuple[Tree, ClosureFiles]:
    files = ClosureFiles(paths, local)
    tree = plan_root_filesystem((InstalledOutput(path, path.name, 5) for path in paths), files).tree
    add_system_files(tree, files)
    add_declared_accounts(tree, files)
    return tree, files


def lines(tree: Tree, name: bytes) -> dict[str, list[str]]:
    node = tree.get(name)
    assert isinstance(node, Content)
    fields = [line.split(":") for line in node.content.decode().splitlines()]
    assert len({name for name, *_ in fields}) == len(fields)
    return {name: rest[1:] for name, *rest in fields}


def directory(tree: Tree, name: bytes) -> tuple[tuple[int, int], int]:
    node = tree.get(name)
    assert isinstance(node, Tree)
    return node.owner, node.mode


def test_users_groups_and_directories_are_in_the_image(store: Path, local: LocalStore) -> None:
    tree, _ = planned(local, package(store, "postgresql", _POSTGRES))
    users, groups = lines(tree, b"etc/passwd"), lines(tree, b"etc/group")
    number, *rest = users["postgres"]
    assert 200 <= int(number) < 1000
    assert rest == [number, "PostgreSQL administrator", "/var/lib/postgresql", "/bin/bash"]
    assert groups["postgres"] == [number, ""]
    assert groups["ssl-cert"][1] == "postgres"
    owner = (int(number), int(number))
    assert directory(tree, b"var/lib/postgresql") == (owner, 0o755)
    assert directory(tree, b"run/postgresql") == (owner, 0o2775)
    assert directory(tree, b"var/log/postgresql") == ((0, int(number)), 0o1775)


def test_a_number_depends_on_the_name_alone(store: Path, local: LocalStore) -> None:
    other = package(store, "other", {"sysusers.d/a.conf": "u aaa -\nu redis 150\n"})
    alone, _ = planned(local, package(store, "postgresql", _POSTGRES))
    together, _ = planned(local, other, package(store, "again", _POSTGRES))
    assert lines(together, b"etc/passwd")["postgres"] == lines(alone, b"etc/passwd")["postgres"]
    assert lines(together, b"etc/passwd")["redis"] == ["150", "150", "", "/", "/bin/false"]


def test_existing_accounts_and_taken_numbers(store: Path, local: LocalStore) -> None:
    declared = (
        "u root 7\ng tty 99\nu daemon2 1\ng first 300\ng second 300\nu in-group 33:tty\nu unknown 34:none\n"
    )
    tree, _ = planned(local, package(store, "p", {"sysusers.d/p.conf": declared}))
    users, groups = lines(tree, b"etc/passwd"), lines(tree, b"etc/group")
    assert users["root"][0] == "0"
    assert groups["tty"][0] == "5"
    assert groups["first"][0] == "300"
    assert len({users[name][0] for name in users}) == len(users)
    assert groups["second"][0] != "300"
    assert users["in-group"][:2] == ["33", "5"]
    assert users["unknown"][:2] == ["34", groups["none"][0]]


@pytest.mark.parametrize(
    "line",
    [
        'u evil:x - "" /\n',
        "u ../x -\n",
        "u %i -\n",
        'u "a\nroot2 0" -',
        "u",
        'u "unclosed -\n',
        "x y z\n",
        "m nobody-there root\n",
        "m daemon no-group\n",
    ],
)
def test_lines_that_mean_nothing_change_nothing(store: Path, local: LocalStore, line: str) -> None:
    plain, _ = planned(local, package(store, "plain", {"sysusers.d/x.conf": ""}))
    tree, _ = planned(local, package(store, "p", {"sysusers.d/x.conf": line}))
    for name in (b"etc/passwd", b"etc/group"):
        assert tree.get(name) == plain.get(name)


def test_fields_that_would_break_a_line_are_left_out(store: Path, local: LocalStore) -> None:
    declared = 'u a - "x:y" /a:b "/bin/sh\x0b"\nu b - "\x1b" ../home -\nu c - "größer" /home/c /bin/sh\n'
    tree, _ = planned(local, package(store, "p", {"sysusers.d/p.conf": declared}))
    users = lines(tree, b"etc/passwd")
    assert users["a"][2:] == users["b"][2:] == ["", "/", "/bin/false"]
    assert users["c"][2:] == ["größer", "/home/c", "/bin/sh"]


def test_directories_of_every_image_and_of_the_system_are_kept(store: Path, local: LocalStore) -> None:
    places = (
        "/tmp",  # noqa: S108 -- of the image
        "/var/log",
        "/etc",
        "/usr/bin",
        "/nix/store",
        "/proc/x",
        "/var/../usr/x",
        "/var/lib/%m",
        "x",
    )
    declared = "".join(f"d {place} 0700 nobody nogroup - -\n" for place in places)
    tree, _ = planned(local, package(store, "p", {"tmpfiles.d/p.conf": declared}))
    assert directory(tree, b"tmp") == ((0, 0), 0o1777)
    assert directory(tree, b"var/log") == directory(tree, b"etc") == ((0, 0), 0o755)
    assert tree.get(b"nix") is tree.get(b"proc/x") is tree.get(b"usr/x") is tree.get(b"var/lib/%m") is None


def test_modes(store: Path, local: LocalStore) -> None:
    declared = "q /var/run/x 0755\nd /srv/a 7777\nd /srv/b\nd /srv/c :0750 nobody\nd /srv/d 99 - 7\nD! /srv/e 0500 12 34\nf /srv/f 0755\n"
    tree, _ = planned(local, package(store, "p", {"tmpfiles.d/p.conf": declared}))
    assert directory(tree, b"srv/a") == ((0, 0), 0o3777)
    assert directory(tree, b"srv/b") == ((0, 0), 0o755)
    assert directory(tree, b"srv/c") == ((65534, 0), 0o755)
    assert directory(tree, b"srv/d") == ((0, 7), 0o755)
    assert directory(tree, b"srv/e") == ((12, 34), 0o555)
    assert tree.get(b"srv/f") is None
    assert isinstance(tree.get(b"run/x"), Tree)


def test_a_definition_may_name_a_declared_user(store: Path, local: LocalStore) -> None:
    tree, files = planned(local, package(store, "postgresql", _POSTGRES))
    before = tree.get(b"etc/passwd")
    number = int(lines(tree, b"etc/passwd")["postgres"][0])
    assert add_user_files(tree, files, "postgres", None, []) == (number, number)
    assert tree.get(b"etc/passwd") == before
    assert directory(tree, b"var/lib/postgresql")[0] == (number, number)


@pytest.mark.parametrize(
    "declarations",
    [
        {f"sysusers.d/{number}.conf": "" for number in range(513)},
        {"sysusers.d/a.conf": "\n" * 8192},
        {"tmpfiles.d/a.conf": "\n" * 4096, "tmpfiles.d/b.conf": "\n" * 4096},
        {"sysusers.d/a.conf": "x" * 65537},
    ],
)
def test_declarations_are_limited(store: Path, local: LocalStore, declarations: Mapping[str, str]) -> None:
    with pytest.raises(UnsafeContents, match="more than"):
        planned(local, package(store, "p", declarations))


def test_files_outside_of_the_image_are_not_read(store: Path, local: LocalStore) -> None:
    path = package(store, "p", {"sysusers.d/x.txt": "u text -"})
    secret = store.parent / "secret"
    secret.write_text("u secret -\n")
    (store / path.base_name / "lib/sysusers.d/a.conf").symlink_to(secret)
    tree, _ = planned(local, path)
    assert "secret" not in lines(tree, b"etc/passwd")
    assert "text" not in lines(tree, b"etc/passwd")


def test_an_account_without_a_free_number_is_refused(store: Path, local: LocalStore) -> None:
    taken = "".join(f"a{number}:x:{number}:0::/:\n" for number in range(1000))
    with pytest.raises(UnsafeContents, match="no number is left for the account web"):
        planned(
            local,
            package(store, "p", {"../etc/passwd": taken, "sysusers.d/web.conf": "u web -\n"}),
        )


def test_declarations_of_many_files_are_bounded_together(store: Path, local: LocalStore) -> None:
    files = {f"sysusers.d/{number}.conf": "#" * 60_000 for number in range(20)}
    with pytest.raises(UnsafeContents, match=r"more than 1,048,576 bytes in lib/sysusers\.d"):
        planned(local, package(store, "p", files))


def test_the_first_entry_of_a_name_or_a_number_counts(store: Path, local: LocalStore) -> None:
    contents = {
        "../etc/group": "one:x:5:\ntwo:x:5:a\none:x:6:\n",
        "../etc/passwd": "web:x:7:5::/:\n",
        "sysusers.d/x.conf": "m web one\nm web two\n",
    }
    tree, _ = planned(local, package(store, "p", contents))
    group = tree.get(b"etc/group")
    assert isinstance(group, Content)
    assert group.content == b"one:x:5:web\ntwo:x:5:a,web\none:x:6:\n"


@pytest.mark.security
def test_a_line_of_a_group_is_read_and_written_once(
    store: Path, local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have a megabyte of members, and thousands of others may be added, each of which took 20 ms."""
    split = []

    def counted(line: str, file: bytes) -> list[str]:
        split.append(line)
        return padded(line, file)

    padded = accounts._padded
    monkeypatch.setattr(accounts, "_padded", counted)
    contents = {
        "../etc/group": "one:x:5:a,,b\n",
        "sysusers.d/x.conf": "".join(
            f"u u{number}\nm u{number} one\nm u{number} one\n" for number in range(50)
        ),
    }
    tree, _ = planned(local, package(store, "p", contents))
    group = tree.get(b"etc/group")
    assert isinstance(group, Content)
    assert group.content.startswith(b"one:x:5:a,b,u0,u1,")
    assert len([line for line in split if line.startswith("one:")]) <= 2
