"""What an image gets beside its packages; the store is a temporary directory."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import trustme

from nixery.closure import StorePath
from nixery.errors import UnsafeContents
from nixery.image.os_release import InvalidFacts, os_release_file
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.java_keystore import MOST_BYTES, java_keystore
from nixery.packing.local_store import LocalStore
from nixery.packing.root_filesystem import (
    Content,
    InstalledOutput,
    Link,
    Tree,
    complete_below_usr,
    plan_root_filesystem,
)
from nixery.packing.system_files import add_system_files

BUNDLE = trustme.CA().cert_pem.bytes()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tmp_path / "store"
    store.mkdir()
    return store


def package(store: Path, name: str, contents: Mapping[str, bytes | str]) -> StorePath:
    """Make a store path with files (bytes) and symlinks (text)."""
    path = StorePath(f"{name:a>32}-{name}")
    for file, content in contents.items():
        place = store / path.base_name / file
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            place.symlink_to(content)
        else:
            place.write_bytes(content)
    return path


def planned(
    store: Path,
    *installed: StorePath,
    others: Sequence[StorePath] = (),
    facts: Mapping[str, str] | None = None,
) -> Tree:
    with LocalStore(bytes(store)) as contents:
        files = ClosureFiles([*installed, *others], contents)
        tree = plan_root_filesystem((InstalledOutput(path, path.name, 5) for path in installed), files).tree
        add_system_files(tree, files, facts)
        complete_below_usr(tree)
        return tree


def text(tree: Tree, name: str) -> str:
    node = tree.get(name.encode())
    assert isinstance(node, Content)
    return node.content.decode()


def target(tree: Tree, name: str) -> str:
    node = tree.get(name.encode())
    assert isinstance(node, Link)
    return node.target.decode()


def test_the_accounts_of_every_image(store: Path) -> None:
    tree = planned(store)
    assert text(tree, "etc/passwd").splitlines() == [
        "root:x:0:0:root:/root:/bin/sh",
        "daemon:x:1:1:daemon:/usr/sbin:/bin/false",
        "bin:x:2:2:bin:/bin:/bin/false",
        "nobody:x:65534:65534:nobody:/:/bin/false",
    ]
    groups = dict(line.split(":x:") for line in text(tree, "etc/group").splitlines())
    assert groups["nogroup"] == groups["nobody"] == "65534:"
    assert groups["tty"] == "5:"


def test_root_has_bash_where_it_is(store: Path) -> None:
    tree = planned(store, package(store, "bash", {"bin/bash": b"", "bin/sh": "bash"}))
    assert text(tree, "etc/passwd").startswith("root:x:0:0:root:/root:/bin/bash\n")


def test_os_release_has_the_facts_of_the_set(store: Path) -> None:
    for facts in ({}, {"ID": "debian", "NAME": "Debian", "VERSION_ID": "12"}):
        tree = planned(store, facts=facts)
        assert target(tree, "etc/os-release") == "../usr/lib/os-release"
        assert text(tree, "usr/lib/os-release").encode() == os_release_file(facts)
    with pytest.raises(InvalidFacts, match="ID is required"):
        planned(store, facts={"NAME": "x"})


@pytest.mark.parametrize(
    "contents",
    [
        {"etc/os-release": b"ID=own\n"},
        {"usr/lib/os-release": b"ID=own\n"},
        {"lib/os-release": b"ID=own\n", "etc/os-release": "../lib/os-release"},
        {"lib/os-release": b"ID=own\n", "etc/os-release": "../usr/lib/os-release"},
    ],
)
def test_a_package_with_os_release_wins(store: Path, contents: Mapping[str, bytes | str]) -> None:
    tree = planned(store, package(store, "base", contents))
    # A regular file: scanners of layers follow no symlinks.
    assert text(tree, "usr/lib/os-release") == "ID=own\n"
    assert target(tree, "etc/os-release") == "../usr/lib/os-release"
    assert tree.get(b"lib/os-release") is None


def test_an_os_release_that_is_no_file_of_the_image(store: Path) -> None:
    (store.parent / "secret").write_text("ID=secret\n")
    for number, content in enumerate(("/etc/os-release", "../../../secret", "/proc/self/environ", "none")):
        base = package(store, f"base{number}", {"etc/os-release": content})
        assert text(planned(store, base), "usr/lib/os-release").encode() == os_release_file({})
    large = package(store, "large", {"etc/os-release": b"x" * 65537})
    with pytest.raises(UnsafeContents, match="more than 65,536 bytes"):
        planned(store, large)


@pytest.mark.parametrize("name", ["ca-bundle.crt", "ca-certificates.crt"])
def test_all_names_of_the_certificates_lead_to_one(store: Path, name: str) -> None:
    cacert = package(store, "cacert", {f"etc/ssl/certs/{name}": BUNDLE})
    _assert_one_bundle(planned(store, cacert), f"{cacert}/etc/ssl/certs/{name}")


def test_a_package_with_both_names_of_its_certificates(store: Path) -> None:
    contents: dict[str, bytes | str] = {
        "etc/ssl/certs/ca-bundle.crt": BUNDLE,
        "etc/ssl/certs/ca-certificates.crt": "ca-bundle.crt",
    }
    cacert = package(store, "cacert", contents)
    _assert_one_bundle(planned(store, cacert), f"{cacert}/etc/ssl/certs/ca-certificates.crt")


def _assert_one_bundle(tree: Tree, file: str) -> None:
    """Whoever replaces ca-certificates.crt, which Debian's tools write, replaces all names."""
    name = "etc/ssl/certs/ca-certificates.crt"
    assert target(tree, name) == file
    for other in (
        "etc/ssl/certs/ca-bundle.crt",
        "etc/ssl/cert.pem",
        "etc/pki/tls/cert.pem",
        "etc/pki/tls/certs/ca-bundle.crt",
        "usr/lib/ssl/cert.pem",
    ):
        above, _, _ = other.rpartition("/")
        assert os.path.normpath(Path("/", above, target(tree, other))) == f"/{name}"


def test_different_certificates_under_the_two_names_stay_apart(store: Path) -> None:
    first = package(store, "a", {"etc/ssl/certs/ca-bundle.crt": b"one"})
    second = package(store, "b", {"etc/ssl/certs/ca-certificates.crt": b"two"})
    tree = planned(store, first, second)
    assert target(tree, "etc/ssl/certs/ca-bundle.crt").startswith(str(first))
    assert target(tree, "etc/ssl/certs/ca-certificates.crt").startswith(str(second))


def test_a_configuration_of_openssl_keeps_its_directory(store: Path) -> None:
    cacert = package(store, "cacert", {"etc/ssl/certs/ca-bundle.crt": BUNDLE})
    openssl = package(store, "openssl", {"lib/ssl/openssl.cnf": b"own", "lib/ssl/certs": "/etc/ssl/certs"})
    tree = planned(store, cacert, openssl)
    assert target(tree, "usr/lib/ssl/openssl.cnf") == f"{openssl}/lib/ssl/openssl.cnf"
    assert target(tree, "usr/lib/ssl/cert.pem") == "/etc/ssl/certs/ca-certificates.crt"


def test_an_image_without_certificates_has_no_names_of_them(store: Path) -> None:
    java = package(store, "java", {"bin/java": b""})
    tree = planned(store, java)
    assert tree.get(b"etc/ssl") == Tree({b"certs": Tree()})
    for name in (b"etc/pki", b"usr/lib/ssl"):
        assert tree.get(name) is None


def test_java_in_the_closure_gets_a_keystore(store: Path) -> None:
    cacert = package(store, "cacert", {"etc/ssl/certs/ca-bundle.crt": BUNDLE})
    java = package(store, "java", {"bin/java": "../lib/jvm/bin/java", "lib/jvm/bin/java": b""})
    tree = planned(store, cacert, others=[java])
    node = tree.get(b"etc/ssl/certs/java/cacerts")
    assert isinstance(node, Content)
    assert node.content == java_keystore(BUNDLE)
    assert planned(store, cacert).get(b"etc/ssl/certs/java") is None


def test_a_packages_own_keystore_is_kept(store: Path) -> None:
    contents = {"etc/ssl/certs/ca-bundle.crt": BUNDLE, "etc/ssl/certs/java/cacerts": b"own"}
    cacert = package(store, "cacert", contents)
    tree = planned(store, cacert, package(store, "java", {"bin/java": b""}))
    assert target(tree, "etc/ssl/certs/java/cacerts") == f"{cacert}/etc/ssl/certs/java/cacerts"


@pytest.mark.parametrize(
    "bundle",
    [b"own\n", b"x" * (MOST_BYTES + 1), BUNDLE + BUNDLE.replace(b"M", b"*")],
    # The certificates differ in each process.
    ids=["text", "too-large", "not-base64"],
)
def test_a_bundle_that_is_none_gives_no_keystore(store: Path, bundle: bytes) -> None:
    cacert = package(store, "cacert", {"etc/ssl/certs/ca-bundle.crt": bundle})
    tree = planned(store, cacert, package(store, "java", {"bin/java": b""}))
    assert tree.get(b"etc/ssl/certs/java") is None


def test_the_configuration_of_fonts_names_the_directories_of_the_image(store: Path) -> None:
    configuration = ET.fromstring(  # noqa: S314 -- nixery's own
        text(planned(store), "etc/fonts/fonts.conf")
    )
    directories = [element.text for element in configuration.iter("dir")]
    assert directories[:2] == ["/usr/share/fonts", "/usr/local/share/fonts"]
    assert [element.text for element in configuration.iter("include")] == ["/etc/fonts/conf.d"]
    assert planned(store).get(b"var/cache/fontconfig") is None


def test_fonts_of_the_whole_closure_are_found(store: Path) -> None:
    installed = package(store, "dejavu", {"share/fonts/truetype/dejavu/a.ttf": b""})
    also = package(store, "noto", {"share/fonts/truetype/noto/b.ttf": b""})
    other = package(store, "minimal", {"share/fonts/c.ttf": b""})
    file = package(store, "odd", {"share/fonts": b""})
    tree = planned(store, installed, others=[other, file])
    fonts = tree.get(b"usr/share/fonts")
    assert isinstance(fonts, Tree)
    assert set(fonts.children) == {b"truetype", other.base_name.encode()}
    assert target(tree, f"usr/share/fonts/{other.base_name}") == f"{other}/share/fonts"
    cache = tree.get(b"var/cache/fontconfig")
    assert isinstance(cache, Tree)
    assert cache.mode == 0o1777
    (store / also.base_name / "var/cache/fontconfig").mkdir(parents=True)
    tree = planned(store, installed, also, others=[other])
    cache = tree.get(b"var/cache/fontconfig")
    assert isinstance(cache, Tree)
    assert cache.mode == 0o1777
    fonts = tree.get(b"usr/share/fonts")
    assert isinstance(fonts, Tree)
    assert set(fonts.children) == {b"truetype", other.base_name.encode()}


def test_the_configuration_of_fontconfig_in_the_closure_is_taken(store: Path) -> None:
    fontconfig = package(
        store,
        "fontconfig",
        {"etc/fonts/fonts.conf": b"<fontconfig/>", "etc/fonts/conf.d/10-a.conf": "../../../share/a"},
    )
    dejavu = package(store, "dejavu", {"etc/fonts/conf.d/57-dejavu.conf": b""})
    tree = planned(store, dejavu, others=[fontconfig])
    assert target(tree, "etc/fonts/fonts.conf") == f"{fontconfig}/etc/fonts/fonts.conf"
    assert target(tree, "etc/fonts/conf.d/10-a.conf") == f"{fontconfig}/etc/fonts/conf.d/10-a.conf"
    assert target(tree, "etc/fonts/conf.d/57-dejavu.conf") == f"{dejavu}/etc/fonts/conf.d/57-dejavu.conf"


def test_a_requested_configuration_of_fonts_is_kept(store: Path) -> None:
    own = package(store, "own", {"etc/fonts/fonts.conf": b"<fontconfig/>"})
    other = package(store, "fontconfig", {"etc/fonts/fonts.conf": b"", "etc/fonts/conf.d/10-a.conf": b""})
    tree = planned(store, own, others=[other])
    assert target(tree, "etc/fonts/fonts.conf") == f"{own}/etc/fonts/fonts.conf"
    assert tree.get(b"etc/fonts/conf.d") is None
