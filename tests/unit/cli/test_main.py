"""The exit of a command's process."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The object prints a line if the interpreter is finalised.
_COMMAND = r"""
import atexit, logging, os, sys, threading, time

class Late:
    def __del__(self, write=os.write):
        write(1, b"too late\n")

sys.late = Late()
from nixery.cli import main

class Handler(logging.Handler):
    def flush(self):
        print("logged", flush=True)

handler = Handler()

def work():
    time.sleep(0.5)
    atexit.register(print, "registered")
    print("thread")

threading.Thread(target=work).start()
main()
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--version"], 0), (["--no-such-option"], 2), (["storage", "copy", "a", "b"], 1)],
)
def test_the_process_exits_before_the_interpreter_is_finalised(arguments: list[str], status: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == status
    # But after all threads and exit handlers, with all output flushed.
    assert ended.stdout.splitlines()[-3:] == ["thread", "registered", "logged"]
    assert bool(ended.stderr) is (status != 0)
