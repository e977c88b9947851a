"""``nixery popularity``, and servers that use its output."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.nix import PACKAGE_SETS, NixSpy
from tests.support.server import clean_environment

TIMEOUT = 120


class Popularity:
    """The command, with the settings of a test."""

    def __init__(self, settings: Mapping[str, str], directory: Path) -> None:
        self.directory = directory
        self.environment = clean_environment({**settings, "XDG_CACHE_HOME": str(directory / "cache")})

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "nixery", "popularity", *arguments]

    def run(
        self,
        *arguments: str,
        names: str | None = None,
        status: int = 0,
        given: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        stdin = ("--packages", "-") if names is not None else ()
        completed = subprocess.run(
            self.command(*stdin, *arguments),
            env={**self.environment, **(given or {})},
            input=names or "",
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            cwd=self.directory,
        )
        assert completed.returncode == status, completed
        assert "Traceback" not in completed.stderr, completed.stderr
        return completed

    def counts(
        self, *arguments: str, names: str | None = None, given: Mapping[str, str] | None = None
    ) -> dict[str, int]:
        counts = json.loads(self.run(*arguments, names=names, given=given).stdout)
        assert list(counts) == sorted(counts)
        return dict(counts)


@pytest.fixture
def popularity(settings: Mapping[str, str], tmp_path: Path) -> Popularity:
    return Popularity(settings, tmp_path)


@pytest.fixture
def many(settings: Mapping[str, str], tmp_path: Path) -> Popularity:
    """The command for a set of 4,100 names, which are three slow batches."""
    directory = tmp_path / "many"
    directory.mkdir()
    (directory / "default.nix").write_text(
        f"""{{ system }}:
        let
          set = import {PACKAGE_SETS} {{ inherit system; }};
          number = n: builtins.substring 1 4 (toString (10000 + n));
          slow = value: if builtins.foldl' (a: b: a + b) 0 (builtins.genList (n: n) 2000000) > 0 then value else null;
        in
        builtins.listToAttrs (builtins.genList (n: {{
          name = "p${{number n}}";
          value = if n == 4000 then set.right else if n == 0 then set.left else if n == 2001 then slow set.hello else set.hello;
        }}) 4100)
        """
    )
    return Popularity({**settings, "NIXERY_PKGS_PATH": str(directory)}, tmp_path)


def test_a_list_of_packages_is_counted_from_closures_or_derivations(popularity: Popularity) -> None:
    names = "left\nright\n\nhello\nleft\n"
    assert popularity.counts("--from", "closures", names=names) == {"bottom-1.0": 2}
    assert popularity.counts("--from", "derivations", names=names) == {"bottom-1.0": 2}
    # All packages are realised now.
    ended = popularity.run(names=names)
    assert json.loads(ended.stdout) == {"bottom-1.0": 2}
    assert "all packages are built or can be substituted" in ended.stderr
    (popularity.directory / "names").write_text(names)
    assert popularity.counts("--packages", "names") == {"bottom-1.0": 2}


def test_the_whole_set_is_counted_without_the_packages_that_fail(
    popularity: Popularity, settings: Mapping[str, str]
) -> None:
    directory = popularity.directory / "set"
    directory.mkdir()
    popularity.environment["NIXERY_PKGS_PATH"] = str(directory)
    (directory / "default.nix").write_text(
        f"""{{ system }}:
        let set = import {settings["NIXERY_PKGS_PATH"]} {{ inherit system; }};
        in {{ inherit (set) left right diamond fails broken; alias = set.left; lib = {{ }}; helper = x: x; }}
        """
    )
    ended = popularity.run()
    assert "counting references from derivations to their inputs" in ended.stderr
    assert "(fails-1.0, ...)" in ended.stderr
    assert "left out: 2 attributes that are not packages\n" in ended.stderr
    assert "left out: broken (" in ended.stderr
    counts = json.loads(ended.stdout)
    assert counts["bottom-1.0"] >= 2
    assert "fails-1.0" not in counts
    # The result depends neither on the number of processes nor on the cache.
    for processes in ("1", "3"):
        cache = str(popularity.directory / processes)
        again = popularity.run(given={"NIXERY_MAX_BUILDS": processes, "XDG_CACHE_HOME": cache})
        assert again.stdout == ended.stdout


def test_an_interrupted_run_resumes(many: Popularity, spy: NixSpy) -> None:
    environment = {**spy.environment(), "NIXERY_MAX_BUILDS": "1"}
    first = subprocess.Popen(
        many.command("--from", "derivations"),
        env=many.environment | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stderr is not None
        assert first.stderr.readline() == "nixery: evaluating: 2000 of 4100 packages\n"
        first.terminate()
        printed, _ = first.communicate(timeout=15)
    finally:
        first.kill()
    assert (first.returncode, printed) == (128 + signal.SIGTERM, "")
    evaluations = [0, 0]
    outputs = ["", ""]
    for time in range(2):
        spy.forget()
        outputs[time] = many.run("--from", "derivations", given=environment).stdout
        evaluations[time] = sum("packages.nix" in call or "index.nix" in call for call in spy.calls)
    # First the names of the set and the two remaining batches, then the names alone.
    assert evaluations == [3, 1]
    fresh = many.run("--from", "derivations", given={"XDG_CACHE_HOME": str(many.directory / "fresh")})
    assert outputs == [fresh.stdout, fresh.stdout]
    assert json.loads(fresh.stdout) == {"bottom-1.0": 2}


def test_realised_batches_are_not_realised_again(many: Popularity, spy: NixSpy) -> None:
    assert many.counts("--from", "closures", given=spy.environment()) == {"bottom-1.0": 2}
    assert any("--realise" in call for call in spy.calls)
    spy.forget()
    assert many.counts("--from", "closures", given=spy.environment()) == {"bottom-1.0": 2}
    assert not any("--realise" in call for call in spy.calls)


def test_packages_that_do_not_evaluate_are_left_out(popularity: Popularity) -> None:
    ended = popularity.run(names="left\nnosuch\nbroken\n")
    assert "left out: nosuch (missing" in ended.stderr
    assert "left out: broken (" in ended.stderr
    assert json.loads(ended.stdout) == {"bottom-1.0": 1}
    ended = popularity.run(names="nosuch", status=1)
    assert ended.stdout == ""
    assert ended.stderr.endswith("nixery: cannot count any package\n")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"\n \n", "it contains no name"),
        (b"hello\n\xff", "not UTF-8 text"),
        (b"hello\ntwo words\n", "line 2 is not a package name: 'two words'"),
    ],
)
def test_a_bad_file_is_an_error_of_one_line(
    popularity: Popularity, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (popularity.directory / "names").write_bytes(content)
    ended = popularity.run("--packages", "names", status=2)
    assert (ended.stdout, ended.stderr) == ("", f"nixery: cannot read --packages names: {reason}\n")


def test_progress_on_a_terminal_is_a_bar(popularity: Popularity) -> None:
    ours, theirs = pty.openpty()
    try:
        (popularity.directory / "names").write_text("left\nnosuch")
        ended = subprocess.run(
            popularity.command("--packages", "names"),
            env=popularity.environment | {"TERM": "xterm", "COLUMNS": "200"},
            cwd=popularity.directory,
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=TIMEOUT,
            check=True,
        )
        written = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert json.loads(ended.stdout) == {"bottom-1.0": 1}
    assert "━" in written
    assert "left out: nosuch" in written
    assert "1 of 2 packages" not in written


def test_a_server_uses_the_output(popularity: Popularity, start_server: StartServer, spy: NixSpy) -> None:
    data = popularity.directory / "popularity.json"
    # The setting may precede the data.
    data.write_text(popularity.run(names="left\nright", given={"NIX_POPULARITY_URL": str(data)}).stdout)
    settings = {"NIX_POPULARITY_URL": str(data), **spy.environment()}
    with_data = start_server(**settings)
    digest = with_data.client.digest("diamond")
    with_data.stop()
    # In another format, the data is the same.
    spy.forget()
    data.write_text(json.dumps(json.loads(data.read_text()), indent=8))
    other = start_server(**settings)
    assert other.client.digest("diamond") == digest
    other.stop()
    # The file may be deleted.
    data.unlink()
    without = start_server(**settings)
    assert without.client.digest("diamond") == digest
    assert "using its copy" in without.log
    assert not any("packages.nix" in call for call in spy.calls)
