"""A real Prometheus that scrapes one server every second, and its tool."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts.peers.process import HOST, Peer, free_port, running

OPERATIONS = Path("docs/how-to/monitoring")

# Seconds.
_TIMEOUT = 60
_QUERY = 10


class CheckError(Exception):
    """A check of docs/how-to/monitoring failed."""


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    peer: Peer

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression has now.

        Raises:
            CheckError: the expression is invalid.
        """
        url = f"http://{self.peer.address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            with urllib.request.urlopen(url, timeout=_QUERY) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            raise CheckError(f"{expression}\n{said}") from None
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def rules(self) -> list[dict[str, Any]]:
        """Return the alerts that were loaded."""
        url = f"http://{self.peer.address}/api/v1/rules"
        with urllib.request.urlopen(url, timeout=_QUERY) as response:
            groups = json.load(response)["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@contextmanager
def prometheus(directory: Path, target: str) -> Iterator[Prometheus]:
    """Run Prometheus with the configuration of docs/how-to/monitoring, except for the target and the interval.

    Raises:
        PeerError: it does not start.
    """
    directory.mkdir(parents=True)
    configuration = yaml.safe_load((OPERATIONS / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str((OPERATIONS / name).resolve()) for name in configuration["rule_files"]]
    configuration["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    port = free_port()
    command = (
        "prometheus",
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={HOST}:{port}",
    )
    with running("prometheus", command, port, directory / "prometheus.log", path="/-/ready") as peer:
        yield Prometheus(peer)


def promtool(*arguments: str, directory: Path | None = None, given: bytes = b"") -> None:
    """Run promtool.

    Raises:
        CheckError: promtool fails; with its output.
    """
    ended = subprocess.run(
        ["promtool", *arguments],
        cwd=directory,
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_TIMEOUT,
        check=False,
    )
    if ended.returncode:
        raise CheckError(f"promtool {' '.join(arguments)}:\n{ended.stdout.decode(errors='replace')}")
