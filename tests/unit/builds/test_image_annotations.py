from nixery.builds.descriptions import PACKAGES, image_annotations, readable_labels
from nixery.closure import StorePath
from nixery.image.name import parse_image_name
from nixery.nix.packages import Package
from nixery.sources.source import Pin

PATH = StorePath("a" * 32 + "-p")
HERE = Pin("path:/set", "abc", "abc")
ELSEWHERE = Pin("git:https://example.org/set", "abc", "abc", "https://example.org/set", 1_700_000_000)


def package(requested: str, version: str, *licences: str, name: str | None = None) -> Package:
    return Package(requested, requested, PATH, {"out": PATH}, name or requested, version, licences=licences)


GIT = package("git", "2.39.5", "GPL-2.0-only")
CACERT = package("cacert", "3.98", "MPL-2.0", name="nss-cacert")


def test_a_single_package() -> None:
    assert image_annotations(parse_image_name("git"), [GIT, CACERT], ELSEWHERE) == {
        "org.opencontainers.image.title": "git",
        "org.opencontainers.image.version": "2.39.5",
        "org.opencontainers.image.licenses": "GPL-2.0-only AND MPL-2.0",
        "org.opencontainers.image.source": "https://example.org/set",
        "org.opencontainers.image.revision": "abc",
        PACKAGES: "git 2.39.5, nss-cacert 3.98",
    }


def test_several_packages_have_no_version_in_common() -> None:
    packages = [GIT, package("htop", "3.2.2")]
    found = image_annotations(parse_image_name("shell/htop/git"), packages, HERE)
    assert found["org.opencontainers.image.title"] == "shell/git/htop"
    assert "org.opencontainers.image.version" not in found


def test_a_commit_is_told_wherever_it_comes_from() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    for revision in (commit, f"{commit}-dirty"):
        found = image_annotations(parse_image_name("git"), [GIT], Pin("path:/set", "abc", revision))
        assert found["org.opencontainers.image.revision"] == revision
        assert "org.opencontainers.image.source" not in found


def test_a_directory_is_nobodys_business() -> None:
    found = image_annotations(parse_image_name("git"), [GIT], HERE)
    assert not any("/set" in value or "abc" in value for value in found.values())


def test_what_is_no_spdx_identifier() -> None:
    packages = [package("a", "1", "BSD 3-clause", "unfree (all of it)", "MIT", "")]
    licences = image_annotations(parse_image_name("a"), packages, HERE)["org.opencontainers.image.licenses"]
    assert (
        licences == "LicenseRef-BSD-3-clause AND LicenseRef-unfree-all-of-it AND LicenseRef-unknown AND MIT"
    )


def test_a_list_of_packages_has_no_version() -> None:
    packages = [package("tools", "1", name="git"), package("tools", "2", name="htop")]
    found = image_annotations(parse_image_name("tools"), packages, HERE)
    assert "org.opencontainers.image.version" not in found
    assert found[PACKAGES] == "git 1, htop 2"


def test_the_image_with_nothing_in_it() -> None:
    assert image_annotations(parse_image_name("arm64"), [], HERE) == {
        "org.opencontainers.image.title": "base"
    }


def test_what_moves_a_cursor_is_escaped_and_nothing_else_is_changed() -> None:
    evil, fine = package("evil", "1\x1b[31m", "MIT\u202e"), package("fine", "größer\n1")
    found = image_annotations(parse_image_name("evil/fine"), [evil, fine], HERE)
    assert found[PACKAGES] == "evil 1\\x1b[31m, fine größer\n1"
    assert readable_labels({"b\u200b\n": "\x1b", "a": "two\nlines\t日本語"}) == {
        "b\\u200b\\n": "\\x1b",
        "a": "two\nlines\t日本語",
    }


def test_an_annotation_that_no_client_takes_is_left_out() -> None:
    packages = [package(f"{number:04}", "x" * 256) for number in range(2000)]
    assert PACKAGES not in image_annotations(parse_image_name("a"), packages, HERE)
    assert PACKAGES in image_annotations(parse_image_name("a"), packages[:900], HERE)
