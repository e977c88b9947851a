"""Nothing that a process has started outlives it; see ``nixery.nix.warden``."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

from nixery.nix import warden

# What processes that a server starts have in their environment.
MARK = "NIXERY_STARTED_BY"

# Seconds. It has something to do only if we do not get here.
_PATIENCE = 5


@contextmanager
def guarded(environment: MutableMapping[str, str]) -> Iterator[None]:
    """Have everything ended that is started with an environment, should this process be killed.

    Args:
        environment: gets a mark while the context lasts.
    """
    mark = secrets.token_hex(16)
    environment[MARK] = mark
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", warden.__file__, f"{MARK}={mark}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Whoever ends the process group of this one has not ended what it started.
        start_new_session=True,
        # Not ours: it would be one of those that it ends. And it is to hold up no directory that is to be unmounted.
        env={},
        cwd="/",
    )
    try:
        yield
    finally:
        del environment[MARK]
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
