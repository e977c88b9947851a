from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.security

_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()

# Root becomes nobody after everything is imported, since nobody may have no access to this checkout. That hides a process, too.
_HIDE = """
import ctypes, os, sys
from nixery.nix.guard import hide_from_builders
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
if sys.argv[1] == "hide":
    hide_from_builders()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("hidden", [True, False])
def test_a_process_of_the_same_user_reads_the_environment_only_of_one_that_is_not_hidden(
    *, hidden: bool
) -> None:
    as_server = subprocess.Popen(
        [sys.executable, "-c", _HIDE, "hide" if hidden else "show"],
        env={**os.environ, "SECRET": "of the server"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with as_server as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        as_builder = [*_NOBODY, "cat", f"/proc/{server.pid}/environ"]
        read = subprocess.run(as_builder, capture_output=True, timeout=60, check=False)
        server.communicate(timeout=60)
    assert (b"SECRET=of the server" in read.stdout) is not hidden
