"""Every client pulls and runs images, resumes after a broken connection, uses a mirror, and shows errors."""

from __future__ import annotations

import pytest

from tests.acceptance.clients.client import Client
from tests.acceptance.conftest import Notes
from tests.support.faulty_proxy import CuttingProxy, cutting_proxy
from tests.support.server import HOST, Server

# A repository name has at most 255 characters.
MANY_LAYERS = (
    "bash/bc/bzip2/coreutils/curl/diffutils/figlet/findutils/gawk/gnugrep/gnused/gnutar/gzip/hello/htop/jq/less/lsof/"
    "patch/procps/psmisc/rsync/strace/time/tree/unzip/wget/xz-utils/zip/zstd"
)


@pytest.mark.usefixtures("notes")
def test_pull_by_tag(client: Client, server: Server, registry: str) -> None:
    reference = f"{registry}/hello:latest"
    client.pull(reference).expect_success()
    assert client.digest(reference) == server.client.digest("hello")


@pytest.mark.usefixtures("notes")
def test_run(client: Client, registry: str) -> None:
    reference = f"{registry}/hello:latest"
    client.pull(reference).expect_success()
    assert client.run(reference, "hello") == "Hello, world!"


def test_escaped_name(client: Client, server: Server, registry: str, notes: Notes) -> None:
    """Clients accept the spellings of names with `@`, `/`, `+` and capitals."""
    name = "x__40hello__2fc__2b__2b/nested.hello__2b__2b/libstdc__2b__2b6"
    reference = f"{registry}/{name}:latest"
    client.pull(reference).expect_success()
    assert client.digest(reference) == server.client.digest(name)
    assert client.run(reference, "hello") == "Hello, world!"
    notes.note("`@Hello/c++`")


@pytest.mark.usefixtures("notes")
def test_pull_by_digest(client: Client, server: Server, registry: str) -> None:
    digest = server.client.digest("tree")
    reference = f"{registry}/tree@{digest}"
    client.pull(reference).expect_success()
    assert client.digest(reference) == digest
    assert client.run(reference, "tree", "--version").startswith("tree v")


def test_many_layers(client: Client, server: Server, registry: str, notes: Notes) -> None:
    reference = f"{registry}/{MANY_LAYERS}:latest"
    client.pull(reference).expect_success()
    layers = client.layers(reference)
    assert layers == len(server.client.manifest(MANY_LAYERS).json()["layers"])
    assert layers >= 50
    # Two programs of different layers, and a third one to start them.
    assert client.run(reference, "bash", "-c", "echo '{\"a\": [1, 2]}' | gzip | zcat | jq -c .a") == "[1,2]"
    notes.note(f"{layers} layers")


@pytest.mark.usefixtures("notes")
def test_index(client: Client, two_platforms: str) -> None:
    reference = f"{two_platforms}/hello:latest"
    client.pull(reference).expect_success()
    # The image of the first platform could not run.
    assert client.run(reference, "hello") == "Hello, world!"


def test_zstd(client: Client, zstd: str, notes: Notes) -> None:
    # An image of this test alone: a client that has an image with the same config downloads nothing, however
    # its layers are compressed, and podman keeps the digest of its first pull.
    reference = f"{zstd}/coreutils/hello:latest"
    outcome = client.pull(reference)
    if client.knows_zstd:
        outcome.expect_success()
        assert client.run(reference, "hello") == "Hello, world!"
    else:
        # Before the client unpacks anything; otherwise it would leave a partial image.
        assert outcome.status != 0
        notes.message(outcome.output)
        notes.note("refused")


def test_broken_off_blob(client: Client, server: Server, notes: Notes) -> None:
    layer = max(server.client.manifest("ballast").json()["layers"], key=lambda descriptor: descriptor["size"])
    with cutting_proxy(server.port, layer["digest"]) as proxy:
        reference = f"{HOST}:{proxy.port}/ballast:latest"
        pulls = 1
        outcome = client.pull(reference)
        if outcome.status != 0:
            notes.message(outcome.output)
            pulls = 2
            client.pull(reference).expect_success()
    assert client.digest(reference) == server.client.digest("ballast")
    notes.note(_outcome(proxy, layer["size"], pulls))


def _outcome(proxy: CuttingProxy, size: int, pulls: int) -> str:
    first, *more = proxy.asked
    assert first.sent == size // 2, "the transfer was not interrupted"
    assert more, "the client never requested the rest"
    assert all(asked.status == (200 if asked.range is None else 206) for asked in more)
    how = "resumes with a range" if any(asked.range for asked in more) else "restarts the blob"
    return how if pulls == 1 else f"fails; the second pull {how}"


def test_mirror(client: Client, server: Server, notes: Notes) -> None:
    assert client.mirrored is not None
    reference = f"{client.mirrored}/shell/hello:latest"
    client.pull(reference).expect_success()
    assert client.digest(reference) == server.client.digest("shell/hello")
    notes.note(f"of {client.mirrored}")


def test_missing_package(client: Client, registry: str, notes: Notes) -> None:
    outcome = client.pull(f"{registry}/shell/htpo:latest")
    notes.message(outcome.output)
    notes.note("names it" if "did you mean" in outcome.output else "status only")
    assert outcome.status != 0
    assert client.missing in outcome.output


def test_failed_build(client: Client, registry: str, notes: Notes) -> None:
    outcome = client.pull(f"{registry}/failing:latest")
    notes.message(outcome.output)
    notes.note("shows why" if "philosopher" in outcome.output else "status only")
    assert outcome.status != 0
    assert client.failure in outcome.output
