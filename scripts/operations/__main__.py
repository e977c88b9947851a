"""Try the dashboard, the alerts and the table of metrics: ``python -m scripts.operations``, run by ``make operations``.

A real server builds and fails, a real Prometheus scrapes it, and every expression has to have series. Takes
half a minute.
"""

from __future__ import annotations

import http.client
import itertools
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.operations.expressions import alerts, documented_metrics, metrics_in, panels
from scripts.operations.prometheus import OPERATIONS, CheckError, Prometheus, prometheus, promtool
from scripts.peers.nixery import nixery
from scripts.peers.process import Peer, PeerError

_PACKAGE_SET = "tests/packageset"
_PACKAGES = ("greeting", "left", "right", "a", "ab", "bc")
_DOCUMENT = Path("docs/reference/metrics.md")

# Metrics without series here: this server has no TLS.
_WITHOUT_SERIES = {"nixery_tls_certificate_expiry_timestamp_seconds"}

# Seconds: until every rate has its two scrapes.
_RETRY_FOR = 20.0
_TIMEOUT = 60


def main() -> int:
    """Check everything and print the errors; returns the exit status."""
    # Like Ctrl-C, SIGTERM must not leave servers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        promtool("check", "rules", "alerts.yml", directory=OPERATIONS)
        promtool("check", "config", "prometheus.yml", directory=OPERATIONS)
        promtool("test", "rules", "alerts_test.yml", directory=OPERATIONS)
        print("alerts: they fire when they should, and only then")
        with tempfile.TemporaryDirectory(prefix="operations-", dir="var") as name:
            directory = Path(name).resolve()
            with (
                nixery(directory / "nixery", _PACKAGE_SET) as server,
                prometheus(directory / "prometheus", server.address) as observer,
            ):
                _check(server, observer)
    except (CheckError, PeerError) as error:
        print(f"operations: {error}", file=sys.stderr)
        return 1
    return 0


def _check(server: Peer, observer: Prometheus) -> None:
    names = new_images()
    pull(server, next(names))
    metrics = _get(server, "/metrics")
    promtool("check", "metrics", given=metrics)
    exported = {
        line.split()[2] for line in metrics.decode().splitlines() if line.startswith("# TYPE nixery_")
    }
    if exported != documented_metrics(_DOCUMENT):
        raise CheckError(f"{_DOCUMENT} and /metrics differ in {exported ^ documented_metrics(_DOCUMENT)}")
    print(f"metrics: {len(exported)} exported, all documented")

    loaded = {rule["name"] for rule in observer.rules()}
    if loaded != set(alerts()):
        raise CheckError(f"Prometheus has loaded {loaded}")
    shown = list(panels())
    made_of = [
        (alert, name)
        for alert, expression in alerts().items()
        for name in sorted(metrics_in(expression) - _WITHOUT_SERIES)
    ]
    _wait_for_series(server, observer, [*shown, *made_of], names)
    for expression in alerts().values():
        observer.query(expression)
    print(
        f"Prometheus: {len(shown)} expressions of the dashboard and {len(loaded)} alerts have series for all their metrics"
    )


def _wait_for_series(
    server: Peer, observer: Prometheus, wanted: list[tuple[str, str]], names: Iterator[str]
) -> None:
    end = time.monotonic() + _RETRY_FOR
    while missing := [(title, e) for title, e in wanted if not _has_series(observer, e)]:
        if time.monotonic() > end:
            raise CheckError("no series:\n" + "\n".join(f"{title}: {e}" for title, e in missing))
        pull(server, next(names))
        time.sleep(1)


def _has_series(observer: Prometheus, expression: str) -> bool:
    return any(result["value"][1] != "NaN" for result in observer.query(expression))


def new_images() -> Iterator[str]:
    """Yield names of images that were not requested before."""
    for number in range(1, len(_PACKAGES) + 1):
        yield from map("/".join, itertools.combinations(_PACKAGES, number))


def pull(server: Peer, new: str) -> None:
    """Pull a new image and a known one, and request some that are unavailable."""
    for name in (new, "shell/hello"):
        manifest = json.loads(_get(server, f"/v2/{name}/manifests/latest"))
        for part in (manifest["config"], *manifest["layers"]):
            _get(server, f"/v2/{name}/blobs/{part['digest']}")
    _get(server, "/v2/nosuchpackage/manifests/latest")
    _get(server, f"/v2/hello/manifests/sha256:{'0' * 64}")


def _get(server: Peer, path: str) -> bytes:
    host, _, port = server.address.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    except OSError as error:
        raise CheckError(f"{path}: {error}") from error
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
