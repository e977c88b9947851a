from __future__ import annotations

from collections.abc import Callable

import pytest

from nixery.settings import values


@pytest.mark.parametrize(
    "url",
    [
        "https://git.example/packages",
        "https://user:p%40ss@git.example/packages.git",
        "ssh://git@git.example:22/packages",
        "git@git.example:packages",
        "file:///srv/packages",
        "/srv/packages",
    ],
)
def test_urls_that_git_accepts(url: str) -> None:
    assert values.git_url(url) == url


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("ext::sh -c id", "git would run a program"),
        ("--upload-pack=id", "take it for an option"),
        ("https://git.example/x?token=secret", "it has a query"),
        ("https://git.example/x#secret", "it has a query"),
        ("https:///x", "no valid host"),
        ("https://git.example:99999/x", "no valid host"),
        ("https://user:p/ss@git.example/x", "no valid host"),
        ("https://git.example/a b", "a space or a control character"),
        ("https://user:p%0ass@git.example/x", "a space or a control character"),
    ],
)
def test_urls_with_a_secret_or_a_program_are_rejected_for_git(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        values.git_url(url)


def test_an_archive_url_has_a_placeholder_and_may_have_a_secret() -> None:
    url = "https://user:token@archives.example/{rev}.tar.gz?signature=x"
    assert values.archive_url(url) == url
    with pytest.raises(ValueError, match=r"it has no \{rev\}"):
        values.archive_url("https://archives.example/latest.tar.gz")


@pytest.mark.parametrize(
    "reference",
    ["github:owner/repository?dir=a&ref=main", "git+ssh://git@git.example/x", "/srv/flake", "./flake"],
)
def test_flake_references_without_a_secret(reference: str) -> None:
    assert values.flake_reference(reference) == reference


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("--impure", "take it for an option"),
        ("git+https://user:token@git.example/x", "it has user info"),
        ("git+ssh://git:token@git.example/x", "it has user info"),
        ("github:owner/repository?token=x", r"a parameter that flakes do not have \(token\)"),
        ("git+https://git.example/x?submodules=1", "submodules may be fetched"),
    ],
)
def test_flake_references_with_a_secret_are_rejected(reference: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        values.flake_reference(reference)


def test_a_problem_with_a_url_does_not_quote_its_secret() -> None:
    checks: list[tuple[Callable[[str], str], str]] = [
        (values.git_url, "https://u:s3cr3t@git.example/x?y"),
        (values.archive_url, "https://u:s3cr3t@/x/{rev}"),
        (values.flake_reference, "git+https://u:s3cr3t@git.example/x"),
    ]
    for check, url in checks:
        with pytest.raises(ValueError, match="it has") as caught:
            check(url)
        assert "s3cr3t" not in str(caught.value)


def test_lists_are_separated_by_commas_and_arguments_as_in_a_shell() -> None:
    assert values.comma_separated(" a, b,,c ") == ("a", "b", "c")
    assert values.shell_words("--option cores '4 5'") == ("--option", "cores", "4 5")


@pytest.mark.parametrize("text", ["a b", "a..b", "-a", "a.1", "a" * 256])
def test_a_path_of_attributes_has_plain_names_and_a_bound(text: str) -> None:
    assert values.attribute_paths(" images, xorg.libs ,images") == (("images",), ("xorg", "libs"))
    with pytest.raises(ValueError, match="is no attribute path"):
        values.attribute_paths(text)
