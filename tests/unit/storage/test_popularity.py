import gzip
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from nixery.errors import SettingsError
from nixery.layering.popularity import Popularity
from nixery.storage import popularity
from nixery.storage.popularity import PopularityCopies, load_popularity

COUNTS = {"glibc": 12, "bash-5.2": 3}


class Handler(BaseHTTPRequestHandler):
    # Set to end a header field that has begun.
    may_end = threading.Event()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/endless":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
            with suppress(OSError):
                while not self.may_end.wait(0.05):
                    self.wfile.write(b"x")
            return
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved-to-"))
            # A body that no client should read: the connection closes before its end.
            self.send_header("Content-Length", "1000")
            self.end_headers()
            return
        self.send_response(404 if path == "/nothing" else 200)
        if path == "/compressed":
            self.send_header("Content-Encoding", "gzip, gzip")
            self.end_headers()
            self.wfile.write(gzip.compress(gzip.compress(json.dumps(COUNTS).encode())))
            return
        if path == "/cut":
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


def test_data_is_fetched_over_http(server: str) -> None:
    assert load_popularity(f"{server}/popularity.json").counts == COUNTS


def test_data_is_read_from_a_file_url_and_from_a_path(tmp_path: Path) -> None:
    file = tmp_path / "popularity.json"
    file.write_text(json.dumps(COUNTS))
    assert load_popularity(str(file)).counts == load_popularity(file.as_uri()).counts == COUNTS


def test_unreachable_data_is_a_settings_error(server: str, tmp_path: Path) -> None:
    for url in (f"{server}/nothing", str(tmp_path / "nothing"), "http://127.0.0.1:1/"):
        with pytest.raises(SettingsError, match="NIX_POPULARITY_URL"):
            load_popularity(url)


def test_a_redirect_leads_to_another_page_but_to_no_file(server: str, tmp_path: Path) -> None:
    assert load_popularity(f"{server}/moved-to-/popularity.json").counts == COUNTS
    (tmp_path / "secret.json").write_text(json.dumps(COUNTS))
    with pytest.raises(SettingsError, match="NIX_POPULARITY_URL"):
        load_popularity(f"{server}/moved-to-{(tmp_path / 'secret.json').as_uri()}")


def test_an_answer_over_the_limit_is_an_error(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(popularity, "_LARGEST", 10)
    with pytest.raises(SettingsError, match="it has more than 10 bytes"):
        load_popularity(f"{server}/popularity.json")


@pytest.mark.security
def test_an_answer_is_not_decompressed(server: str) -> None:
    # A few bytes on the wire may become any number.
    with pytest.raises(SettingsError, match="not a JSON object"):
        load_popularity(f"{server}/compressed")


@pytest.mark.security
def test_the_body_of_a_redirect_is_not_read(server: str) -> None:
    assert load_popularity(f"{server}/moved-to-/data").counts == COUNTS


@pytest.mark.parametrize("content", ["", "[]", '{"a": -1}', '{"a": "many"}', "{"])
def test_data_that_is_not_counts_is_a_settings_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "p").write_text(content)
    with pytest.raises(SettingsError, match="not a JSON object of reference counts"):
        load_popularity(str(tmp_path / "p"))


@pytest.fixture
def copies(tmp_path: Path) -> PopularityCopies:
    return PopularityCopies(tmp_path / "storage", tmp_path / "storage" / "temporary")


@pytest.mark.security
def test_data_is_read_up_to_its_first_wrong_count(tmp_path: Path) -> None:
    """64 MiB of wrong counts took gigabytes, an error for each, before the server refused them."""
    place = tmp_path / "counts.json"
    place.write_text(json.dumps({f"package-{number}": "x" for number in range(10_000)}))
    with pytest.raises(SettingsError) as error:
        load_popularity(str(place))
    cause = error.value.__context__
    assert isinstance(cause, ValidationError)
    assert cause.error_count() == 1


def test_the_copy_is_used_when_the_url_is_down(
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


def test_a_changed_file_takes_precedence_over_the_copy(copies: PopularityCopies, tmp_path: Path) -> None:
    file = tmp_path / "popularity.json"
    file.write_text('{"glibc": 1}')
    first = load_popularity(str(file), copies)
    file.write_text('{\n  "glibc": 2 }')
    second = load_popularity(str(file), copies)
    assert second.counts == {"glibc": 2}
    assert first.identity != second.identity
    file.write_text("<html>")  # reported, not hidden by the copy
    with pytest.raises(SettingsError, match="not a JSON object"):
        load_popularity(str(file), copies)
    file.unlink()
    assert load_popularity(str(file), copies) == second


def test_a_truncated_answer_is_an_error(copies: PopularityCopies) -> None:
    with serving() as server:
        whole = load_popularity(f"{server}/popularity.json", copies)
        assert whole.counts == COUNTS
        with pytest.raises(SettingsError, match="without sending complete message"):
            load_popularity(f"{server}/cut", copies)


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 1 << 40)
    for place in (tmp_path / "pipe", large, Path("/dev/zero")):
        for url in (str(place), place.as_uri()):
            with pytest.raises(SettingsError, match="not a regular file"):
                load_popularity(url)
    (tmp_path / "file").write_text(json.dumps(COUNTS))
    (tmp_path / "link").symlink_to("file")
    assert load_popularity(str(tmp_path / "link")).counts == COUNTS


def test_secrets_in_the_url_are_not_logged(
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
def test_a_server_that_trickles_header_fields_times_out(
    server: str, copies: PopularityCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte arrives within the timeout of a read."""
    monkeypatch.setattr(popularity, "_TIMEOUT", 0.5)
    monkeypatch.setattr(Handler, "may_end", may_end := threading.Event())
    # So that the test also ends without the fix.
    giving_up = threading.Timer(20, may_end.set)
    giving_up.start()
    try:
        with pytest.raises(SettingsError, match="it takes longer than"):
            load_popularity(f"{server}/endless", copies)
    finally:
        giving_up.cancel()
        may_end.set()
