"""The commands that make credentials. tests/storage_contract has tokens in buckets."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from nixery.access.passwords import Htpasswd
from tests.support.command_line import CommandLine
from tests.support.server import clean_environment


@pytest.fixture
def nixery(tmp_path: Path) -> CommandLine:
    return CommandLine({"NIXERY_AUDIT_LOG": str(tmp_path / "audit.log")}, tmp_path)


def test_tokens_are_created_listed_and_revoked(nixery: CommandLine, tmp_path: Path) -> None:
    assert "set STORAGE_PATH" in nixery("token", "list", status=1).stderr
    (tmp_path / "cache" / "nixery").mkdir(parents=True)
    assert nixery("token", "list").stderr == "nixery: the storage has no API tokens\n"
    options = ["--user", "ci", "--group", "builders", "--may", "pull", "--may", "build", "--packages", "git*"]
    created = nixery("token", "create", *options, "--note", "\x1b[2J", status=1)
    assert created.stdout == ""
    assert "the note of an API token" in created.stderr
    assert "or never" in nixery("token", "create", *options, "--expires", "soon", status=2).stderr
    created = nixery("token", "create", *options, "--expires", "30d", "--note", "of a pipeline")
    text = created.stdout.strip()
    _, identity, secret = text.split("_", 2)
    assert secret not in created.stderr
    assert f"API token {identity} for ci, expires " in created.stderr
    header, line = nixery("token", "list").stdout.splitlines()
    assert header.split() == ["ID", "USER", "GROUPS", "MAY", "PACKAGES", "CREATED", "EXPIRES", "USED", "NOTE"]
    assert line.split()[:5] == [identity, "ci", "builders", "build,pull", "git*"]
    assert line.endswith("of a pipeline")
    assert secret not in line
    # A token that leaked is revoked as it was found; a secret that is no token is not repeated.
    revoked = nixery("token", "revoke", text, f"x{secret}", "0123456789abcdef", status=1)
    assert f"revoked API token {identity}\n" in revoked.stderr
    assert "argument 2 is not the id" in revoked.stderr
    assert "there is no API token 0123456789abcdef" in revoked.stderr
    assert secret not in revoked.stderr
    audit = (tmp_path / "audit.log").read_text()
    events = [json.loads(line) for line in audit.splitlines()]
    assert [(one["event"], one["token"], one["owner"]) for one in events] == [
        ("token-created", identity, "ci"),
        ("token-revoked", identity, "ci"),
    ]
    assert secret not in audit


def typed(directory: Path, *answers: str) -> tuple[int, str]:
    """Run ``nixery password`` on a terminal, with only stdout elsewhere; return its status and stdout.

    Each answer is typed when its prompt is shown: what was typed earlier is discarded.
    """
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "nixery", "password", "alice"],
            env=clean_environment({}),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            cwd=directory,
            start_new_session=True,
        ) as process:
            for answer in answers:
                shown = b""
                while b": " not in shown and select.select([ours], [], [], 60)[0]:
                    shown += os.read(ours, 1)
                os.write(ours, f"{answer}\n".encode())
            line, _ = process.communicate(timeout=60)
        return process.returncode, line.decode()
    finally:
        os.close(ours)
        os.close(theirs)


def accepts(directory: Path, line: str, password: str) -> bool:
    (directory / "htpasswd").write_text(line)

    async def verify() -> bool:
        return await Htpasswd(directory / "htpasswd").verify("alice", password)

    return asyncio.run(verify())


def test_a_password_is_typed_or_piped(tmp_path: Path) -> None:
    status, line = typed(tmp_path, "correct horse", "correct horse")
    assert status == 0
    assert line.count("\n") == 1
    assert accepts(tmp_path, line, "correct horse")
    command = [sys.executable, "-m", "nixery", "password", "alice"]

    def piped(*options: str, given: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *options],
            env=clean_environment({}),
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    ended = piped("--stdin", given="pässword \nignored\n")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert accepts(tmp_path, ended.stdout, "pässword ")
    assert "--stdin" in piped(given="password\n").stderr
    long = piped("--stdin", given="x" * 100_000)
    assert (long.returncode, long.stdout) == (2, "")
