"""nginx with static files: the upper bound of how fast files are served over HTTP."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from scripts.peers.process import HOST, Peer, free_port, running

PROGRAM = "nginx"
# Its name in results when it reads and writes files itself.
COPYING = "nginx, no sendfile"

# Without sendfile: the number and the size of its buffers.
_BUFFERS = "2 512k"

# Like the other servers, it keeps connections open and logs nothing.
_CONFIGURATION = """\
user {user};
worker_processes auto;
daemon off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile {sendfile};
    output_buffers {buffers};
    tcp_nopush on;
    keepalive_requests 100000000;
    default_type application/octet-stream;
    client_body_temp_path {directory}/temporary/1;
    proxy_temp_path {directory}/temporary/2;
    fastcgi_temp_path {directory}/temporary/3;
    uwsgi_temp_path {directory}/temporary/4;
    scgi_temp_path {directory}/temporary/5;
    server {{
        listen {host}:{port};
        root {directory}/files;
        location = /v2/ {{ try_files /v2.json =404; }}
    }}
}}
"""


def version() -> str:
    """Return the version of the program, for example ``1.22.1``."""
    printed = subprocess.run((PROGRAM, "-v"), capture_output=True, text=True, check=True, timeout=30)
    return printed.stderr.strip().rpartition("/")[2]


@contextmanager
def nginx(directory: Path, files: Mapping[str, bytes], *, sendfile: bool = True) -> Iterator[Peer]:
    """Serve contents by their paths, and a file at ``/v2/``.

    Args:
        directory: created for the files.
        files: contents by path.
        sendfile: let the kernel send files.

    Raises:
        PeerError: it does not start.
    """
    (directory / "temporary").mkdir(parents=True)
    for path, content in {"/v2.json": b"{}", **files}.items():
        file = directory / "files" / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    port = free_port()
    configuration = directory / "nginx.conf"
    user = pwd.getpwuid(os.geteuid()).pw_name
    settings = {"sendfile": "on" if sendfile else "off", "buffers": _BUFFERS}
    configuration.write_text(
        _CONFIGURATION.format(user=user, directory=directory, host=HOST, port=port, **settings)
    )
    command = (PROGRAM, "-c", str(configuration), "-e", "stderr", "-p", str(directory))
    name = PROGRAM if sendfile else COPYING
    with running(name, command, port, directory / "nginx.log") as peer:
        yield peer
