"""Images are built while Nix's garbage collector runs all the time, in a private store."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.test_garbage_collection import links
from tests.support.nix import PACKAGE_SETS, wait_until
from tests.support.private_nix import PrivateNix
from tests.support.repository import Repository
from tests.support.server import running_server
from tests.validator.image_validator import validate

NAMES = ["hello", "diamond/outputs", "shell/hello/left", "many", "slow/users", "images.web", "tools"]


@pytest.fixture
def private_nix(tmp_path: Path) -> Iterator[PrivateNix]:
    private_nix = PrivateNix.create(tmp_path / "private")
    yield private_nix
    private_nix.remove()


def test_directory(private_nix: PrivateNix, tmp_path: Path) -> None:
    settings = {**private_nix.environment(), "NIXERY_PKGS_PATH": str(PACKAGE_SETS)}
    with running_server(tmp_path / "undisturbed", settings, launcher=private_nix.launcher) as server:
        expected = [server.client.digest(name) for name in NAMES]
    with ExitStack() as stack:
        server = stack.enter_context(
            running_server(tmp_path / "disturbed", settings, launcher=private_nix.launcher)
        )
        collected = stack.enter_context(private_nix.collecting_all_the_time())
        with ThreadPoolExecutor(3) as threads:
            images = list(threads.map(server.client.pull, NAMES))
    assert [validate(image).digest for image in images] == expected
    # The first collection deletes what the other server left.
    assert any(collected[1:]), "paths of these builds were collected"
    assert links(server.storage) == []


# Fails once while the collector holds its lock, like a builder whose output has been deleted.
_FAILS_ONCE = """
if [ "$1" = --realise ] && mkdir {marker} 2>/dev/null; then
    while flock --shared --nonblock /nix/var/nix/gc.lock true; do sleep 0.05; done
    touch {marker}/seen
    echo "error: builder for '$2' failed with exit code 2" >&2
    exit 100
fi
PATH=${{PATH#*:}} exec nix-store "$@"
"""


def test_a_builder_that_failed_during_a_collection_is_retried(
    private_nix: PrivateNix, tmp_path: Path
) -> None:
    marker = tmp_path / "failed"
    program = tmp_path / "bin" / "nix-store"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{_FAILS_ONCE.format(marker=marker)}")
    program.chmod(0o755)
    settings = {
        **private_nix.environment(),
        "NIXERY_PKGS_PATH": str(PACKAGE_SETS),
        "PATH": f"{program.parent}:{os.environ['PATH']}",
    }
    with (
        running_server(tmp_path / "server", settings, launcher=private_nix.launcher) as server,
        ThreadPoolExecutor(1) as threads,
    ):
        answer = threads.submit(server.client.manifest, "hello")
        wait_until(marker.exists, "a first attempt")
        with (private_nix.directory / "nix" / "var" / "nix" / "gc.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            wait_until((marker / "seen").exists, "its failure")
            time.sleep(1)  # so that the server sees it too
        assert answer.result().status == 200


def test_commits(private_nix: PrivateNix, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    versions = [str(number) for number in range(6)]
    commits = [repository.commit(version) for version in versions]
    settings = {**private_nix.environment(), "NIXERY_PKGS_REPO": repository.url}
    with ExitStack() as stack:
        server = stack.enter_context(
            running_server(tmp_path / "server", settings, launcher=private_nix.launcher)
        )
        collected = stack.enter_context(private_nix.collecting_all_the_time())
        for commit, version in zip(commits, versions, strict=True):
            # The second image uses the tree of the first one if it still exists.
            for name in ("hello", "other"):
                image = validate(server.client.pull(name, commit))
                assert f"{name}-{version}" in image.config_document["history"][0]["comment"]
    assert any(collected), "paths of these builds were collected"
    assert links(server.storage) == []
