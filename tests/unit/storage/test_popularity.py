import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nixery.errors import SettingsError
from nixery.layering.popularity import Popularity
from nixery.storage import popularity
from nixery.storage.popularity import PopularityCopies, load_popularity

COUNTS = {"glibc": 12, "bash-5.2": 3}


class Handler(BaseHTTPRequestHandler):
    # Whether a header field that has begun may end.
    patience = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/endless":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
            with suppress(OSError):
                while not self.patience.wait(0.05):
                    self.wfile.write(b"x")
            return
        self.send_response(404 if self.path == "/nothing" else 200)
        if self.path == "/cut":
            self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(json.dumps(COUNTS).encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[str]:
    with serving() as url:
        yield url


def test_over_http(server: str) -> None:
    assert load_popularity(f"{server}/popularity.json").counts == COUNTS


def test_from_a_file_url_and_from_a_path(tmp_path: Path) -> None:
    file = tmp_path / "popularity.json"
    file.write_text(json.dumps(COUNTS))
    assert load_popularity(str(file)).counts == load_popularity(file.as_uri()).counts == COUNTS


def test_what_cannot_be_had_is_a_settings_error(server: str, tmp_path: Path) -> None:
    for url in (f"{server}/nothing", str(tmp_path / "nothing"), "http://127.0.0.1:1/"):
        with pytest.raises(SettingsError, match="NIX_POPULARITY_URL"):
            load_popularity(url)


@pytest.mark.parametrize("content", ["", "[]", '{"a": -1}', '{"a": "many"}', "{"])
def test_so_is_anything_but_counts(content: str, tmp_path: Path) -> None:
    (tmp_path / "p").write_text(content)
    with pytest.raises(SettingsError, match="not a JSON object of reference counts"):
        load_popularity(str(tmp_path / "p"))


@pytest.fixture
def copies(tmp_path: Path) -> PopularityCopies:
    return PopularityCopies(tmp_path / "storage", tmp_path / "storage" / "temporary")


def test_the_copy_is_taken_when_the_url_is_down(
    copies: PopularityCopies, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as server:
        url = f"{server}/popularity.json"
        assert load_popularity(url, copies).counts == COUNTS
        with pytest.raises(SettingsError):  # there is none of this one
            load_popularity(f"{server}/nothing", copies)
    (copy,) = (tmp_path / "storage" / "popularity").iterdir()
    os.utime(copy, (0, time.time() - 3 * 3600))
    assert load_popularity(url, copies).counts == COUNTS
    assert "3:00:0" in capsys.readouterr().out
    copy.unlink()
    copy.write_text('{"glibc": ')
    with pytest.raises(SettingsError, match="NIX_POPULARITY_URL"):
        load_popularity(url, copies)
    assert list((tmp_path / "storage" / "temporary").iterdir()) == []


def test_a_changed_file_goes_before_the_copy(copies: PopularityCopies, tmp_path: Path) -> None:
    file = tmp_path / "popularity.json"
    file.write_text('{"glibc": 1}')
    first = load_popularity(str(file), copies)
    file.write_text('{\n  "glibc": 2 }')
    second = load_popularity(str(file), copies)
    assert second.counts == {"glibc": 2}
    assert first.identity != second.identity
    file.write_text("<html>")  # told, not hidden
    with pytest.raises(SettingsError, match="not a JSON object"):
        load_popularity(str(file), copies)
    file.unlink()
    assert load_popularity(str(file), copies) == second


def test_a_cut_off_answer_is_none(copies: PopularityCopies) -> None:
    with serving() as server:
        whole = load_popularity(f"{server}/popularity.json", copies)
        assert whole.counts == COUNTS
        with pytest.raises(SettingsError, match="received 28 of 1000 bytes"):
            load_popularity(f"{server}/cut", copies)


def test_what_is_no_file_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 1 << 40)
    for place in (tmp_path / "pipe", large, Path("/dev/zero")):
        with pytest.raises(SettingsError, match="not a regular file"):
            load_popularity(str(place))
    (tmp_path / "file").write_text(json.dumps(COUNTS))
    (tmp_path / "link").symlink_to("file")
    assert load_popularity(str(tmp_path / "link")).counts == COUNTS


def test_tokens_in_the_url_are_not_told(
    server: str, capsys: pytest.CaptureFixture[str], copies: PopularityCopies
) -> None:
    host = server.removeprefix("http://")
    for path in ("nothing", "cut"):
        with pytest.raises(SettingsError) as error:
            load_popularity(f"http://user:a-password@{host}/{path}?token=a-token")
        assert host in str(error.value)
        assert "a-token" not in str(error.value)
        assert "a-password" not in str(error.value)
    url = f"http://user:a-password@{host}/nothing?token=a-token"
    copies.keep(url, Popularity(COUNTS))
    load_popularity(url, copies)
    logged = capsys.readouterr()
    assert host in logged.out + logged.err
    assert "a-token" not in logged.out + logged.err
    assert "a-password" not in logged.out + logged.err


@pytest.mark.security
def test_a_server_that_trickles_header_fields_holds_nobody_up(
    server: str, copies: PopularityCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its bytes comes within the timeout of a read."""
    monkeypatch.setattr(popularity, "_TIMEOUT", 0.5)
    monkeypatch.setattr(Handler, "patience", patience := threading.Event())
    # So that the test ends where the defect is.
    giving_up = threading.Timer(20, patience.set)
    giving_up.start()
    try:
        with pytest.raises(SettingsError, match="it takes longer than"):
            load_popularity(f"{server}/endless", copies)
    finally:
        giving_up.cancel()
        patience.set()
