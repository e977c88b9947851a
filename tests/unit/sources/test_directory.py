"""Directories: every change that Nix could see changes the pin, and nothing else does."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nixery.errors import EvaluationFailed, PackageSetChanged, SourceUnreachable
from nixery.nix.packages import NixFiles
from nixery.sources.directory import DirectorySource, Fingerprint
from nixery.sources.source import Pin
from tests.support.repository import Repository


@pytest.fixture
def package_set(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "default.nix").write_text("1")
    return tmp_path / "set"


async def test_every_tag_means_the_current_state(package_set: Path) -> None:
    source = DirectorySource(package_set, os.environ)
    assert source.reference("latest") == source.reference("v1")
    assert source.reference("latest").moving


async def test_a_pin_identifies_the_content(package_set: Path) -> None:
    source = DirectorySource(package_set, os.environ)
    pin = await source.resolve(source.reference("latest"))
    assert pin == await source.resolve(source.reference("latest"))
    async with source.open(pin) as path:
        assert path == NixFiles(package_set, self_contained=False)
    (package_set / "default.nix").write_text("2")
    assert pin != await source.resolve(source.reference("latest"))


async def test_an_outdated_pin_is_refused(package_set: Path) -> None:
    source = DirectorySource(package_set, os.environ)
    pin = await source.resolve(source.reference("latest"))
    (package_set / "default.nix").write_text("2")
    with pytest.raises(PackageSetChanged):
        async with source.open(pin):
            pytest.fail("it was opened")


async def test_a_change_during_use_is_detected(package_set: Path) -> None:
    source = DirectorySource(package_set, os.environ)
    pin = await source.resolve(source.reference("latest"))
    with pytest.raises(PackageSetChanged):
        async with source.open(pin):
            (package_set / "default.nix").write_text("2")


async def test_a_failure_during_a_change_is_reported_as_a_change(package_set: Path) -> None:
    # The change was incomplete, so Nix reported an error.
    source = DirectorySource(package_set, os.environ)
    pin = await source.resolve(source.reference("latest"))
    opened = source.open(pin)
    await opened.__aenter__()
    (package_set / "default.nix").write_text("2")
    error = EvaluationFailed(())
    with pytest.raises(PackageSetChanged):
        await opened.__aexit__(EvaluationFailed, error, None)
    pin = await source.resolve(source.reference("latest"))
    with pytest.raises(EvaluationFailed):
        async with source.open(pin):
            raise EvaluationFailed(())


async def test_moving_a_symlink_changes_the_package_set(package_set: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "default.nix").write_text("2")
    current = tmp_path / "current"
    current.symlink_to(package_set)
    source = DirectorySource(current, os.environ)
    before = await source.resolve(source.reference("latest"))
    current.unlink()
    current.symlink_to(other)
    after = await source.resolve(source.reference("latest"))
    assert before != after
    async with source.open(after) as path:
        assert path == NixFiles(other, self_contained=False)


async def test_a_missing_directory_is_unreachable(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path / "gone", os.environ)
    with pytest.raises(SourceUnreachable) as raised:
        await source.resolve(source.reference("latest"))
    assert str(tmp_path) not in str(raised.value)


async def test_the_revision_of_a_working_tree_is_its_commit(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    (repository.directory / "set").mkdir()
    package_set = repository.directory / "set" / "default.nix"
    package_set.write_text("1")
    first = repository.commit("1.0")
    source = DirectorySource(package_set.parent, os.environ)

    async def pin() -> Pin:
        return await source.resolve(source.reference("latest"))

    clean = await pin()
    assert (clean.revision, clean.created, clean.url) == (first, 1_700_000_000, None)
    package_set.write_text("2")
    dirty = await pin()
    assert dirty.revision == f"{first}-dirty"
    package_set.write_text("3")
    assert (await pin()).revision == dirty.revision
    assert (await pin()).identity != dirty.identity
    second = repository.commit("1.1")
    # The revision is looked up again only when the content has changed, so the next server notices a commit
    # alone.
    assert (
        await DirectorySource(package_set.parent, os.environ).resolve(source.reference("x"))
    ).revision == second
    # A commit elsewhere in the repository does not count for this directory.
    repository.commit("1.2")
    assert (
        await DirectorySource(package_set.parent, os.environ).resolve(source.reference("x"))
    ).revision == second


@pytest.mark.security
async def test_no_program_runs_whose_configuration_changes_meanwhile(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    commit = repository.commit("1.0")
    (repository.directory / ".git/info/attributes").write_text("* filter=x\n")
    (repository.directory / "default.nix").touch()  # git has to read its content
    git = tmp_path / "bin" / "git"
    git.parent.mkdir()
    configuration = f'[filter "x"]\n\tclean = touch {tmp_path}/ran && cat\n'
    # Each git that ends finds another configuration than the next one.
    git.write_text(
        f'#!/bin/sh\n{shutil.which("git")} "$@"\nstatus=$?\n'
        f"echo '{configuration}' >> {repository.directory}/.git/config\nexit $status\n"
    )
    git.chmod(0o755)
    source = DirectorySource(
        repository.directory, {**os.environ, "PATH": f"{git.parent}:{os.environ['PATH']}"}
    )
    assert (await source.resolve(source.reference("latest"))).revision == commit
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["of a worktree", "with a split index", "sha256", "with exclusions"])
async def test_the_revision_of_an_unusual_working_tree(tmp_path: Path, kind: str) -> None:
    repository = Repository(tmp_path / "repository")
    if kind == "sha256":
        shutil.rmtree(repository.directory / ".git")
        repository.git("init", "--quiet", "--object-format=sha256")
    commit = repository.commit("1.0")
    directory = repository.directory
    if kind == "of a worktree":
        directory = tmp_path / "worktree"
        repository.git("worktree", "add", "--quiet", "--detach", str(directory), commit)
    if kind == "with a split index":
        repository.git("update-index", "--split-index")
    if kind == "with exclusions":
        (directory / ".git/info/exclude").write_text("result\n")
        (directory / "result").write_text("")
        repository.git("config", "core.autocrlf", "true")
        package_set = directory / "default.nix"
        package_set.write_bytes(package_set.read_bytes().replace(b"\n", b"\r\n"))
        repository.git("add", "--all")
        package_set.touch()  # git has to read its content

    async def revision() -> str:
        source = DirectorySource(directory, os.environ)
        return (await source.resolve(source.reference("latest"))).revision

    assert await revision() == commit
    (directory / "other.nix").write_text("1")
    assert await revision() == f"{commit}-dirty"


async def test_changes_after_reading_ahead_are_seen(package_set: Path) -> None:
    source = DirectorySource(package_set, os.environ)
    await source.look_ahead()
    before = await source.resolve(source.reference("latest"))
    (package_set / "default.nix").write_text("changed since")
    assert await source.resolve(source.reference("latest")) != before


async def test_reading_ahead_ignores_a_missing_directory(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path / "set", os.environ)
    await source.look_ahead()
    (tmp_path / "set").mkdir()
    assert (await source.resolve(source.reference("latest"))).identity


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    (root / "pkgs").mkdir(parents=True)
    (root / "default.nix").write_text("{ system }: { }")
    (root / "pkgs" / "hello.nix").write_text("1")
    (root / "pkgs" / "build.sh").write_text("exit")
    (root / "link").symlink_to("pkgs/hello.nix")
    (root / "empty").mkdir()
    return root


def rewrite_with_old_time_stamps(path: Path) -> None:
    status = path.stat()
    path.write_text("2")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def put_in_place(path: Path, symlink_to: str | None = None) -> None:
    path.unlink()
    if symlink_to:
        path.symlink_to(symlink_to)
    else:
        path.write_text("1")


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda root: (root / "pkgs/hello.nix").write_text("2"),
    "content of the same size with the same time stamp": lambda root: rewrite_with_old_time_stamps(
        root / "pkgs/hello.nix"
    ),
    "new file": lambda root: (root / "pkgs/new.nix").touch(),
    "hidden file": lambda root: (root / ".version").touch(),
    "new directory": lambda root: (root / "pkgs/new").mkdir(),
    "lost file": lambda root: (root / "pkgs/hello.nix").unlink(),
    "lost directory": lambda root: (root / "empty").rmdir(),
    "new name": lambda root: (root / "pkgs/hello.nix").rename(root / "pkgs/hallo.nix"),
    "moved": lambda root: (root / "pkgs/hello.nix").rename(root / "hello.nix"),
    "executable": lambda root: (root / "pkgs/build.sh").chmod(0o755),
    "link leads elsewhere": lambda root: put_in_place(root / "link", symlink_to="default.nix"),
    "file instead of link": lambda root: put_in_place(root / "link"),
    "two names swapped": lambda root: (
        (root / "pkgs/hello.nix").write_text("exit"),
        (root / "pkgs/build.sh").write_text("1"),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_changes_the_fingerprint(tree: Path, change: Callable[[Path], object]) -> None:
    fingerprint = Fingerprint()
    before = fingerprint.of(tree)
    change(tree)
    assert fingerprint.of(tree) != before
    assert fingerprint.of(tree) == Fingerprint().of(tree)


def test_irrelevant_changes_do_not_change_the_fingerprint(tree: Path, tmp_path: Path) -> None:
    before = Fingerprint().of(tree)
    os.utime(tree / "default.nix")
    (tree / "default.nix").chmod(0o600)
    (tree / ".git").mkdir()
    (tree / ".git" / "index").touch()
    (tree / "pkgs" / "__pycache__").mkdir()
    assert Fingerprint().of(tree) == before
    copy = shutil.copytree(tree, tmp_path / "elsewhere" / "copy", symlinks=True)
    assert Fingerprint().of(copy) == before


def test_targets_of_symlinks_outside_of_the_tree_are_covered(tree: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "lib.nix").write_text("1")
    (tree / "pkgs" / "lib").symlink_to(shared)
    (tree / "single.nix").symlink_to(shared / "lib.nix")
    (shared / "round").symlink_to(shared)
    before = Fingerprint().of(tree)
    (shared / "lib.nix").write_text("2")
    assert Fingerprint().of(tree) != before


def test_dangling_symlinks_and_symlinks_to_a_parent_are_not_followed(tree: Path) -> None:
    for number, target in enumerate(["/nowhere", "loop", "..", "/", "/nix/store/x"]):
        (tree / f"link{number}").symlink_to(target)
    (tree / "loop").symlink_to("loop")
    assert Fingerprint().of(tree)


def test_the_tree_itself_may_be_a_symlink(tree: Path, tmp_path: Path) -> None:
    current = tmp_path / "current"
    current.symlink_to(tree)
    assert Fingerprint().of(current) == Fingerprint().of(tree)


def test_the_fingerprint_of_a_single_file(tree: Path) -> None:
    before = Fingerprint().of(tree / "default.nix")
    (tree / "default.nix").write_text("{ }")
    assert Fingerprint().of(tree / "default.nix") != before


def test_unchanged_files_are_read_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Time stamps of the last two seconds are not trusted; advancing the clock makes these older.
    fingerprint = Fingerprint()
    now = (tree / "default.nix").stat().st_ctime_ns
    monkeypatch.setattr("nixery.sources.directory.time.time_ns", lambda: now + 10_000_000_000)
    before = fingerprint.of(tree)
    read: list[object] = []
    monkeypatch.setattr("nixery.sources.directory.hashlib.file_digest", lambda *file: read.append(file))
    assert fingerprint.of(tree) == before
    assert read == []


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Fingerprint().of(tmp_path / "nothing")


def test_pipes_and_devices_are_not_opened(tree: Path) -> None:
    before = Fingerprint().of(tree)
    os.mkfifo(tree / "pipe")
    (tree / "to-a-pipe").symlink_to("pipe")
    assert Fingerprint().of(tree) != before  # the fingerprint includes the link


def test_a_file_that_becomes_a_pipe(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.lstat

    def lstat_then_replace(path: bytes) -> os.stat_result:
        status = original(path)
        place = Path(os.fsdecode(path))
        if place.name == "default.nix" and not place.is_fifo():
            place.unlink()
            os.mkfifo(place)
        return status

    monkeypatch.setattr("nixery.sources.directory.os.lstat", lstat_then_replace)
    with pytest.raises(OSError, match="replaced"):
        Fingerprint().of(tree)


def test_a_file_that_becomes_a_link(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.lstat

    def lstat_then_replace(path: bytes) -> os.stat_result:
        status = original(path)
        place = Path(os.fsdecode(path))
        if place.name == "default.nix" and not place.is_symlink():
            place.unlink()
            place.symlink_to(tmp_path / "elsewhere")
        return status

    (tmp_path / "elsewhere").write_text("secret")
    monkeypatch.setattr("nixery.sources.directory.os.lstat", lstat_then_replace)
    with pytest.raises(OSError, match="symbolic links"):
        Fingerprint().of(tree)


@pytest.mark.parametrize("target", ["/proc", "/proc/kcore", "/sys", "/dev", "/dev/zero"])
def test_generated_file_systems_are_not_read(tree: Path, target: str) -> None:
    (tree / "made-up").symlink_to(target)
    assert Fingerprint().of(tree) == Fingerprint().of(tree)


def test_the_size_of_a_tree_is_limited(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, value in {"_MOST_ENTRIES": 3, "_MOST_BYTES": 5}.items():
        with monkeypatch.context() as patch:
            patch.setattr(f"nixery.sources.directory.{limit}", value)
            with pytest.raises(OSError, match="too"):
                Fingerprint().of(tree)


def test_symlinks_lead_to_a_limited_number_of_trees(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nixery.sources.directory._MOST_TREES", 10)
    for number in range(20):
        (tmp_path / f"other{number}").mkdir()
        (tree / f"link{number}").symlink_to(tmp_path / f"other{number}")
    with pytest.raises(OSError, match="too many"):
        Fingerprint().of(tree)
