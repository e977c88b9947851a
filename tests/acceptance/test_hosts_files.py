"""containerd's ``hosts.toml`` with a private registry: credentials of the client, and of the file for a mirror."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.acceptance.clients.client import PULL, Outcome
from tests.acceptance.clients.containerd import Containerd, running_containerd
from tests.acceptance.clients.logins import Credentials
from tests.acceptance.clients.private_bases import CRICTL
from tests.acceptance.registry_with_access import PASSWORD, USER, VISITOR, Registry
from tests.support.file_systems import short_lived_directory

_PRIVATE = """\
server = "http://{host}"
[host."http://{host}"]
capabilities = ["pull", "resolve"]
"""

_MIRRORED = "registry.invalid/hello:latest"

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


def _pull(containerd: Containerd, hosts: tuple[str, ...], reference: str, *options: str) -> Outcome:
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
    return containerd.shell.call(command, PULL)


def test_a_private_registry(containerd: Containerd, access: Registry) -> None:
    hosts = containerd.write_hosts(access.host, _PRIVATE.format(host=access.host))
    reference = f"{access.host}/hello:latest"
    right = Credentials(USER, PASSWORD)
    _pull(containerd, hosts, reference, "--user", right.colon_separated).expect_success()
    _pull(containerd, hosts, f"{access.host}/other:latest").expect_success()
    refused = {
        "401 Unauthorized": ("--user", f"{USER}:{access.expired}"),
        "hello:latest: not found": ("--user", Credentials(VISITOR, PASSWORD).colon_separated),
        "authorization failed": (),
    }
    for message, options in refused.items():
        outcome = _pull(containerd, hosts, reference, *options)
        assert outcome.status != 0
        assert message in outcome.output


@pytest.fixture(scope="module")
def mirrored(request: pytest.FixtureRequest, access: Registry) -> Iterator[Callable[[str], Outcome]]:
    """Pull an image of the host through the mirror, with the value of a header field."""
    is_cri = request.param == "crictl"
    with (
        short_lived_directory("nixery-mirror-") as directory,
        running_containerd(directory, access.server.port, for_kubernetes=is_cri) as containerd,
    ):

        def pull(authorization: str) -> Outcome:
            text = _MIRROR.format(host=access.host, authorization=authorization)
            hosts = containerd.write_hosts("registry.invalid", text)
            if is_cri:
                return containerd.shell.call((*containerd.cri_command(CRICTL), "pull", _MIRRORED), PULL)
            return _pull(containerd, hosts, _MIRRORED)

        yield pull


def test_a_private_registry_as_a_mirror(mirrored: Callable[[str], Outcome], access: Registry) -> None:
    refused = mirrored(Credentials("robot", access.expired).authorization)
    assert refused.status != 0
    assert "authorization failed" in refused.output
    for authorization in (Credentials(USER, PASSWORD).authorization, f"Bearer {access.token}"):
        mirrored(authorization).expect_success()
