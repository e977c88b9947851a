"""One client in its own process, which requests the same manifest repeatedly.

The other clients share a process and wait for each other; this one waits only for the server and a processor.
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.client import RegistryClient
from tests.support.server import HOST

# Seconds between two requests, and for the process to end.
_PAUSE = 0.05
_END = 30

_OK = 200


@contextmanager
def probing(port: int) -> Iterator[None]:
    """Send requests until the context ends, then print their latencies."""
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.soak.probe", str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield
        finally:
            said, _ = process.communicate(timeout=_END)  # closes its input, which ends it
            print(said.decode().strip(), flush=True)


def main() -> None:
    """Send requests until standard input ends; print their latencies."""
    client = RegistryClient(HOST, int(sys.argv[1]))
    seconds: list[float] = []
    while not select.select([sys.stdin], [], [], _PAUSE)[0]:
        begin = time.monotonic()
        status = client.manifest("hello").status
        if status == _OK:
            seconds.append(time.monotonic() - begin)
    seconds.sort()
    middle, most = seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100]
    print(
        f"alone in its process: {len(seconds)} warm manifests, median {middle * 1000:,.0f} ms,"
        f" 99 % {most * 1000:,.0f} ms, longest {seconds[-1] * 1000:,.0f} ms"
    )


if __name__ == "__main__":
    main()
