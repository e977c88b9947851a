"""Serve the store of this machine as a signed binary cache: ``python -m scripts.equality.cache``.

Nothing is copied: narinfos come from Nix's database, NARs from ``nix-store --dump``. Prints the port and the public key.
"""

from __future__ import annotations

import base64
import sqlite3
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nixery.binary_caches.narinfo import fingerprint
from nixery.closure import STORE_DIRECTORY, PathInfo, StorePath, encode_base32
from nixery.nix.store_database import StoreDatabase

STATE = Path("/nix/var/nix")

# Bytes of the description of a closure: no limit is wanted here.
ANY_SIZE = 1 << 40

_KEY_NAME = "equality-1"
_PIECE = 256 * 1024


class _Store:
    """The valid store paths of this machine, by their hashes."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self._database = StoreDatabase(STATE)
        self._lock = threading.Lock()
        self._known: dict[str, PathInfo] = {}

    @property
    def public_key(self) -> str:
        return f"{_KEY_NAME}:{base64.b64encode(self._key.public_key().public_bytes_raw()).decode()}"

    def find(self, digits: str) -> PathInfo | None:
        with self._lock:
            if digits not in self._known and (path := _valid_path(digits)) is not None:
                # Its closure is requested next.
                closure = self._database.closure([path], ANY_SIZE)
                self._known.update((info.path.base_name[:32], info) for info in closure or ())
            return self._known.get(digits)

    def narinfo(self, info: PathInfo) -> bytes:
        references = sorted((*info.references, *((info.path,) if info.refers_to_itself else ())))
        lines = [
            f"StorePath: {info.path}",
            f"URL: nar/{info.path.base_name[:32]}",
            "Compression: none",
            f"NarHash: sha256:{encode_base32(bytes.fromhex(info.nar_hash))}",
            f"NarSize: {info.nar_size}",
            f"References: {' '.join(path.base_name for path in references)}",
            f"Sig: {_KEY_NAME}:{base64.b64encode(self._key.sign(fingerprint(info))).decode()}",
        ]
        if info.deriver:
            lines.append(f"Deriver: {info.deriver.rpartition('/')[2]}")
        return ("\n".join(lines) + "\n").encode()


def _valid_path(digits: str) -> StorePath | None:
    database = sqlite3.connect(f"file:{STATE}/db/db.sqlite?mode=ro", uri=True)
    try:
        start = f"{STORE_DIRECTORY}/{digits}-"
        query = "SELECT path FROM ValidPaths WHERE path >= ? ORDER BY path LIMIT 1"
        (path,) = database.execute(query, (start,)).fetchone() or ("",)
    finally:
        database.close()
    return StorePath.parse(path) if path.startswith(start) else None


def main() -> None:
    """Serve until killed."""
    store = _Store()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            name = self.path.removeprefix("/")
            if name == "nix-cache-info":
                self._send(f"StoreDir: {STORE_DIRECTORY}\n".encode())
                return
            info = store.find(name.removeprefix("nar/").removesuffix(".narinfo"))
            if info is None:
                self._send(b"", 404)
            elif name.endswith(".narinfo"):
                self._send(store.narinfo(info))
            else:
                self._send_nar(info)

        def _send(self, content: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _send_nar(self, info: PathInfo) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(info.nar_size))
            self.end_headers()
            command = ("nix-store", "--dump", str(info.path))
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None  # noqa: S101 -- for mypy
                while piece := process.stdout.read(_PIECE):
                    self.wfile.write(piece)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], store.public_key, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
