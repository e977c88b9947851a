"""The start of containers, and the annotations of images."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nixery.builds.image import PACKAGES, execution_parameters, image_annotations, readable_labels
from nixery.closure import StorePath
from nixery.image.name import parse_image_name
from nixery.nix.packages import Contents, Definition, Package
from nixery.oci.documents import ExecutionParameters
from nixery.packing.root_filesystem import Link, Tree, complete_below_usr
from nixery.sources.source import Pin

PATH = StorePath("a" * 32 + "-p")
HERE = Pin("path:/set", "abc", "abc")
ELSEWHERE = Pin("git:https://example.org/set", "abc", "abc", "https://example.org/set", 1_700_000_000)


def licensed(requested: str, version: str, *licences: str, name: str | None = None) -> Package:
    return Package(requested, requested, PATH, {"out": PATH}, name or requested, version, licences=licences)


GIT = licensed("git", "2.39.5", "GPL-2.0-only")
CACERT = licensed("cacert", "3.98", "MPL-2.0", name="nss-cacert")


def test_the_annotations_of_an_image_with_a_single_package() -> None:
    assert image_annotations(parse_image_name("git"), [GIT, CACERT], ELSEWHERE) == {
        "org.opencontainers.image.title": "git",
        "org.opencontainers.image.version": "2.39.5",
        "org.opencontainers.image.licenses": "GPL-2.0-only AND MPL-2.0",
        "org.opencontainers.image.source": "https://example.org/set",
        "org.opencontainers.image.revision": "abc",
        PACKAGES: "git 2.39.5, nss-cacert 3.98",
    }


def test_an_image_with_several_packages_has_no_version() -> None:
    packages = [GIT, licensed("htop", "3.2.2")]
    found = image_annotations(parse_image_name("shell/htop/git"), packages, HERE)
    assert found["org.opencontainers.image.title"] == "shell/git/htop"
    assert "org.opencontainers.image.version" not in found


def test_a_commit_is_the_revision_even_without_a_url() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    for revision in (commit, f"{commit}-dirty"):
        found = image_annotations(parse_image_name("git"), [GIT], Pin("path:/set", "abc", revision))
        assert found["org.opencontainers.image.revision"] == revision
        assert "org.opencontainers.image.source" not in found


def test_the_path_of_a_directory_is_in_no_annotation() -> None:
    found = image_annotations(parse_image_name("git"), [GIT], HERE)
    assert not any("/set" in value or "abc" in value for value in found.values())


def test_a_licence_without_an_spdx_identifier_becomes_a_license_ref() -> None:
    packages = [licensed("a", "1", "BSD 3-clause", "unfree (all of it)", "MIT", "")]
    licences = image_annotations(parse_image_name("a"), packages, HERE)["org.opencontainers.image.licenses"]
    assert (
        licences == "LicenseRef-BSD-3-clause AND LicenseRef-unfree-all-of-it AND LicenseRef-unknown AND MIT"
    )


def test_a_list_of_packages_has_no_version() -> None:
    packages = [licensed("tools", "1", name="git"), licensed("tools", "2", name="htop")]
    found = image_annotations(parse_image_name("tools"), packages, HERE)
    assert "org.opencontainers.image.version" not in found
    assert found[PACKAGES] == "git 1, htop 2"


def test_an_empty_image_is_titled_base() -> None:
    assert image_annotations(parse_image_name("arm64"), [], HERE) == {
        "org.opencontainers.image.title": "base"
    }


def test_control_characters_are_escaped_in_annotations_and_labels() -> None:
    evil, fine = licensed("evil", "1\x1b[31m", "MIT\u202e"), licensed("fine", "größer\n1")
    found = image_annotations(parse_image_name("evil/fine"), [evil, fine], HERE)
    assert found[PACKAGES] == "evil 1\\x1b[31m, fine größer\n1"
    assert readable_labels({"b\u200b\n": "\x1b", "a": "two\nlines\t日本語"}) == {
        "b\\u200b\\n": "\\x1b",
        "a": "two\nlines\t日本語",
    }


def test_an_annotation_that_is_too_long_for_clients_is_left_out() -> None:
    packages = [licensed(f"{number:04}", "x" * 256) for number in range(2000)]
    assert PACKAGES not in image_annotations(parse_image_name("a"), packages, HERE)
    assert PACKAGES in image_annotations(parse_image_name("a"), packages[:900], HERE)


@pytest.mark.security
def test_licences_that_are_too_long_together_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Authors may write 80 MB for one image; searching them for characters stopped the server for eight seconds."""
    searched: list[str] = []

    class Counted:
        def sub(self, replacement: str, text: str) -> str:  # noqa: ARG002 -- of the real one
            searched.append(text)
            return text

    monkeypatch.setattr("nixery.builds.image._NO_IDENTIFIER", Counted())
    packages = [licensed(str(number), "1", f"{number:03}" + "a " * 8000) for number in range(50)]
    found = image_annotations(parse_image_name("a"), packages, HERE)
    assert "org.opencontainers.image.licenses" not in found
    assert searched == []
    assert "org.opencontainers.image.licenses" in image_annotations(
        parse_image_name("a"), packages[:10], HERE
    )


def program(requested_name: str, name: str, main_program: str | None = None) -> Package:
    return Package(requested_name, requested_name, PATH, {"out": PATH}, name, main_program=main_program)


def tree(*programs: str) -> Tree:
    root = Tree()
    for program in programs:
        root.add(f"bin/{program}".encode(), Link(b"somewhere"))
    return root


def of(*packages: Package) -> Contents:
    return Contents(packages)


def test_the_command_of_a_meta_package_is_started() -> None:
    contents = replace(of(program("git", "git")), command=("bash",))
    assert execution_parameters(parse_image_name("shell/git"), contents, tree("git")).cmd == ("bash",)


def test_one_package_starts_its_main_program() -> None:
    ripgrep = program("ripgrep", "ripgrep", "rg")
    certificates = program("cacert", "nss-cacert")
    execution = execution_parameters(
        parse_image_name("ripgrep"), of(ripgrep, certificates), tree("rg", "ripgrep")
    )
    assert execution.cmd == ("rg",)


def test_a_main_program_that_the_image_lacks_is_not_started() -> None:
    request = parse_image_name("ripgrep")
    ripgrep = program("ripgrep", "ripgrep", "rg")
    assert execution_parameters(request, of(ripgrep), tree("ripgrep")).cmd == ("ripgrep",)
    assert execution_parameters(request, of(ripgrep), tree()).cmd == ()


def test_an_image_with_two_packages_has_no_command() -> None:
    packages = of(program("git", "git"), program("htop", "htop"))
    assert execution_parameters(parse_image_name("git/htop"), packages, tree("git", "htop")).cmd == ()


def test_programs_and_certificates_have_stable_paths_in_the_environment() -> None:
    env = dict(
        entry.split("=", 1) for entry in execution_parameters(parse_image_name("git"), of(), tree()).env
    )
    assert env["PATH"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert env["SSL_CERT_FILE"] == env["GIT_SSL_CAINFO"] == "/etc/ssl/certs/ca-bundle.crt"
    assert "HOME" not in env


def test_variables_for_files_are_set_if_the_image_has_them() -> None:
    request = parse_image_name("git")
    root = tree()
    without = execution_parameters(request, of(), root).env
    names = ("TZDIR", "LOCALE_ARCHIVE", "JAVAX_NET_SSL_TRUSTSTORE")
    assert not [entry for entry in without if entry.startswith(names)]
    for file in (b"share/zoneinfo", b"lib/locale/locale-archive", b"etc/ssl/certs/java/cacerts"):
        root.add(file, Link(b"somewhere"))
    complete_below_usr(root)
    assert execution_parameters(request, of(), root).env == (
        *without,
        "TZDIR=/usr/share/zoneinfo",
        "LOCALE_ARCHIVE=/usr/lib/locale/locale-archive",
        "JAVAX_NET_SSL_TRUSTSTORE=/etc/ssl/certs/java/cacerts",
    )


def defined(name: str, execution: ExecutionParameters, *packages: Package) -> ExecutionParameters:
    return execution_parameters(
        parse_image_name(name),
        Contents(packages, Definition("web", "web", execution)),
        tree("bash", "nginx", "curl"),
    )


NGINX, CURL = program("web", "nginx"), program("curl", "curl")


def test_a_definition_takes_precedence() -> None:
    execution = ExecutionParameters(
        env=("PORT=80", "PATH=/own"), cmd=("serve",), user="65534", labels={"a": "b"}, entrypoint=("/init",)
    )
    result = defined("shell/web", execution, NGINX, CURL)
    assert result.cmd == ("serve",)
    assert (result.user, result.labels, result.entrypoint) == ("65534", {"a": "b"}, ("/init",))
    assert result.env[-2:] == ("PORT=80", "PATH=/own")
    assert len([entry for entry in result.env if entry.startswith("PATH=")]) == 1
    assert any(entry.startswith("SSL_CERT_FILE=") for entry in result.env)


def test_a_definition_without_a_command_gets_the_one_of_its_package() -> None:
    nothing = ExecutionParameters()
    assert defined("web", nothing, NGINX).cmd == ("nginx",)
    assert defined("web", nothing, NGINX, program("web", "curl")).cmd == ()
    assert defined("web", ExecutionParameters(cmd=()), NGINX).cmd == ()


def test_a_list_of_one_package_is_started_and_a_longer_one_is_not() -> None:
    request = parse_image_name("tools")
    one, two = program("tools", "curl"), program("tools", "nginx")
    assert execution_parameters(request, of(one), tree("curl", "nginx")).cmd == ("curl",)
    assert execution_parameters(request, of(one, two), tree("curl", "nginx")).cmd == ()
