"""The outputs of ``nixery build``."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from nixery.cli.build import FileOutput, check_outputs, parse_output, split_name
from nixery.errors import StorageError
from nixery.push.client import Target


def test_an_output_is_a_file_a_directory_or_a_target(tmp_path: Path) -> None:
    archive, directory = (
        FileOutput(tmp_path / "a.tar", archive=True),
        FileOutput(tmp_path / "a", archive=False),
    )
    assert parse_output(f"oci-archive:{tmp_path}/a.tar", "1") == archive
    assert parse_output(f"docker-archive:{tmp_path}/a.tar", "1") == archive
    assert parse_output(f"{tmp_path}/a.tar", "1") == archive
    assert parse_output(f"oci:{tmp_path}/a", "1") == directory
    assert parse_output(f"{tmp_path}/a", "1") == directory
    assert parse_output("registry:a.example/b", "1") == Target("a.example", "b", "1")
    assert parse_output("registry:a.example/b:2", "1") == Target("a.example", "b", "2")


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("oci:", "oci:DIR"),
        ("oci-archive:", "oci-archive:FILE"),
        ("docker-archive", r"docker-archive:FILE; a path is written \./docker-archive"),
        ("registry", "registry:HOST"),
    ],
)
def test_an_output_without_a_place_is_refused(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        parse_output(text, "latest")


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("foo:bar", r"\./foo:bar"),
        ("zip:bar.zip", "oci-archive"),
        ("oci_archive:x", "did you mean oci-archive"),
    ],
)
def test_an_unknown_kind_of_output_is_refused(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        parse_output(text, "latest")


def test_the_host_of_a_registry_is_no_part_of_a_name() -> None:
    assert split_name("shell/git", "") == ("shell/git", "")
    assert split_name("shell/git:15", "") == split_name("shell/git", "15") == ("shell/git", "15")
    for name in ("127.0.0.1:8080/shell/git", "registry.example:443/shell/git:15"):
        with pytest.raises(typer.BadParameter, match=r"give the name without the registry: shell/git"):
            split_name(name, "")


def test_a_path_may_have_a_colon(tmp_path: Path) -> None:
    assert parse_output(f"{tmp_path}/a:b", "1") == FileOutput(tmp_path / "a:b", archive=False)
    assert parse_output("./a:b.tar", "1") == FileOutput(Path.cwd() / "a:b.tar", archive=True)


def test_a_file_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="File name too long"):
        check_outputs([parse_output(f"oci:{tmp_path}/{'a' * 300}", "latest")])


def test_existing_files_missing_directories_and_repeated_files_are_refused(tmp_path: Path) -> None:
    for outputs, message in (
        ([str(tmp_path)], "exists already"),
        ([f"{tmp_path}/none/a"], "there is no directory"),
        ([f"oci:{tmp_path}/a", f"{tmp_path}/a"], "same path"),
    ):
        with pytest.raises(StorageError, match=message):
            check_outputs([parse_output(output, "latest") for output in outputs])
