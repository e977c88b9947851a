"""The meaning of image names: packages, platforms and meta-packages."""

from __future__ import annotations

import pytest

from tests.integration.conftest import Pull
from tests.support.client import RegistryClient


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("hello/greeting", "greeting/hello"),
        ("hello", "hello/hello"),
        ("hello", "amd64/hello"),
        ("shell/hello", "shell/amd64/hello"),
        ("shell/arm64/hello", "arm64/shell/hello"),
        ("shell/shell/hello", "shell/hello"),
        ("shell/hello", "shell/hello/cacert/iana-etc"),
        ("shell/hello", "shell/hello/nano"),
    ],
)
def test_equivalent_names_have_one_digest(client: RegistryClient, one: str, other: str) -> None:
    assert client.digest(one) == client.digest(other)


def test_confusable_names_are_different_images(pull: Pull) -> None:
    assert set(pull("a/bc").filesystem.names_in("bin")) == {"a", "bc"}
    assert set(pull("ab/c").filesystem.names_in("bin")) == {"ab", "c"}


def test_meta_packages_are_recognised_at_the_front_only(client: RegistryClient, pull: Pull) -> None:
    assert "bash" in pull("shell/hello").filesystem.names_in("bin")
    # After the first package they are ordinary names, and this set has no such packages.
    for meta_package in ("shell", "arm64", "amd64"):
        response = client.manifest(f"hello/{meta_package}")
        assert response.status == 404
        assert [package["name"] for package in response.error["detail"]["packages"]] == [meta_package]


def test_shell_stands_for_four_packages(pull: Pull) -> None:
    image = pull("shell")
    assert {"bash", "sh", "ls", "env", "moreutils", "nano"} <= set(image.filesystem.names_in("bin"))
    assert image.cmd == ["bash"]


def test_certificates_protocols_and_services_are_always_included(pull: Pull) -> None:
    filesystem = pull("hello").filesystem
    assert filesystem.read("etc/protocols") == b"tcp 6 TCP\n"
    assert filesystem.read("etc/services") == b"http 80/tcp\n"
    assert filesystem.read("etc/ssl/certs/ca-bundle.crt") == b"certificates\n"


def test_nothing_else_is_always_included(pull: Pull) -> None:
    names = {path.split("-", 1)[1] for path in pull("hello").filesystem.store_paths}
    assert names == {"hello-1.0", "iana-etc-1.0", "nss-cacert-1.0"}


def test_arm64_selects_the_architecture(pull: Pull) -> None:
    amd64, arm64 = pull("hello"), pull("arm64/hello")
    assert (amd64.config_document["architecture"], amd64.config_document.get("variant")) == ("amd64", None)
    assert (arm64.config_document["architecture"], arm64.config_document.get("variant")) == ("arm64", "v8")
    assert b"hello for x86_64-linux" in amd64.filesystem.read("bin/hello")
    assert b"hello for aarch64-linux" in arm64.filesystem.read("bin/hello")


def test_requests_of_two_architectures_do_not_mix(client: RegistryClient) -> None:
    digests = [client.digest(name) for name in ("arm64/nano", "nano", "arm64/nano", "amd64/nano")]
    assert digests[0] == digests[2] != digests[1] == digests[3]


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("error", "error"),
        ("haskellpackages.pandoc", "pandoc"),
        ("haskellpackages.deeper.lens", "lens"),
        ("haskellpackages.shellcheck", "shellcheck"),
        ("camelcase", "camelcase"),
        ("ambiguous", "ambiguous-upper"),
        ("exact", "exact-lower"),
        ("1password", "_1password"),
        ("python3.11", "python-dotted"),
        ("iana-etc/hello", "hello"),
    ],
)
def test_names_find_their_attributes(pull: Pull, name: str, program: str) -> None:
    assert pull(name).filesystem.names_in("bin") == [program]


def test_an_output_has_no_outputs(client: RegistryClient) -> None:
    """Nix accepts them, but a package with endless names would have endless images."""
    assert client.manifest("hello.out").status == 200
    for name in ("hello.out.out", "outputs.dev.out", "hello.out.all", "hello.out.x__6f__75__74"):
        response = client.manifest(name)
        assert (response.status, response.error["detail"]["packages"][0]["reason"]) == (404, "missing")


def test_a_package_may_have_an_attribute_named_error(pull: Pull) -> None:
    assert pull("haserror").filesystem.read("share/haserror") == b"fine\n"


def test_all_tags_of_a_directory_are_one_image(client: RegistryClient) -> None:
    by_tag = {client.manifest("hello", tag).body for tag in ("latest", "v1.0", "nixos-24.05")}
    assert len(by_tag) == 1
