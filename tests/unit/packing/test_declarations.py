"""Accounts and directories that packages declare reach the image's root; the store is a temporary directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixery.closure import StorePath
from nixery.errors import UnsafeContents
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.declarations import add_declared
from nixery.packing.root_filesystem import Content, InstalledOutput, Tree, plan_root_filesystem
from nixery.packing.system_files import add_system_files


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tmp_path / "store"
    store.mkdir()
    return store


def planned(store: Path, *packages: dict[str, str]) -> Tree:
    """Plan the root of packages, whose files are given by name."""
    paths = [StorePath(f"{number:a>32}-p{number}") for number in range(len(packages))]
    for path, contents in zip(paths, packages, strict=True):
        (store / path.base_name).mkdir()
        for name, content in contents.items():
            place = store / path.base_name / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content)
    with ClosureFiles(paths, bytes(store)) as files:
        tree = plan_root_filesystem((InstalledOutput(path, path.name, 5) for path in paths), files).tree
        add_system_files(tree, files)
        add_declared(tree, files)
    return tree


def lines(tree: Tree, name: str) -> dict[str, str]:
    content = tree.get(f"etc/{name}".encode())
    assert isinstance(content, Content)
    return {line.partition(":")[0]: line for line in content.content.decode().splitlines()}


def directory(tree: Tree, name: str) -> tuple[int, tuple[int, int]] | None:
    node = tree.get(name.encode())
    return (node.mode, node.owner) if isinstance(node, Tree) else None


def sysusers(text: str, name: str = "p") -> dict[str, str]:
    return {f"lib/sysusers.d/{name}.conf": text}


def test_accounts_are_added_to_those_of_every_image(store: Path) -> None:
    tree = planned(
        store, sysusers('g adm 4\nu www-data 33 "Web" /var/www -\nm www-data adm\n# comment\nu bad "open\n')
    )
    assert lines(tree, "passwd")["www-data"] == "www-data:x:33:33:Web:/var/www:/usr/sbin/nologin"
    assert lines(tree, "group")["www-data"] == "www-data:x:33:"
    assert lines(tree, "group")["adm"] == "adm:x:4:www-data"
    assert lines(tree, "passwd")["root"].startswith("root:x:0:0:")


def test_an_account_keeps_its_number_when_other_packages_are_added(store: Path) -> None:
    alone = planned(store, sysusers('u redis - "" /var/lib/redis -\n'))
    (number,) = {
        line.split(":")[2] for line in [lines(alone, "passwd")["redis"], lines(alone, "group")["redis"]]
    }
    assert 100 <= int(number) < 900
    others = "".join(f"u user{i} -\n" for i in range(50))
    (store / "other").mkdir()
    together = planned(store / "other", sysusers("u redis -\n"), sysusers(others, "q"))
    assert lines(together, "passwd")["redis"].split(":")[2] == number
    numbers = [line.split(":")[2] for line in lines(together, "passwd").values()]
    assert len(set(numbers)) == len(numbers)


def test_groups_of_users_may_be_named_and_members_added(store: Path) -> None:
    tree = planned(store, sysusers("u sshd -:nogroup\nu x 700:staff\ng staff 50\nm x users\n"))
    assert lines(tree, "passwd")["sshd"].split(":")[3] == "65534"
    assert lines(tree, "passwd")["x"].startswith("x:x:700:50:")
    assert lines(tree, "group")["users"].endswith(":x")


def test_accounts_that_the_image_has_stay(store: Path) -> None:
    tree = planned(
        store, {"etc/passwd": "root:x:0:0::/:/bin/sh\nweb:x:5:5::/:/bin/sh", **sysusers("u web 6\nu new 5\n")}
    )
    assert lines(tree, "passwd")["web"] == "web:x:5:5::/:/bin/sh"
    assert lines(tree, "passwd")["new"].split(":")[2] != "5"


@pytest.mark.parametrize(
    "line",
    ["u a:b 7", "u 'a b' 7", "u %u 7", "u -x 7", "x web 7", "u", "u ../x 7", f"u {'a' * 33} 7", "'' web 7"],
)
def test_malformed_lines_add_nothing(store: Path, line: str) -> None:
    assert set(lines(planned(store, sysusers(line)), "passwd")) == {"root", "daemon", "bin", "nobody"}


@pytest.mark.parametrize(
    "line",
    ['u web 7 "a:b" /bad:home /bin/x:y', "u web 7 \"a\tb\" '/a b' relative", "u web 99999999999999999999"],
)
def test_fields_cannot_break_a_line(store: Path, line: str) -> None:
    found = lines(planned(store, sysusers(line)), "passwd")["web"].split(":")
    assert len(found) == 7
    assert found[4:] == ["", "/", "/usr/sbin/nologin"]


def test_directories_get_their_owners(store: Path) -> None:
    tree = planned(
        store,
        sysusers("u redis 200\n"),
        {
            "lib/tmpfiles.d/redis.conf": "d /run/redis 2755 redis redis - -\nd /var/run/other/x 0700 redis - -\n"
            "d /var/lib/redis 0750 redis redis\nd! /var/log/redis - 7 root\n"
        },
        {"var/lib/redis/empty": ""},
    )
    assert directory(tree, "run/redis") == (0o2755, (200, 200))
    assert directory(tree, "run/other/x") == (0o700, (200, 0))
    assert directory(tree, "var/lib/redis") == (0o750, (200, 200))
    assert directory(tree, "var/log/redis") == (0o755, (7, 0))


@pytest.mark.parametrize(
    "line",
    [
        "d /nix/store/x 0777 root root", "d /usr/bin 0777 root root", "d /var/../nix 0777 root root", "d /var/x 9999 root root",
        "d /var/x 0755 nosuchuser root", "L /var/x - - - - /nix", "d /var/%u 0755 root root", "d relative 0755 root root",
    ],
)  # fmt: skip
def test_other_lines_and_places_are_ignored(store: Path, line: str) -> None:
    tree = planned(store, {"lib/tmpfiles.d/x.conf": line})
    assert directory(tree, "var/x") is None
    assert directory(tree, "nix") is None
    assert directory(tree, "bin") == (0o755, (0, 0))


@pytest.mark.parametrize(
    "contents",
    [
        sysusers("x" * (1 << 17)),
        sysusers("u a -\n" * 5000),
        {f"lib/sysusers.d/{number}.conf": "" for number in range(1100)},
        {"lib/tmpfiles.d/x.conf": "d /var/x\n" * 5000},
        {f"lib/sysusers.d/{number}.conf": "\n" * 60_000 for number in range(20)},
        sysusers("u 'a\n" * 5000),
    ],
)
def test_declarations_are_bounded(store: Path, contents: dict[str, str]) -> None:
    with pytest.raises(UnsafeContents):
        planned(store, contents)


def test_an_account_without_a_free_number_is_refused(store: Path) -> None:
    # A StopIteration out of a thread made the build, and its slot, wait forever.
    taken = "".join(
        f"u{number}:x:{number}:0::/:/bin/sh\n" for number in (*range(1000), *range(60_000, 65_000))
    )
    with pytest.raises(UnsafeContents, match="no number is left for the account web"):
        planned(store, {"etc/passwd": taken, **sysusers("u web -\n")})


def test_members_of_several_groups_keep_their_order(store: Path) -> None:
    tree = planned(store, {"etc/group": "a:x:1:z\nb:x:2:\n"}, sysusers("m y b\nm x a\nm z a\nm x b\nm y a\n"))
    assert lines(tree, "group")["a"] == "a:x:1:z,x,y"
    assert lines(tree, "group")["b"] == "b:x:2:x,y"
