import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nixery.errors import SettingsError
from nixery.storage.popularity import load_popularity

COUNTS = {"glibc": 12, "bash-5.2": 3}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/popularity.json" else 404)
        self.end_headers()
        self.wfile.write(json.dumps(COUNTS).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


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
