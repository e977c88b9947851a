"""The store is a temporary directory here: only what the planner reads from disk matters."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nixery.closure import StorePath
from nixery.errors import UnsafeContents
from nixery.packing import closure_files, root_filesystem
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.local_store import LocalStore
from nixery.packing.root_filesystem import (
    BASE_DIRECTORIES,
    Directory,
    Entry,
    GeneratedFile,
    InstalledOutput,
    NameClash,
    RootFilesystem,
    Symlink,
    Tree,
    complete_below_usr,
    plan_root_filesystem,
)
from nixery.packing.system_files import add_system_files


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tmp_path / "store"
    store.mkdir()
    return store


def package(store: Path, name: str, *files: str, links: dict[str, str] | None = None) -> StorePath:
    path = StorePath(f"{name:a>32}-{name}")
    root = store / path.base_name
    root.mkdir()
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(name)
    for link, target in (links or {}).items():
        (root / link).parent.mkdir(parents=True, exist_ok=True)
        (root / link).symlink_to(target)
    return path


def planned(store: Path, outputs: Sequence[InstalledOutput], closure: Sequence[StorePath]) -> RootFilesystem:
    with LocalStore(bytes(store)) as contents:
        files = ClosureFiles(closure, contents)
        root = plan_root_filesystem(outputs, files)
        add_system_files(root.tree, files)
        complete_below_usr(root.tree)
        return root


def plan(store: Path, *paths: StorePath, priorities: dict[StorePath, int] | None = None) -> RootFilesystem:
    outputs = [InstalledOutput(path, path.name, (priorities or {}).get(path, 5)) for path in paths]
    return planned(store, outputs, paths)


def by_name(root: RootFilesystem) -> dict[str, Entry]:
    return {entry.name.decode(): entry for entry in root.entries()}


def link(entry: Entry) -> str:
    assert isinstance(entry, Symlink)
    return entry.target.decode()


def test_programs_are_links_in_a_real_directory(store: Path) -> None:
    git = package(store, "git", "bin/git")
    entries = by_name(plan(store, git))
    assert isinstance(entries["bin"], Directory)
    assert link(entries["bin/git"]) == f"{git}/bin/git"


@pytest.mark.parametrize("top", ["share", "lib", "libexec", "include"])
def test_directories_of_one_package_are_real_to_the_third_level_below_the_base(store: Path, top: str) -> None:
    a = package(store, "a", f"{top}/a/15/extension/sql/x", f"{top}/a/15/extension/y", f"usr/{top}/b/c/d/e/f")
    entries = by_name(plan(store, a))
    for real in ("a", "a/15", "a/15/extension", "b", "b/c", "b/c/d"):
        assert isinstance(entries[f"usr/{top}/{real}"], Directory)
    assert link(entries[f"usr/{top}/a/15/extension/y"]) == f"{a}/{top}/a/15/extension/y"
    assert link(entries[f"usr/{top}/a/15/extension/sql"]) == f"{a}/{top}/a/15/extension/sql"
    assert link(entries[f"usr/{top}/b/c/d/e"]) == f"{a}/usr/{top}/b/c/d/e"
    assert f"usr/{top}/a/15/extension/sql/x" not in entries


def test_directories_of_several_packages_are_merged(store: Path) -> None:
    a, b = (
        package(store, "a", "share/1/2/3/4/5/a"),
        package(store, "b", "share/1/2/3/4/5/b", "share/1/2/3/4/6/b"),
    )
    entries = by_name(plan(store, a, b))
    assert link(entries["usr/share/1/2/3/4/5/a"]) == f"{a}/share/1/2/3/4/5/a"
    assert link(entries["usr/share/1/2/3/4/5/b"]) == f"{b}/share/1/2/3/4/5/b"
    assert link(entries["usr/share/1/2/3/4/6"]) == f"{b}/share/1/2/3/4/6"


@pytest.mark.parametrize("top", ["etc", "var"])
def test_every_directory_below_etc_and_var_is_real(store: Path, top: str) -> None:
    entries = by_name(plan(store, package(store, "a", f"{top}/1/2/3/4/5/6/x")))
    assert isinstance(entries[f"{top}/1/2/3/4/5/6"], Directory)


def test_base_directories_are_real_in_every_image(store: Path) -> None:
    elsewhere = dict.fromkeys(("home", "lib", "opt", "share", "srv", "var", "usr/bin"), "/somewhere")
    files = ("etc/ssl", "include", "media", "sbin")
    root = plan(store, package(store, "a", *files, links=elsewhere))
    assert root.clashes == ()
    entries, empty = by_name(root), by_name(plan(store))
    for name, mode in BASE_DIRECTORIES.items():
        assert entries[name.decode()] == empty[name.decode()] == Directory(name, mode)
    old_names = {name: link(entries[name]) for name in ("include", "libexec", "share", "var/lock", "var/run")}
    assert old_names == {
        "include": "usr/include",
        "libexec": "usr/libexec",
        "share": "usr/share",
        "var/lock": "../run/lock",
        "var/run": "../run",
    }


def test_a_file_in_place_of_a_base_directory_loses(store: Path) -> None:
    root = plan(store, package(store, "a", "share", "lib"), package(store, "b", "share/b", "lib/b"))
    assert link(by_name(root)["usr/share/b"]).endswith("-b/share/b")
    assert root.clashes == (NameClash("lib", "b", "a"), NameClash("share", "b", "a"))


def test_names_at_the_top_and_below_usr_lead_to_the_same_files(store: Path, tmp_path: Path) -> None:
    a = package(store, "a", "bin/x", "sbin/y", "lib/liba.so", "lib/a/1", "usr/lib/b/2", "usr/bin/z")
    entries = by_name(plan(store, a))
    names = {
        "bin/x": "bin/x",
        "usr/bin/x": "bin/x",
        "bin/z": "usr/bin/z",
        "usr/bin/z": "usr/bin/z",
        "sbin/y": "sbin/y",
        "usr/sbin/y": "sbin/y",
        "lib/liba.so": "lib/liba.so",
        "usr/lib/liba.so": "lib/liba.so",
        "lib/a/1": "lib/a/1",
        "usr/lib/a/1": "lib/a/1",
        "lib/b/2": "usr/lib/b/2",
        "usr/lib/b/2": "usr/lib/b/2",
    }
    root = tmp_path / "root"
    unpack(entries, root, store)
    for name, file in names.items():
        assert (root / name).resolve() == store / a.base_name / file
    # Of the two names of a directory, that below /usr is the real one.
    assert isinstance(entries["usr/lib/a"], Directory)
    assert link(entries["lib/a"]) == "../usr/lib/a"


def unpack(entries: dict[str, Entry], root: Path, store: Path) -> None:
    """Write a planned root file system, with the store paths where they are."""
    root.mkdir()
    for name, entry in entries.items():
        match entry:
            case Directory():
                (root / name).mkdir()
            case Symlink(_, target):
                (root / name).symlink_to(target.decode().replace("/nix/store", str(store), 1))
            case GeneratedFile(_, content):
                (root / name).write_bytes(content)


def test_a_name_clash_is_decided_by_priority_then_name_and_reported(store: Path) -> None:
    a, b = package(store, "a", "bin/x"), package(store, "b", "bin/x")
    assert link(by_name(plan(store, a, b))["bin/x"]) == f"{a}/bin/x"
    root = plan(store, a, b, priorities={b: 4})
    assert link(by_name(root)["bin/x"]) == f"{b}/bin/x"
    assert root.clashes == (NameClash("bin/x", "b", "a"),)


def test_implicit_packages_lose_every_name_clash(store: Path) -> None:
    own, cacert = package(store, "own", "etc/bundle"), package(store, "cacert", "etc/bundle")
    outputs = [InstalledOutput(cacert, "cacert", 1, implicit=True), InstalledOutput(own, "own", 5)]
    root = planned(store, outputs, [own, cacert])
    assert link(by_name(root)["etc/bundle"]) == f"{own}/etc/bundle"
    # A warning is for a user who misses the file of a requested package.
    assert root.clashes == ()


def test_clashes_of_requested_packages_alone_are_reported(store: Path) -> None:
    names = ("a", "b", "c", "d")
    paths = {name: package(store, name, "bin/x", "share/x") for name in names}
    outputs = [InstalledOutput(paths[name], name, 5, implicit=name in "ab") for name in names]
    root = planned(store, outputs, list(paths.values()))
    assert link(by_name(root)["bin/x"]) == f"{paths['c']}/bin/x"
    assert root.clashes == (NameClash("bin/x", "c", "d"), NameClash("share/x", "c", "d"))


def test_rank_decides_before_the_place_in_a_package(store: Path) -> None:
    requested, dependency = package(store, "z", "usr/bin/x"), package(store, "a", "bin/x")
    outputs = [InstalledOutput(requested, "z", 5), InstalledOutput(dependency, "a", 5, implicit=True)]
    entries = by_name(planned(store, outputs, [requested, dependency]))
    assert link(entries["bin/x"]) == f"{requested}/usr/bin/x"


def test_a_dependency_has_no_names_of_its_own_at_the_top(store: Path) -> None:
    terminals = package(store, "terminals", "x/xterm", "share/terminals/xterm", "bin/tset")
    dependency = InstalledOutput(terminals, "terminals", 5, implicit=True)
    entries = by_name(planned(store, [dependency], [terminals]))
    assert "x" not in entries
    assert {"bin/tset", "usr/share/terminals/xterm"} <= entries.keys()
    requested = replace(dependency, implicit=False)
    assert "x/xterm" in by_name(planned(store, [requested], [terminals]))


def test_two_names_of_one_file_do_not_clash(store: Path) -> None:
    a = package(store, "a", "bin/x")
    b = package(store, "b", links={"bin/x": f"{a}/bin/x"})
    assert plan(store, a, b).clashes == ()


def test_a_file_and_a_directory_clash(store: Path) -> None:
    root = plan(store, package(store, "a", "share/x"), package(store, "b", "share/x/y"))
    assert root.clashes == (NameClash("share/x", "a", "b"),)


def test_links_to_directories_at_the_top_are_entered(store: Path) -> None:
    a = package(store, "a", "bin/x", links={"sbin": "bin"})
    entries = by_name(plan(store, a))
    assert link(entries["sbin/x"]) == f"{a}/sbin/x"


def test_files_of_this_machine_are_not_included(store: Path) -> None:
    a = package(store, "a", "bin/x", links={"etc": "/etc", "opt": "/usr", "loop": "/proc/self/cwd"})
    whole = StorePath("b" * 32 + "-b")
    (store / whole.base_name).symlink_to("/usr")
    entries = by_name(plan(store, a, whole))
    assert link(entries["loop"]) == f"{a}/loop"
    assert set(entries) - set(by_name(plan(store))) == {"bin/x", "usr/bin/x", "loop"}


def test_loops_of_symlinks_end(store: Path) -> None:
    loops = {"share/d/loop": ".", "share/d/up": ".."}
    root = plan(
        store, package(store, "a", "share/d/x", links=loops), package(store, "b", "share/d/y", links=loops)
    )
    assert isinstance(by_name(root)["usr/share/d/loop"], Symlink)


def test_order_changes_nothing(store: Path) -> None:
    paths = [package(store, name, "bin/x", f"share/{name}/f", "etc/conf") for name in ("c", "a", "b")]
    assert list(plan(store, *paths).entries()) == list(plan(store, *paths[::-1]).entries())


def test_files_that_every_system_has_are_added(store: Path) -> None:
    entries = by_name(plan(store, package(store, "a", "nix-support/x", "tmp/x", "proc/x")))
    modes = {name: entry.mode for name, entry in entries.items() if isinstance(entry, Directory)}
    assert (modes["tmp"], modes["var/tmp"], modes["root"]) == (0o1777, 0o1777, 0o700)
    assert not [name for name in entries if name.startswith("nix") or name in ("proc/x", "tmp/x")]
    passwd, nsswitch = entries["etc/passwd"], entries["etc/nsswitch.conf"]
    assert isinstance(passwd, GeneratedFile)
    assert b"nobody:x:65534:65534" in passwd.content
    assert isinstance(nsswitch, GeneratedFile)
    assert b"hosts: files dns" in nsswitch.content


def test_the_locale_of_the_closure_is_found_below_usr(store: Path) -> None:
    a, libc = package(store, "a", "bin/x"), package(store, "libc", "lib/locale/C.utf8/LC_CTYPE")
    entries = by_name(planned(store, [InstalledOutput(a, "a", 5)], [a, libc]))
    assert link(entries["usr/lib/locale/C.utf8"]) == f"{libc}/lib/locale/C.utf8"


def test_locales_of_a_package_leave_room_for_that_of_the_closure(store: Path) -> None:
    german = package(store, "german", "lib/locale/de_DE.utf8/LC_CTYPE")
    libc = package(store, "libc", "lib/locale/C.utf8/LC_CTYPE")
    entries = by_name(planned(store, [InstalledOutput(german, "german", 5)], [german, libc]))
    file = "lib/locale/de_DE.utf8/LC_CTYPE"
    assert link(entries[f"usr/{file}"]) == f"{german}/{file}"
    assert link(entries["usr/lib/locale/C.utf8"]) == f"{libc}/lib/locale/C.utf8"


def test_time_zones_and_locales_of_the_closure_are_found(store: Path) -> None:
    a = package(store, "a", "bin/x")
    tzdata = package(store, "tzdata", "share/zoneinfo/Europe/Berlin")
    locales = package(store, "locales", "lib/locale/locale-archive")
    entries = by_name(planned(store, [InstalledOutput(a, "a", 5)], [a, tzdata, locales]))
    assert link(entries["usr/share/zoneinfo"]) == f"{tzdata}/share/zoneinfo"
    assert link(entries["usr/lib/locale/locale-archive"]) == f"{locales}/lib/locale/locale-archive"


def test_a_packages_own_file_wins(store: Path) -> None:
    a = package(store, "a", "etc/passwd")
    entries = by_name(plan(store, a))
    assert link(entries["etc/passwd"]) == f"{a}/etc/passwd"
    assert isinstance(entries["etc/group"], GeneratedFile)


def test_a_package_may_have_its_files_below_usr(store: Path) -> None:
    a, b = package(store, "a", "usr/bin/x", "usr/libexec/y"), package(store, "b", "bin/x", "usr/bin/z")
    root = plan(store, a, b)
    entries = by_name(root)
    assert link(entries["bin/x"]) == f"{a}/usr/bin/x"
    assert link(entries["bin/z"]) == f"{b}/usr/bin/z"
    assert link(entries["usr/libexec/y"]) == f"{a}/usr/libexec/y"
    assert root.clashes == (NameClash("bin/x", "a", "b"),)


def test_links_to_directories_in_etc_are_entered(store: Path) -> None:
    z = package(store, "z", "conf/openssl.cnf", "conf/certs/mine", links={"etc/ssl": "../conf"})
    ca = package(store, "ca", "etc/ssl/certs/ca-bundle.crt")
    root = plan(store, z, ca)
    entries = by_name(root)
    assert link(entries["etc/ssl/openssl.cnf"]) == f"{z}/etc/ssl/openssl.cnf"
    assert link(entries["etc/ssl/certs/mine"]) == f"{z}/etc/ssl/certs/mine"
    assert link(entries["etc/ssl/certs/ca-certificates.crt"]) == f"{ca}/etc/ssl/certs/ca-bundle.crt"
    assert root.clashes == ()


def test_a_shell_of_the_closure_is_bin_sh(store: Path) -> None:
    a, dash = package(store, "a", "bin/x"), package(store, "dash", "bin/sh")
    output = [InstalledOutput(a, "a", 5)]
    with_shell = by_name(planned(store, output, [a, dash]))
    assert link(with_shell["bin/sh"]) == f"{dash}/bin/sh"
    assert "bin/sh" not in by_name(planned(store, output, [a]))


def test_a_symlink_to_the_shell_of_this_machine_is_ignored(store: Path) -> None:
    a, dash = package(store, "a", links={"bin/sh": "/bin/sh"}), package(store, "dash", "bin/sh")
    output = [InstalledOutput(a, "a", 5)]
    assert link(by_name(planned(store, output, [a, dash]))["bin/sh"]) == f"{dash}/bin/sh"
    assert "bin/sh" not in by_name(planned(store, output, [a]))


def test_a_shell_outside_of_the_closure_is_ignored(store: Path) -> None:
    a = package(store, "a", links={"share/x": "y", "bin/sh": "/bin/sh"})
    b = package(store, "b", "bin/x")
    outside = planned(store, [InstalledOutput(b, "b", 5)], [a, b])
    assert (store / a.base_name / "bin/sh").exists()
    assert "bin/sh" not in by_name(outside)


def test_links_of_a_package_that_leave_the_closure_are_not_entered(store: Path, tmp_path: Path) -> None:
    (tmp_path / "outside" / "d").mkdir(parents=True)
    (tmp_path / "outside" / "secret").touch()
    foreign = package(store, "foreign", "bin/foreign", "etc/foreign", "share/x/y")
    for target in (f"{tmp_path}/outside", f"{foreign}", f"../{foreign.base_name}", "../../outside"):
        links = dict.fromkeys(("bin", "etc", "share", "usr", "lib", "opt"), target)
        a = package(store, f"p{abs(hash(target))}", links=links)
        assert list(plan(store, a).entries()) == list(plan(store).entries())


def test_symlinks_are_compared_within_the_closure_only(store: Path) -> None:
    a, b = (package(store, name, links={"bin/sh": "/bin/sh", "bin/x": "/bin/sh"}) for name in ("a", "b"))
    assert [clash.name for clash in plan(store, a, b).clashes] == ["bin/sh", "bin/x"]


def test_the_depth_of_merged_directories_is_limited(store: Path) -> None:
    fine, deep = "share/" + "d/" * 126 + "f", "share/" + "d/" * 127 + "f"
    plan(store, package(store, "a", fine), package(store, "b", fine))
    with pytest.raises(UnsafeContents, match="below more than 128 directories"):
        plan(store, package(store, "c", deep), package(store, "d", deep))
    with pytest.raises(UnsafeContents, match="below more than 128 directories"):
        plan(store, package(store, "f", deep.replace("share", "etc")))


def test_reported_clashes_are_limited(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_filesystem, "_MOST_CLASHES", 5)
    files = [f"bin/{number}" for number in range(10)]
    a, b = package(store, "a", *files), package(store, "b", *files)
    root = plan(store, a, b)
    assert [clash.name for clash in root.clashes] == files[:5]
    assert {link(by_name(root)[file]) for file in files} == {f"{a}/{file}" for file in files}


def test_a_definition_may_have_deeper_directories(store: Path) -> None:
    root = plan(store, package(store, "a", "bin/x"))
    root.tree.add(b"/".join([b"d"] * 2000), Tree())
    assert [entry.name for entry in root.entries()].count(b"/".join([b"d"] * 2000)) == 1


def test_names_are_bounded(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closure_files, "_MOST_LISTED", 100)
    # Ten links to one directory of ten names.
    a = package(store, "a", *(f"share/{n}" for n in range(10)), links={f"l{n}": "share" for n in range(10)})
    with pytest.raises(UnsafeContents, match="more than 100 names"):
        plan(store, a)


def test_a_name_too_long_for_a_link_is_refused(store: Path) -> None:
    fine = "/".join(["share", *["c" * 250] * 15, "file"])
    plan(store, package(store, "a", fine), package(store, "b", fine))
    packages = [package(store, name, "share/x") for name in "cd"]
    for path in packages:
        make_deeper(store / path.base_name / "share", 17)
    with pytest.raises(UnsafeContents, match="its name has more than 4,095 bytes"):
        plan(store, *packages)


def make_deeper(directory: Path, levels: int) -> None:
    """Make nested directories whose full name exceeds the kernel's limit."""
    above = os.open(directory, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("c" * 250, dir_fd=above)
        below = os.open("c" * 250, os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = below
    os.close(above)
