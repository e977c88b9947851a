"""containerd's ``hosts.toml`` with a private registry: credentials of the client, and of the file for a mirror."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.clients.client import PULL
from tests.acceptance.clients.containerd import Containerd, running_containerd
from tests.acceptance.clients.logins import Credentials
from tests.acceptance.registry_with_access import PASSWORD, USER, VISITOR, Registry
from tests.support.file_systems import short_lived_directory

_PRIVATE = """\
server = "http://{host}"
[host."http://{host}"]
capabilities = ["pull", "resolve"]
"""

# A node has the credentials of a mirror in this file: containerd sends those of a pull to no other host.
_MIRROR = """\
server = "https://registry.invalid"
[host."http://{host}"]
capabilities = ["pull", "resolve"]
[host."http://{host}".header]
Authorization = ["{authorization}"]
"""


@pytest.fixture(scope="module")
def containerd(access: Registry) -> Iterator[Containerd]:
    with (
        short_lived_directory("nixery-hosts-") as directory,
        running_containerd(directory, access.server.port) as running,
    ):
        yield running


def _pull(containerd: Containerd, hosts: tuple[str, ...], reference: str, *options: str) -> tuple[int, str]:
    command = (
        *containerd.command,
        "images",
        "pull",
        "--snapshotter",
        "overlayfs",
        *hosts,
        *options,
        reference,
    )
    outcome = containerd.shell.call(command, PULL)
    return outcome.status, outcome.output


def test_a_private_registry(containerd: Containerd, access: Registry) -> None:
    hosts = containerd.write_hosts(access.host, _PRIVATE.format(host=access.host))
    reference = f"{access.host}/hello:latest"
    right = Credentials(USER, PASSWORD)
    status, output = _pull(containerd, hosts, reference, "--user", right.colon_separated)
    assert status == 0, output
    status, output = _pull(containerd, hosts, f"{access.host}/other:latest")
    assert status == 0, output
    refused = {
        "401 Unauthorized": ("--user", f"{USER}:{access.expired}"),
        "hello:latest: not found": ("--user", Credentials(VISITOR, PASSWORD).colon_separated),
        "authorization failed": (),
    }
    for message, options in refused.items():
        status, output = _pull(containerd, hosts, reference, *options)
        assert status != 0
        assert message in output


def test_a_private_registry_as_a_mirror(containerd: Containerd, access: Registry) -> None:
    reference = "registry.invalid/hello:latest"

    def pull(authorization: str) -> tuple[int, str]:
        text = _MIRROR.format(host=access.host, authorization=authorization)
        return _pull(containerd, containerd.write_hosts("registry.invalid", text), reference)

    for authorization in (Credentials(USER, PASSWORD).authorization, f"Bearer {access.token}"):
        status, output = pull(authorization)
        assert status == 0, output
    status, output = pull(Credentials("robot", access.expired).authorization)
    assert status != 0
    assert "authorization failed" in output
