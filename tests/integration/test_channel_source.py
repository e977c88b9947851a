"""Packages from a channel: names from a repository, archives from a web server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nixery.errors import SourceUnreachable
from nixery.nix.processes import ProcessContext
from nixery.source_location import SourceLocation
from nixery.sources.channel import Archives
from tests.integration.conftest import StartServer
from tests.support.nix import NixSpy
from tests.support.pulled_image import PulledImage
from tests.support.repository import Repository
from tests.support.server import Server
from tests.support.web_server import FileServer, file_server

# The most bytes that the misbehaving server sends.
_MOST = 2 << 30


class Channels:
    """Channels like those of nixpkgs, and servers that take their packages from them."""

    def __init__(self, directory: Path, start: StartServer, web: FileServer) -> None:
        self.repository = Repository(directory / "nixpkgs")
        self.web = web
        self._archives = directory / "archives"
        self._start = start

    def release(self, channel: str, version: str) -> str:
        """Put a version into a channel; return its commit."""
        self.repository.git("checkout", "--quiet", "-B", channel)
        commit = self.repository.commit(version)
        # Like GitHub's archives: a single directory contains everything.
        name = f"--prefix=nixpkgs-{commit}/"
        self.repository.git(
            "archive", "--format=tar.gz", name, f"--output={self._archives / commit}.tar.gz", commit
        )
        return commit

    def forget(self, commit: str) -> None:
        (self._archives / f"{commit}.tar.gz").unlink()

    def server(self, channel: str, **settings: str) -> Server:
        source: dict[str, str | None] = {
            "NIXERY_PKGS_PATH": None,
            "NIXERY_CHANNEL": channel,
            "NIXERY_CHANNEL_REPO": self.repository.url,
            "NIXERY_CHANNEL_URL": f"{self.web.url}/{{rev}}.tar.gz",
        }
        return self._start(**{**source, **settings})


@pytest.fixture
def channels(tmp_path: Path, start_server: StartServer) -> Iterator[Channels]:
    (tmp_path / "archives").mkdir()
    with file_server(tmp_path / "archives") as web:
        yield Channels(tmp_path, start_server, web)


def version(image: PulledImage) -> str:
    return image.filesystem.read("share/version").decode().strip()


def test_the_meaning_of_tags(channels: Channels) -> None:
    old = channels.release("nixos-23.11", "23.11")
    new = channels.release("nixos-24.05", "24.05")
    client = channels.server("nixos-24.05").client
    for tag, expected in {
        "latest": "24.05",
        "nixos-24.05": "24.05",
        "nixos-23.11": "23.11",
        old: "23.11",
        new: "24.05",
    }.items():
        assert version(client.pull("hello", tag)) == expected
        revision = client.manifest("hello", tag).headers["nixery-revision"]
        assert revision == (new if expected == "24.05" else old)


def test_a_commit_as_the_channel(channels: Channels) -> None:
    old = channels.release("nixos-23.11", "23.11")
    channels.release("nixos-23.11", "23.11.1")
    # The server needs no repository to resolve a commit.
    channels.repository.directory.rename(channels.repository.directory.with_name("gone"))
    assert version(channels.server(old).client.pull("hello")) == "23.11"


@pytest.mark.parametrize("tag", ["nixos-99.99", "nixpkgs-none", "1" * 40])
def test_channels_that_do_not_exist(channels: Channels, tag: str) -> None:
    channels.release("nixos-24.05", "24.05")
    response = channels.server("nixos-24.05").client.manifest("hello", tag)
    assert (response.status, response.error["code"]) == (404, "MANIFEST_UNKNOWN")
    assert tag in response.error["message"]


def test_tags_that_are_not_allowed(channels: Channels, spy: NixSpy) -> None:
    commit = channels.release("nixos-24.05", "24.05")
    channels.release("staging", "0")
    client = channels.server("nixos-24.05", **spy.environment()).client
    spy.forget()
    response = client.manifest("hello", "staging")
    assert (response.status, response.error["code"]) == (404, "MANIFEST_UNKNOWN")
    assert "a commit's 40 digits" in response.error["message"]
    assert spy.calls == []
    narrow = channels.server("nixos-24.05", NIXERY_CHANNEL_TAGS="stag*").client
    assert version(narrow.pull("hello", "staging")) == "0"
    assert narrow.manifest("hello", commit).status == 404
    assert version(narrow.pull("hello", "nixos-24.05")) == "24.05"


def test_an_archive_is_fetched_once(channels: Channels) -> None:
    commit = channels.release("nixos-24.05", "24.05")
    server = channels.server("nixos-24.05")
    for name in ("hello", "other", "hello/other"):
        server.client.pull(name)
    assert channels.web.requests == [f"/{commit}.tar.gz"]


def test_an_unreachable_web_server(channels: Channels) -> None:
    channels.release("nixos-24.05", "24.05")
    server = channels.server("nixos-24.05", NIXERY_CHANNEL_URL="http://127.0.0.1:1/{rev}.tar.gz")
    response = server.client.manifest("hello")
    assert (response.status, response.error["code"]) == (503, "UNKNOWN")
    assert "cannot read the package source; the server's log has the reason" in response.error["message"]
    assert "http://127.0.0.1:1/{rev}.tar.gz" in server.log


def test_an_archive_has_the_same_store_path_as_in_earlier_versions(channels: Channels) -> None:
    # Image digests depend on it: older versions fetched archives with Nix's own command.
    commit = channels.release("nixos-24.05", "24.05")
    completed = subprocess.run(
        [
            "nix-prefetch-url",
            "--unpack",
            "--print-path",
            "--name",
            "source",
            f"{channels.web.url}/{commit}.tar.gz",
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    archives = Archives(
        SourceLocation.parse(f"{channels.web.url}/{{rev}}.tar.gz"),
        f"{channels.web.url}/{{rev}}.tar.gz",
        channels.repository.directory.parent,
        ProcessContext(os.environ),
    )
    assert asyncio.run(archives.fetch(commit)) == Path(completed.stdout.split()[-1])


class _Endless(BaseHTTPRequestHandler):
    sent = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        # Random bytes are not an archive, which shows only after the first of them. The server sends a
        # bounded number, so that a failing test does not exhaust the memory.
        piece = os.urandom(1 << 20)
        with suppress(OSError):
            while _Endless.sent < _MOST:
                self.wfile.write(piece)
                _Endless.sent += len(piece)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.security
def test_an_endless_archive_takes_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Endless, "sent", 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Endless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{{rev}}.tar.gz"
        archives = Archives(SourceLocation.parse(url), url, tmp_path, ProcessContext(os.environ, 1 << 30))
        with pytest.raises(SourceUnreachable):
            asyncio.run(archives.fetch("0" * 40))
        server.shutdown()
    assert _Endless.sent < _MOST
