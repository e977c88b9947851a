"""Protections between this process and its children: they do not outlive it, and cannot read its memory.

See ``nixery.nix.warden`` for the first.
"""

from __future__ import annotations

import ctypes
import secrets
import subprocess
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

import structlog

from nixery.nix import warden

_log = structlog.get_logger("nixery.nix")

# What processes that a server starts have in their environment.
MARK = "NIXERY_STARTED_BY"

# Seconds. It has something to do only if we do not get here.
_PATIENCE = 5


# The operation's number in Linux's prctl(2).
_PR_SET_DUMPABLE = 4


def hide_from_builders() -> None:
    """Close this process's environment and memory to other processes of the same user.

    A builder without a sandbox may run as the server's own user, and could read the server's credentials in
    ``/proc/<pid>/environ``. Children are not affected: the kernel resets the flag when they execute a program
    (prctl(2)). Root can still read everything.
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


@contextmanager
def guarded(environment: MutableMapping[str, str]) -> Iterator[None]:
    """Have everything ended that is started with an environment, should this process be killed.

    Args:
        environment: gets a mark while the context lasts.
    """
    mark = secrets.token_hex(16)
    environment[MARK] = mark
    try:
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
    except OSError as error:
        # A user who may not run our interpreter anew. No reason not to work.
        _log.warning("builds would go on if this process was killed", reason=error.strerror)
        process = None
    try:
        yield
    finally:
        del environment[MARK]
        if process is not None:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
